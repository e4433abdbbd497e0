"""Who is hurt in the middle of what others wait for: a collective call, a reset, an evaluation, weights on their way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.chaos import traps
from tests.chaos.runs import check_log, check_same, check_whole, config_of
from tests.chaos.test_drivers import DRIVER, session_of
from wmrl_ray.config import to_dict
from wmrl_ray.rllib.placement import Room
from wmrl_ray.rllib.sampling import Runners
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
LIMIT_S = 20.0  # call_timeout_s
AT_ONCE = {"schedule": "asynchronous", "max_steps_ahead": 48, "max_updates_ahead": 12}


def at_once(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, online=dataclasses.replace(config.online, **AT_ONCE))


def recoveries(line: Any) -> list[Any]:
    return [event for _, event in line.events if event.kind == "recovery"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """The run of two learners in which nothing happens: they draw other batches than one."""
    path = tmp_path_factory.mktemp("two") / "run"
    train_on_ray(config_of(num_learners=2), path)
    return path


def test_a_learner_killed_when_its_weights_were_put(
    plain: Path, tmp_path: Path, row: Callable[..., Any], local_ray: None
) -> None:
    line = row("learner", "its weights just put")
    traps.arm("put", count=40)
    result = train_on_ray(config_of(num_learners=1), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    (recovery,) = recoveries(line)
    line.write(f"built again from update {recovery.update}; same result to the bit", line.recovery_s(), "nothing")


def test_a_learner_stopped_while_it_is_built(
    plain: Path, tmp_path: Path, row: Callable[..., Any], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLlib waits for it for ever."""
    line = row("learner", "SIGSTOP while it is built")
    monkeypatch.setattr("wmrl_ray.rllib.train.STARTING_S", 40.0)
    traps.arm("build", signum=signal.SIGSTOP)
    result = train_on_ray(config_of(num_learners=1, call_timeout_s=LIMIT_S), tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    (recovery,) = recoveries(line)
    assert "did not start within 60 s" in recovery.message and recovery.update == 0
    line.write(
        "ended with what it was built with, and built again (after 60 s); same result to the bit", line.recovery_s(), "nothing"
    )


@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_one_of_two_ranks_hurt_in_the_all_reduce(how: str, two_ranks: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("one of two learners", f"{how} in the all-reduce, where the other waits for it")
    traps.arm("all_reduce", count=100, signum=getattr(signal, how))
    config = config_of(num_learners=2, call_timeout_s=LIMIT_S if how == "SIGSTOP" else 600.0)
    result = train_on_ray(config, tmp_path / "run", on_event=line.on_event)
    assert result["finished"]
    check_same(tmp_path / "run", two_ranks)
    ((told, recovery),) = [(when, event) for when, event in line.events if event.kind == "recovery"]
    hit = traps.fired()
    assert hit is not None and told - hit["time"] < 120  # gloo itself waits for half an hour
    if how == "SIGSTOP":
        assert f"did not answer within call_timeout_s = {LIMIT_S:g} s" in recovery.message
    said = f"told after {told - hit['time']:.0f} s; built again from update {recovery.update}; same result to the bit"
    line.write(said, line.recovery_s(), "nothing")


def test_a_runner_killed_in_a_reset(plain: Path, tmp_path: Path, row: Callable[..., Any], local_ray: None) -> None:
    line = row("environment runner", "in `reset`")
    traps.arm("reset", count=8)
    result = train_on_ray(config_of(), tmp_path / "run", on_event=line.on_event)
    last = check_whole(tmp_path / "run", result, plain)
    assert last["online/lost_runners"] == 1 and not recoveries(line)
    lost = f"{last['online/lost_steps']:.0f} steps of unfinished episodes"
    line.write("replaced; the run went on", line.recovery_s(), lost)


def test_the_runner_of_an_evaluation_stopped(plain: Path, tmp_path: Path, row: Callable[..., Any], local_ray: None) -> None:
    line = row("runner of an evaluation", "SIGSTOP while it evaluates")
    traps.arm("evaluate", count=1, signum=signal.SIGSTOP)
    config = config_of(num_learners=1, num_eval_runners=1, eval_every=60, eval_episodes=2, call_timeout_s=LIMIT_S)
    result = train_on_ray(config, tmp_path / "run", on_event=line.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    evaluated = [event.update for _, event in line.events if event.kind == "eval"]
    assert evaluated == [60, 120]
    (recovery,) = recoveries(line)
    line.write(f"built again from update {recovery.update}; same result to the bit, both evaluations there", None, "nothing")


def test_of_two_learners_one_killed_while_it_takes_episodes_and_the_runners_go_on(
    tmp_path: Path, row: Callable[..., Any], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books balance, and the healthy runners' episodes are not thrown away."""
    line = row("one of two learners, two runners, asynchronous", "while it takes episodes")
    made: list[int] = []
    make = Runners._make
    monkeypatch.setattr(Runners, "_make", lambda self, runner: (made.append(runner), make(self, runner))[1])
    traps.arm("fetch", count=8)
    result = train_on_ray(at_once(config_of(num_learners=2, num_runners=2)), tmp_path / "run", on_event=line.on_event)
    last = check_log(tmp_path / "run", result)
    (recovery,) = recoveries(line)
    unfinished = last["online/steps"] - last["online/replay_steps"] - last["online/lost_steps"]
    assert 0 <= unfinished <= 4 * max(traps.fakes.LENGTHS)  # each step is in the replay, at work, or lost
    assert last["online/lost_runners"] == 0 and made == [0, 1]
    lost = f"{last['online/lost_steps']:.0f} of {last['online/steps']:.0f} steps"
    line.write(f"built again from update {recovery.update} with the same runners; the books balance", line.recovery_s(), lost)


def test_nobody_takes_the_room_between_the_wait_for_it_and_the_actors(
    plain: Path, tmp_path: Path, row: Callable[..., Any], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job asks for all that is free, for good, at the moment in which the run has found its room."""
    line = row("another job", "takes what is free between the wait for room and the actors")
    wait, rivals = Room.wait, []

    def found(room: Room, asked: Any, *args: Any) -> bool:
        there = wait(room, asked, *args)
        if not rivals:
            free = int(ray.available_resources()["CPU"])
            rivals.extend(ray.remote(num_cpus=1)(Rival).remote() for _ in range(free + 2))
            assert len(ray.wait([rival.here.remote() for rival in rivals], num_returns=free, timeout=120)[0]) == free
        return there

    monkeypatch.setattr(Room, "wait", found)
    traps.arm("sample", count=55)  # and the learner, which is then made again
    started = time.monotonic()
    try:
        result = train_on_ray(config_of(num_learners=1), tmp_path / "run", on_event=line.on_event)
    finally:
        for rival in rivals:
            ray.kill(rival)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    took = f"the run has its actors, and a learner killed later its place: {time.monotonic() - started:.0f} s in all"
    line.write(f"{took}; same result to the bit", None, "nothing")


class Rival:
    def here(self) -> bool:
        return True


def test_the_gcs_of_a_run_killed(plain: Path, tmp_path: Path, row: Callable[..., Any], request: pytest.FixtureRequest) -> None:
    """A Ray without a head cannot go on: the run ends, nobody stays behind, and the same command resumes."""
    line = row("gcs_server", "between two updates")
    traps.arm("sample", count=1000)  # never: it is the list of who works for the run that is needed
    config = config_of(num_learners=1, num_updates=120_000, checkpoint_every=24)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(to_dict(config)), str(tmp_path / "run"), "ray"],
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_gcs_rpc_server_reconnect_timeout_s": "10"},
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
    try:
        until = time.monotonic() + 240
        while not list((tmp_path / "run").glob("checkpoints/0*")) and time.monotonic() < until:
            time.sleep(0.5)
        (gcs,) = [pid for pid in session_of(process.pid) if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()[:300]]
        os.kill(gcs, signal.SIGKILL)
        killed = time.monotonic()
        process.wait(timeout=300)
        ended_s = time.monotonic() - killed
        while (left := session_of(process.pid)) and time.monotonic() < killed + 300:
            time.sleep(0.2)
        assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    finally:
        for pid in session_of(process.pid):
            os.kill(pid, signal.SIGKILL)
    request.getfixturevalue("local_ray")
    newest = RunDir(tmp_path / "run").newest_checkpoint()  # beside it may lie one that was half-written
    assert newest is not None
    reached = int(newest.name)
    goal = (reached // 24 + 2) * 24
    again = dataclasses.replace(config, num_updates=goal)
    result = train_on_ray(again, tmp_path / "run", resume=True, on_event=line.on_event)
    assert (result["updates"], result["finished"]) == (goal, True)
    line.write(f"the run ended {ended_s:.0f} s later; the same command resumed from update {reached}", None, "nothing")


@pytest.fixture(autouse=True)
def stopped_processes_end(traps_folder: Path) -> Iterator[None]:
    """A process under SIGSTOP that a failed row has left."""
    yield
    if (hit := traps.fired()) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hit["pid"], signal.SIGCONT)
