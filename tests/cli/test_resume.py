"""A run goes on from wherever it is called, wherever it and its dataset lie by then; and has one writer."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.holders import held_elsewhere
from tests.rllib import fakes

VALUES: dict[str, Any] = {
    "algorithm": "bc", "dataset": "data/plane.npz", "env": fakes.PLANE, "num_updates": 4, "batch_size": 8,
    "updates_per_call": 2, "eval_every": 0, "eval_episodes": 1, "checkpoint_every": 2, "log_every": 2, "track": [],
}  # fmt: skip


@pytest.fixture
def run(wmrl: Any, tmp_path: Path) -> Path:
    """Of a dataset that its YAML names by a relative path."""
    (tmp_path / "data").mkdir()
    fakes.write_plane_dataset(tmp_path / "data/plane.npz")
    (tmp_path / "bc.yaml").write_text(yaml.safe_dump(VALUES))
    assert wmrl("train", "bc.yaml", "--no-ray", "--run-dir", "a run").code == 0
    return tmp_path / "a run"


def updates_of(run: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss/actor" in line]


def go_on(wmrl: Any, run: Path, *more: str) -> Any:
    return wmrl("train", run, "--no-ray", "--resume", "--set", "num_updates=6", *more)


def test_from_another_folder_and_under_another_name_of_its_own(
    wmrl: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = run.rename(tmp_path / "moved #1")
    assert go_on(wmrl, run).code == 0
    assert updates_of(run) == [2, 4, 6]


def test_a_dataset_that_was_moved_or_renamed_is_the_same_by_its_content(wmrl: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "data/plane.npz").rename(moved := tmp_path / "renamed #2.npz")
    lost = go_on(wmrl, run)
    assert lost.code == 2 and "\n" not in lost.err.strip()
    told = f"data/plane.npz' is not on this machine any more; if it has another place or name now: wmrl train '{run}' --resume"
    assert told in lost.err
    assert shlex.split(lost.err.partition("wmrl train ")[2])[0] == str(run)
    assert go_on(wmrl, run, "--set", f"dataset={moved}").code == 0
    assert updates_of(run) == [2, 4, 6]
    assert json.loads((run / "config.json").read_text())["dataset"] == str(moved)


def test_another_content_is_refused_whatever_its_name(wmrl: Any, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    fakes.write_plane_dataset(other, num_episodes=59)
    before = (run / "config.json").read_bytes()
    refused = go_on(wmrl, run, "--set", f"dataset={other}")
    assert refused.code == 2 and "\n" not in refused.err.strip()
    assert f"with dataset = {other}: it learned from other content" in refused.err
    shutil.copy(other, tmp_path / "data/plane.npz")
    refused = go_on(wmrl, run)
    assert refused.code == 2 and f"with dataset = {tmp_path}/data/plane.npz: it learned from other content" in refused.err
    assert (run / "config.json").read_bytes() == before and updates_of(run) == [2, 4]


@pytest.mark.parametrize("more", [["--resume"], ["--overwrite"], []])
def test_a_run_at_work_is_left_alone(wmrl: Any, run: Path, more: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    with held_elsewhere(run) as other:
        refused = wmrl("train", "bc.yaml", "--no-ray", "--run-dir", run, "--set", "num_updates=6", *more)
        assert refused.code == 2 and f"process {other.pid} on" in refused.err and "is at work in" in refused.err
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}


def test_what_another_host_held_is_taken_over_when_asked(wmrl: Any, run: Path) -> None:
    owner = {"host": "node-7", "pid": 1, "started": "1", "boot": "x", "since": "2026-11-30 10:00:00 UTC"}
    (run / ".lock").write_text(json.dumps(owner))
    refused = go_on(wmrl, run)
    assert refused.code == 2 and "process 1 on node-7" in refused.err and "--take-over" in refused.err
    assert go_on(wmrl, run, "--take-over").code == 0
    assert updates_of(run) == [2, 4, 6]


def test_a_missing_dataset_of_ours_is_told_with_its_exact_command(wmrl: Any) -> None:
    refused = wmrl("train", "quick", "--no-ray")
    command = "wmrl data make pointmaze-umaze --steps 50000 --id wmrl/demo/pointmaze-umaze-v0"
    assert refused.code == 2 and refused.err.strip().endswith(f"is not on this machine; make it: {command}")
