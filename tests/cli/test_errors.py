"""A user's error is one line and exit code 2; ours keeps its traceback."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest
import typer.main

import wmrl_ray
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.cli import app as app_module
from wmrl_ray.cli.errors import user_message
from wmrl_ray.config import ConfigError
from wmrl_ray.data.episode import DataError
from wmrl_ray.rllib.failures import RemoteError
from wmrl_ray.train import NonFiniteLossError


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, NonFiniteLossError, FloatingPointError])
def test_errors_that_a_user_can_mend_are_their_own_message(kind):
    assert user_message(kind("x = 3; at most 2")) == "x = 3; at most 2"


def test_a_missing_file_and_a_full_disk_are_named():
    assert (
        user_message(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"))
        == "No such file or directory: a.yaml"
    )
    assert user_message(OSError(errno.ENOSPC, "No space left on device", "runs/x")) == "No space left on device: runs/x"


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RuntimeError("x"), OSError(errno.EIO, "I/O error", "x"), OSError("x")]
)
def test_anything_else_is_a_bug(error):
    assert user_message(error) is None


def test_the_cause_inside_a_ray_error_counts():
    class RayTaskError(Exception):
        def __init__(self, cause):
            super().__init__("ray::f() (pid=1)\n  a remote traceback")
            self.cause = cause

    assert user_message(RayTaskError(DataError("bad file"))) == "bad file"
    assert user_message(RayTaskError(KeyError("x"))) is None


def test_a_bug_reaches_the_user_with_its_traceback(monkeypatch):
    def broken() -> None:
        raise KeyError("ours")

    monkeypatch.setattr(app_module, "app", broken)
    monkeypatch.setattr(sys, "argv", ["wmrl"])
    with pytest.raises(KeyError, match="ours"):
        app_module.main()


@pytest.mark.parametrize(
    ("error_type", "code", "err"),
    [
        ("NonFiniteLossError", 2, "wmrl: learner failed: NonFiniteLossError: update 3 is not finite\n"),
        ("FloatingPointError", 2, "wmrl: learner failed: FloatingPointError: update 3 is not finite\n"),
        ("DataError", 2, "wmrl: learner failed: DataError: update 3 is not finite\n"),
        ("KeyError", 1, "wmrl: learner failed: KeyError: update 3 is not finite\n\nOn the learner:\nTraceback (remote)\n"),
        (None, 1, "wmrl: learner failed: None: update 3 is not finite\n\nOn the learner:\nTraceback (remote)\n"),
    ],
)
def test_an_actors_error_is_one_line_if_the_user_can_mend_it_else_the_actors_traceback(
    monkeypatch, capsys, error_type, code, err
):
    def failing() -> None:
        error = RemoteError(f"learner failed: {error_type}: update 3 is not finite\n\nOn the learner:\nTraceback (remote)")
        monkeypatch.setattr(error, "error_type", error_type, raising=False)
        raise error

    monkeypatch.setattr(app_module, "app", failing)
    monkeypatch.setattr(sys, "argv", ["wmrl"])
    with pytest.raises(SystemExit) as stop:
        app_module.main()
    assert (stop.value.code, capsys.readouterr().err) == (code, err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quik"], "wmrl: no configuration named 'quik' (did you mean 'quick'?)"),
        (["train", "quick", "--set", "num_updats=3"], "wmrl: unknown key 'num_updats' (did you mean 'num_updates'?)"),
        (["train", "quick", "--set", "agent.plan.horizn=3"], "horizn"),
        (["train", "quick", "--set", "algorithm=tdmcp"], "unknown algorithm 'tdmcp' (did you mean 'tdmpc'?)"),
        (["train", "quick", "--set", "num_updates=7"], "num_updates = 7 is not a multiple of updates_per_call"),
        (["train", "quick", "--no-ray", "--debug"], "--debug is for Ray"),
        (["train", "quick", "--resume", "--overwrite"], "choose one"),
        (["train", "quick", "--no-ray", "--set", "dataset=nowhere"], "dataset 'nowhere' does not exist"),
        (["evaluate", "nowhere"], "no checkpoint at nowhere; give a run folder"),
        (["evaluate", ".", "--episodes", "0"], "--episodes 0; at least 1 is needed"),
        (["evaluate", ".", "--video", "film.txt"], "--video film.txt must end in one of .mp4"),
        (["evaluate", ".", "--video", "film.gif"], "--video film.gif must end in one of .mp4, .mkv"),
        (["evaluate", ".", "--video", "film.webm"], "--video film.webm must end in one of .mp4, .mkv"),
        (["evaluate", ".", "--video", "no/film.mp4"], "no such folder for the video: no"),
        (["report", "nowhere"], "no such run directory: nowhere"),
        (["data", "make", "pointmase-umaze"], "no maker 'pointmase-umaze' (did you mean 'pointmaze-umaze'?)"),
        (["data", "info", "nowhere"], "dataset 'nowhere' does not exist"),
        (["data", "info", "x", "--picture", "x.txt"], "--picture x.txt must end in one of .png"),
        (["data", "verify", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_a_users_error_is_one_line_with_exit_code_2(wmrl, arguments, message):
    outcome = wmrl(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("wmrl: ")]
    assert len(lines) == 1


def test_a_damaged_checkpoint_is_passed_over_with_one_line(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    assert wmrl("train", tiny, "--no-ray", "--run-dir", run).code == 0
    file = run / "checkpoints" / "00000020" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (run / "result.json").unlink()
    resumed = wmrl("train", run, "--no-ray", "--resume")
    assert resumed.code == 0 and resumed.events[0]["update"] == 10
    lines = [line for line in resumed.err.splitlines() if "passing over" in line]
    assert len(lines) == 1 and lines[0].startswith("wmrl: passing over a damaged checkpoint: ")
    assert "warnings.warn" not in resumed.err


def test_every_command_that_a_line_of_ours_names_exists():
    """Of the errors and hints that are written into the package: the way out must be one."""
    known = typer.main.get_command(app_module.app).commands
    named = {
        (path.name, name)
        for path in Path(wmrl_ray.__file__).parent.rglob("*.py")
        for name in re.findall(r"`wmrl ([a-z]+)", path.read_text())
    }
    assert len(named) > 20
    assert [(file, name) for file, name in sorted(named) if name not in known] == []
