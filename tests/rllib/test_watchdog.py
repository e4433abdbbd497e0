"""Trials that hang: ended after the limit and started again; slow ones, and a driver that was away, are not taken for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tests.rllib.test_sweep import specs, work
from wmrl_ray.rllib import watchdog
from wmrl_ray.rllib.trials import Outcome, run_trials
from wmrl_ray.rllib.watchdog import Life, Watchdog

pytestmark = pytest.mark.ray


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Watched:
    """A watchdog of a limit of 10 s, and one running trial that it sees; `look` lets time pass."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.killed = Clock(), []
        monkeypatch.setattr(watchdog, "time", self.clock)
        monkeypatch.setattr(watchdog.ray, "kill", self.killed.append)
        self.life = Life(folder, 10.0)
        self.trial = SimpleNamespace(
            trial_id="t1", status=Trial.RUNNING, temporary_state=SimpleNamespace(ray_actor="its actor")
        )
        self.watchdog, self._beats = Watchdog(self.life), 0
        folder.mkdir()
        self.watchdog.on_trial_start(0, [self.trial], self.trial)

    def show(self) -> None:
        self._beats += 1
        self.life.file("t1").touch()
        os.utime(self.life.file("t1"), ns=(self._beats, self._beats))

    def look(self, *after_s: float) -> None:
        for seconds in after_s:
            self.clock.now += seconds
            self.watchdog.on_step_begin(0, [self.trial])


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path / "alive", monkeypatch)


def test_a_trial_is_ended_when_its_sign_of_life_has_not_changed_for_the_limit(watched: Watched) -> None:
    watched.show()
    watched.look(2, 2, 2, 2, 2)
    assert watched.killed == []
    watched.show()
    watched.look(2, 2, 2, 2, 2, 2)
    assert watched.killed == [] and watched.watchdog.cause(watched.trial) is None
    with pytest.warns(UserWarning, match="trial_timeout_s = 10 s .*started again while max_failures allow"):
        watched.look(2)
    assert watched.killed == ["its actor"]
    assert "no sign of life for trial_timeout_s = 10 s" in str(watched.watchdog.cause(watched.trial))
    watched.look(*[2] * 20)
    assert watched.killed == ["its actor"]  # while Tune starts it again
    watched.watchdog.on_trial_start(0, [], watched.trial)
    assert watched.watchdog.cause(watched.trial) is None


def test_a_trial_that_has_not_shown_life_yet_or_does_not_run_is_left_alone(watched: Watched) -> None:
    watched.look(*[2] * 20)
    watched.show()
    watched.look(2)
    watched.trial.status = Trial.PAUSED  # by a scheduler: it has no process
    watched.look(*[2] * 20)
    watched.trial.status = Trial.RUNNING
    watched.look(*[2] * 5)
    assert watched.killed == []


def test_a_driver_that_was_stopped_itself_ends_nobody_for_it(watched: Watched) -> None:
    watched.show()
    watched.look(2, 3600, 2)
    assert watched.killed == []


def test_no_limit_no_watch(tmp_path: Path) -> None:
    with Life(tmp_path / "alive", 0.0).shown():
        pass
    assert not (tmp_path / "alive").exists()


def stop_or_wait(spec: dict[str, Any], report: Any) -> dict[str, Any]:
    """Once: stops its process where the spec says so, and waits without a report where it does not."""
    outcome = work({**spec, "actions": ["ok"]}, report)
    if outcome["attempt"] == 0 and spec["actions"] == ["stop"]:
        Path(spec["file"]).with_name("stopped").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    if outcome["attempt"] == 0 and spec["actions"] == ["wait"]:
        time.sleep(8)
    return outcome


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_stopped_trial_is_started_again_and_one_that_only_waits_is_not(tmp_path: Path) -> None:
    jobs = specs(tmp_path, stopped=["stop"], waiting=["wait"])
    with pytest.warns(UserWarning, match="no sign of life for trial_timeout_s = 5 s"):
        outcomes = run_trials(stop_or_wait, jobs, folder=tmp_path / ".tune", max_failures=1, trial_timeout_s=5.0)
    assert outcomes == {"stopped": Outcome(result={"attempt": 1}), "waiting": Outcome(result={"attempt": 0})}
    assert not list(tmp_path.glob(".tune*"))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore:.*no sign of life")
def test_a_trial_that_is_stopped_too_often_fails_with_the_reason(tmp_path: Path) -> None:
    outcomes = run_trials(
        stop_or_wait, specs(tmp_path, a=["stop"]), folder=tmp_path / ".tune", max_failures=0, trial_timeout_s=5.0
    )
    assert "showed no sign of life for trial_timeout_s = 5 s" in str(outcomes["a"].error)
    pid = int((tmp_path / "stopped").read_text())
    until = time.monotonic() + 1.0
    while not is_gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert is_gone(pid)  # though Ray may end now, and would leave it behind
