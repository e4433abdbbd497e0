"""Runners and learners that are killed, or stopped, while they sample, update or save."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import traps
from tests.chaos.runs import check_log, check_same, check_whole, config_of
from wmrl_ray.rllib.train import train_on_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


RUNNER = {"sampling": ("step", 75), "update": ("sample", 50), "saving": ("get_state", 2)}  # points and counts


@pytest.mark.parametrize("moment", RUNNER)
def test_a_runner_killed(moment: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("environment runner", moment)
    point, count = RUNNER[moment]
    traps.arm(point, count=count, target="step")
    result = train_on_ray(config_of(), tmp_path / "run", on_event=line.on_event)
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
    result = train_on_ray(config_of(num_learners=1), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    line.write(*_rebuilt(line))


def test_a_learner_stopped(plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("learner", "SIGSTOP in an update")
    traps.arm("sample", count=55, signum=signal.SIGSTOP)
    result = train_on_ray(config_of(num_learners=1, call_timeout_s=30.0), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    (message,) = [event.message for _, event in line.events if event.kind == "recovery"]
    assert "did not answer within call_timeout_s = 30 s" in message
    how, recovery_s, lost = _rebuilt(line)
    line.write(f"{how} (call_timeout_s = 30)", recovery_s, lost)


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_a_runner_stopped(schedule: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row(f"environment runner, {schedule}", "SIGSTOP while sampling")
    traps.arm("step", count=75, signum=signal.SIGSTOP)
    config = config_of(call_timeout_s=30.0)
    ahead = {"max_steps_ahead": 48, "max_updates_ahead": 12}
    config = dataclasses.replace(config, online=dataclasses.replace(config.online, schedule=schedule, **ahead))
    result = train_on_ray(config, tmp_path / "run", on_event=line.on_event)
    if schedule == "synchronous":
        last = check_whole(tmp_path / "run", result, plain)
    else:  # updates go on meanwhile, and how many steps are taken is not fixed
        last = check_log(tmp_path / "run", result)
        unfinished = last["online/steps"] - last["online/replay_steps"] - last["online/lost_steps"]
        assert 0 <= unfinished <= 2 * max(traps.fakes.LENGTHS)  # each step is there, at work, or lost
        assert 120 - 12 <= result["steps"] <= 120 + 48
    assert last["online/lost_runners"] == 1
    lost = f"{last['online/lost_steps']:.0f} steps of unfinished episodes"
    recovery_s = line.recovery_s() if schedule == "synchronous" else None
    line.write("ended and replaced (call_timeout_s = 30)", recovery_s, lost)


def _rebuilt(line: Any) -> tuple[str, float, str]:
    """What a run that was built again writes into its row."""
    (recovery,) = [event for _, event in line.events if event.kind == "recovery"]
    hit = traps.fired()
    assert hit is not None
    before = max([e.update for when, e in line.events if when < hit["time"] and e.kind == "update"], default=0)
    recovery_s = line.recovery_s()
    repeated = f"nothing; {before - recovery.update} to {before - recovery.update + 12} updates made again"
    return f"built again from update {recovery.update}; same result to the bit", recovery_s, repeated
