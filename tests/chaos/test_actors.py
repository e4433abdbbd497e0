"""Runners and learners that are killed, or stopped, while they sample, update or save."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import traps
from wmrl_ray.online import train_online
from wmrl_ray.rllib.config import CONFIGS
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run import OnlineConfig, RunConfig, RunDir

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(autouse=True)
def trapped_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "own_tdmpc", traps.TrappedConfig)


def config_of(num_learners: int, **changes: Any) -> RunConfig:
    online = OnlineConfig(num_runners=1, num_envs=2, seed_steps=48, capacity=200)
    return traps.run_config(num_learners=num_learners, online=online, **changes)


def learned(run_dir: Path) -> list[dict[str, float]]:
    """What was learned and collected; without times, and without what only runs on Ray count."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    drop = ("time", "eval/", "online/lost", "online/steps_per_s")
    return [{k: v for k, v in line.items() if not k.startswith(drop)} for line in lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """The same run in one process, in which nothing dies."""
    path = tmp_path_factory.mktemp("plain") / "run"
    config = config_of(0)
    train_online(dataclasses.replace(config, online=dataclasses.replace(config.online, num_runners=0)), path)
    return path


def check_whole(run_dir: Path, result: dict[str, Any], plain: Path) -> dict[str, float]:
    """Every update once, every step counted once; returns the last line of the log."""
    without = json.loads((plain / "result.json").read_text())
    assert (result["updates"], result["finished"], result["steps"]) == (120, True, without["steps"])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [line["update"] for line in lines if "loss/model" in line]
    assert updates == list(range(12, 121, 12))
    newest = RunDir(run_dir).newest_checkpoint()
    assert newest is not None and newest.name == "00000120"
    assert [path.name for path in newest.parent.iterdir() if path.name.startswith(".")] == []
    return [line for line in lines if "loss/model" in line][-1]


RUNNER = {"sampling": ("step", 75), "update": ("sample", 50), "saving": ("get_state", 2)}  # points and counts


@pytest.mark.parametrize("moment", RUNNER)
def test_a_runner_killed(moment: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("environment runner", moment)
    point, count = RUNNER[moment]
    traps.arm(point, count=count, target="step")
    result = train_on_ray(config_of(0), tmp_path / "run", on_event=line.on_event)
    last = check_whole(tmp_path / "run", result, plain)
    assert last["online/lost_runners"] == 1
    assert 0 <= last["online/lost_steps"] <= 2 * max(traps.fakes.LENGTHS)
    recoveries = [event for _, event in line.events if event.kind == "recovery"]
    assert not recoveries  # it was replaced, and nothing went back
    line.write("replaced; the run went on", line.recovery_s(), f"{last['online/lost_steps']:.0f} steps of unfinished episodes")


LEARNER = {"sampling": ("step", 75), "update": ("sample", 55), "saving": ("get_state", 3)}


@pytest.mark.parametrize("moment", LEARNER)
def test_a_learner_killed(moment: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("learner", moment)
    point, count = LEARNER[moment]
    traps.arm(point, count=count, target="sample")
    result = train_on_ray(config_of(1), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    assert learned(tmp_path / "run") == learned(plain)
    line.write(*_rebuilt(line))


def test_a_learner_stopped(plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("learner", "SIGSTOP in an update")
    traps.arm("sample", count=55, signum=signal.SIGSTOP)
    result = train_on_ray(config_of(1, call_timeout_s=30.0), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    assert learned(tmp_path / "run") == learned(plain)
    (message,) = [event.message for _, event in line.events if event.kind == "recovery"]
    assert "did not answer within call_timeout_s = 30 s" in message
    how, recovery_s, lost = _rebuilt(line)
    line.write(f"{how} (call_timeout_s = 30)", recovery_s, lost)


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_a_runner_stopped(schedule: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row(f"environment runner, {schedule}", "SIGSTOP while sampling")
    traps.arm("step", count=75, signum=signal.SIGSTOP)
    config = config_of(0, call_timeout_s=30.0)
    ahead = {"max_steps_ahead": 48, "max_updates_ahead": 12}
    config = dataclasses.replace(config, online=dataclasses.replace(config.online, schedule=schedule, **ahead))
    result = train_on_ray(config, tmp_path / "run", on_event=line.on_event)
    assert (result["updates"], result["finished"]) == (120, True)
    if schedule == "synchronous":
        check_whole(tmp_path / "run", result, plain)
    last = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["online/lost_runners"] == 1
    lost = f"{last['online/lost_steps']:.0f} steps of unfinished episodes"
    line.write("ended and replaced (call_timeout_s = 30)", line.recovery_s(), lost)


def _rebuilt(line: Any) -> tuple[str, float, str]:
    """What a run that was built again writes into its row."""
    (recovery,) = [event for _, event in line.events if event.kind == "recovery"]
    hit = traps.fired()
    assert hit is not None
    before = max([e.update for when, e in line.events if when < hit["time"] and e.kind == "update"], default=0)
    recovery_s = line.recovery_s()
    repeated = f"nothing; {before - recovery.update} to {before - recovery.update + 12} updates made again"
    return f"built again from update {recovery.update}; same result to the bit", recovery_s, repeated
