"""The folder of a run: what is written waits for room, and what is read is whole."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from wmrl_ray import checkpoint
from wmrl_ray.cli.configs import read_source
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.run import provenance
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.folder import RunDir


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(algorithm="bc", dataset="x", env="Pendulum-v1")


def test_lines_of_the_log_wait_until_a_full_disk_has_room(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    run.open_metrics(0)
    run.log(1, {"loss/model": 1.0})
    number = errno.ENOSPC

    def full(*arguments: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("wmrl_ray.run.folder.open", full, raising=False)
        with pytest.warns(UserWarning, match="No space left on device: lines of .*metrics.jsonl wait") as told:
            run.log(2, {"loss/model": 2.0})
            run.log(3, {"loss/model": 3.0})
        assert len(told) == 1 and [line["update"] for line in RunDir(run.path).read_metrics()] == [1]
        assert [line["update"] for line in run.read_metrics()] == [1, 2, 3]
    run.log(4, {"loss/model": 4.0})
    assert [line["update"] for line in RunDir(run.path).read_metrics()] == [1, 2, 3, 4]
    number = errno.EIO
    monkeypatch.setattr("wmrl_ray.run.folder.open", full, raising=False)
    with pytest.raises(OSError, match="metrics.jsonl"):
        run.log(5, {})


def test_each_session_records_where_it_comes_from(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    run.open_metrics(0)
    first = json.loads((run.path / "environment.json").read_text())
    assert run.sessions() == [{"update": 0, **first}] and not (run.path / "sessions.json").exists()
    monkeypatch.setattr(provenance, "_git_revision", lambda: "def")
    RunDir(run.path).open_metrics(40)
    assert [(one["update"], one["git_revision"]) for one in run.sessions()] == [(0, first["git_revision"]), (40, "def")]
    assert json.loads((run.path / "environment.json").read_text()) == first
    RunDir(run.path).open_metrics(60)
    assert len(run.sessions()) == 2  # of the same process
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []


def test_a_run_of_an_old_version_without_its_provenance_still_resumes(config: RunConfig, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    (run.path / "environment.json").unlink()
    assert run.sessions() == []
    run.open_metrics(40)
    assert [one["update"] for one in run.sessions()] == [40]


def test_a_resumed_run_may_be_placed_and_evaluated_otherwise_but_not_learn_otherwise(config: RunConfig, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", replace(config, runner_resources={"a_node": 1.0}), None)
    elsewhere = {"learner_resources": {"big": 1.0}, "runner_resources": {"b_node": 2.0}, "device": "cpu"}
    recorded = {"num_updates": 200_000, "eval_every": 5_000, "eval_episodes": 3, "track": ()}
    run.check_same(replace(config, **elsewhere, **recorded))
    with pytest.raises(ConfigError, match="cannot resume .* with batch_size = 128: it was started with 256"):
        run.check_same(replace(config, batch_size=128))


@pytest.mark.parametrize(
    "garbage", ["garbage", "\0\0\0", "[]", "3", '{"loss": 1}', '{"update": null}', '{"update": 2, "lo', "\xff"]
)
def test_a_broken_line_of_the_log_loses_only_itself(config: RunConfig, tmp_path: Path, garbage: str) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    run.open_metrics(0)
    for update in (1, 2, 3):
        run.log(update, {"loss/model": float(update)})
    file = run.path / "metrics.jsonl"
    first, _, third = file.read_text().splitlines()
    file.write_bytes("\n".join([first, garbage, third, garbage]).encode("latin-1"))
    assert [line["update"] for line in run.read_metrics()] == [1, 3]
    resumed = RunDir(run.path)
    with pytest.warns(UserWarning, match=r"metrics.jsonl is damaged in line 2: dropped, the others stay"):
        resumed.open_metrics(3)
    resumed.log(4, {"loss/model": 4.0})
    assert [json.loads(line)["update"] for line in file.read_text().splitlines()] == [1, 3, 4]


def test_a_measure_that_is_no_number_never_comes_into_the_log(config: RunConfig, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", config, None)
    run.open_metrics(0)
    with pytest.raises(ValueError, match=r"metrics.jsonl: eval/return_mean = nan"):
        run.log(1, {"eval/return_mean": float("nan")})
    run.log(2, {"eval/return_mean": 1.0})
    assert [line["update"] for line in RunDir(run.path).read_metrics()] == [2]


def test_a_resumed_run_may_have_other_runners_and_learners(tmp_path: Path) -> None:
    online = RunConfig(algorithm="tdmpc2", env="Pendulum-v1", online=OnlineConfig(num_runners=1))
    run = RunDir.create(tmp_path / "run", online, None)
    run.check_same(replace(online, num_learners=2, online=OnlineConfig(num_runners=4)))
    with pytest.raises(ConfigError, match="online.num_envs = 2: it was started with 1"):
        run.check_same(replace(online, online=OnlineConfig(num_runners=1, num_envs=2)))


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ({"gradient_penalty": True, "penalty_coef": 1.0}, (True, "loss", 1.0)),
        ({"gradient_penalty": True, "penalty_coef": 3.0}, (True, "loss", 3.0)),
        ({"gradient_penalty": False, "penalty_coef": 1.0}, (False, "critic", 0.1)),  # nothing was learned from it
        ({"gradient_penalty": True, "penalty_coef": 1.0, "penalty_form": "critic"}, (True, "critic", 1.0)),
    ],
)
def test_a_run_from_before_the_penalty_had_forms_keeps_its_loss(tmp_path: Path, recorded: dict, now: tuple) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig(algorithm="iq_mpc", dataset="x", env="Pendulum-v1"), None)
    file = run.path / "config.json"
    values = json.loads(file.read_text())
    agent = {key: value for key, value in values["agent"].items() if "penalty" not in key}
    file.write_text(json.dumps({**values, "agent": {**agent, **recorded}}))
    for config in (run.config(), from_dict(RunConfig, read_source(str(run.path)).values)):
        agent = config.resolved().agent
        assert (agent["gradient_penalty"], agent["penalty_form"], agent["penalty_coef"]) == now
    run.check_same(run.config())
    other = replace(run.config(), agent={"gradient_penalty": recorded["gradient_penalty"]})
    if now[1:] != ("critic", 0.1):
        with pytest.raises(ConfigError, match=r"cannot resume .* with agent\.penalty_(form|coef) = .*: it was started with"):
            run.check_same(other)
    else:
        run.check_same(other)


def test_a_checkpoint_that_was_moved_aside_by_a_killed_process_counts(config: RunConfig, tmp_path: Path) -> None:
    """It was killed while it wrote another one of the same update, between the two renames."""
    run = RunDir.create(tmp_path / "run", config, None)
    for update in (20, 40):
        checkpoint.save(run.checkpoint_path(update), {}, {})
    newest = run.checkpoint_path(40)
    newest.rename(newest.with_name(f".{newest.name}.0123456789ab.old"))
    assert run.newest_checkpoint() == newest
    assert sorted(path.name for path in newest.parent.iterdir()) == ["00000020", "00000040"]
