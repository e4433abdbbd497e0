"""Room for a run's actors: waited for up to a limit, told, and asked for as the actors themselves ask."""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.rllib import fakes
from tests.rllib.online_fakes import run_config
from tests.rllib.test_nodes import placed
from wmrl_ray.rllib import compat, placement
from wmrl_ray.rllib.config import CONFIGS
from wmrl_ray.rllib.failures import ActorLostError, RemoteError
from wmrl_ray.rllib.placement import Room, needs
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.events import Event
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_every_actor_is_asked_for_with_what_it_takes() -> None:
    settings = CONFIGS["own_tdmpc"].from_run(placed())
    runner = ("runner", {"CPU": 1.0, "runner": 1.0})
    evaluation = ("evaluation runner", runner[1])
    assert needs(settings) == [("learner", {"CPU": 1.0, "learner": 1.0}), runner, runner, evaluation]
    settings.learners(num_gpus_per_learner=1)
    assert needs(settings)[0] == ("learner", {"GPU": 1.0, "learner": 1.0})  # RLlib's rule: no CPU beside a GPU


def test_what_does_not_exist_is_not_asked_for(plane_dataset: str) -> None:
    assert needs(CONFIGS["own_tdmpc"].from_run(run_config(num_learners=0, num_eval_runners=0))) == []
    settings = CONFIGS["manager"].from_run(RunConfig(algorithm="manager", dataset=plane_dataset, num_eval_runners=2))
    assert needs(settings) == []  # it does not act, and learns in this process


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(placement, "TELL_AFTER_S", 0.0)


Wait = Callable[..., bool]


@pytest.fixture
def wait(hurried: None, tmp_path: Path) -> Iterator[Wait]:
    told: list[str] = []

    def wait(*asked: tuple[str, dict[str, float]], limit_s: float = 60.0, stops: Callable[[], bool] = lambda: False) -> bool:
        return room.wait(list(asked), limit_s, tmp_path / "run", told.append, stops)

    with Room() as room:
        wait.told, wait.room = told, room  # type: ignore[attr-defined]
        yield wait


def test_where_there_is_room_nobody_is_told_of_a_wait(wait: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "TELL_AFTER_S", 30.0)
    assert wait(("learner", {"CPU": 2.0}), ("runner", {"CPU": 1.0}))
    assert wait.told == []


def test_the_error_after_the_limit_names_what_is_missing_and_how_to_go_on(wait: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RemoteError) as error:
        wait(("learner", {"GPU": 1.0}), ("runner", {"CPU": 5.0}), ("runner", {"CPU": 5.0}), limit_s=1.0)
    assert 1.0 <= time.monotonic() - started < 20.0
    text = str(error.value)
    assert "no room on the cluster after placement_timeout_s = 1 s: needs {CPU: 10, GPU: 1}" in text
    assert "(1 learner of {GPU: 1}, 2 runners of {CPU: 5}), cluster has {CPU: 8, GPU: 0}, {CPU: 2, GPU: 1} too little" in text
    assert f"wmrl train {tmp_path / 'run'} --resume" in text and "\n" not in text
    assert not isinstance(error.value, ActorLostError)  # else the run would be built again
    assert len(wait.told) == 1 and re.match(r"waiting for room on the cluster, 0 of at most 1 s: needs {CPU: 10,", wait.told[0])


def test_a_wait_looks_now_and_then_and_does_not_spin(wait: Any) -> None:
    looks: list[None] = []
    with pytest.raises(RemoteError, match="no room"):
        wait(("learner", {"GPU": 1.0}), limit_s=1.0, stops=lambda: looks.append(None))
    assert len(looks) <= 1.0 / placement.LOOK_EVERY_S + 1


def test_a_stop_that_is_asked_for_ends_the_wait(wait: Any) -> None:
    assert not wait(("learner", {"GPU": 1.0}), stops=lambda: bool(wait.told))


def actor(**options: Any) -> Any:
    methods = {"here": lambda self: True, "hang": lambda self: time.sleep(600)}
    return ray.remote(type("Taker", (), methods)).options(**options).remote()


def starts(taker: Any, within_s: float = 60.0) -> bool:
    return bool(ray.wait([taker.here.remote()], timeout=within_s)[0])


def test_room_that_comes_free_ends_the_wait_and_nobody_takes_it_before_the_actors(wait: Any) -> None:
    holder = actor(num_cpus=8)
    assert starts(holder)
    threading.Timer(1.0, lambda: ray.kill(holder)).start()
    asked = ("learner", {"CPU": 5.0}), ("runner", {"CPU": 3.0})
    assert wait(*asked)
    assert len(wait.told) == 1
    rival = actor(num_cpus=1)
    runner = actor(num_cpus=3, scheduling_strategy=wait.room.strategy("runner", 0))  # which leaves the learner's bundle alone
    learner = actor(num_cpus=5, scheduling_strategy=wait.room.strategy("learner", 0))
    assert starts(runner) and starts(learner) and not starts(rival, 1.0)
    ray.kill(learner)
    assert wait(*asked)  # a session after one in which the learner died: the room is still the run's
    assert not starts(rival, 1.0)
    wait.room.release()
    assert starts(rival)
    ray.kill(rival)


def test_who_does_not_start_in_time_is_ended_and_there_is_room_again(wait: Any) -> None:
    asked, here = ("learner", {"CPU": 8.0}), lambda: actor(num_cpus=8, scheduling_strategy=wait.room.strategy("learner", 0))
    assert wait(asked)
    with pytest.raises(ValueError, match="mine"), wait.room.used(60.0):
        raise ValueError("mine")
    assert starts(hanging := here())
    with pytest.raises(ActorLostError, match="did not start within 1 s"), wait.room.used(1.0):
        ray.get(hanging.hang.remote())
    assert wait(asked) and starts(here())


def test_two_runs_never_take_half_of_what_each_needs(wait: Any, tmp_path: Path) -> None:
    asked = [("runner", {"CPU": 3.0})] * 2  # of 8
    assert wait(*asked)
    with Room() as second:
        told: list[str] = []
        assert not second.wait(asked, 60.0, tmp_path, told.append, lambda: bool(told))
        threading.Timer(0.5, wait.room.release).start()
        assert second.wait(asked, 60.0, tmp_path, told.append, lambda: False)


def test_an_actor_that_takes_nothing_needs_no_room(wait: Any) -> None:
    assert wait(("learner", {"CPU": 1.0}), ("runner", {}))
    assert wait.room.strategy("runner", 0) is None and wait.room.strategy("learner", 0) is not None
    assert Room().strategy("learner", 0) is None


@pytest.mark.slow
def test_every_actor_of_a_run_is_in_its_room(tmp_path: Path) -> None:
    """Learners, runners and those of evaluations, each in its bundle; and a runner that is made again."""
    places: dict[str, Any] = {}
    config = run_config(num_learners=1, num_eval_runners=1, online=OnlineConfig(num_runners=2, num_envs=2, seed_steps=48))
    settings = CONFIGS["own_tdmpc"].from_run(config)
    asked = needs(settings)
    with Room() as room:
        assert room.wait(asked, 60.0, tmp_path, print, lambda: False)
        with room.used(600.0):
            algorithm: Any = compat.build(settings, tmp_path)
        rest = actor(num_cpus=8 - len(asked))
        assert starts(rest)
        algorithm._runners._replace(1)
        assert starts_answering(algorithm)
        for name, actors in {
            "learner": algorithm.learner_group._workers,
            "runner": algorithm._runners.actors,
            "evaluation runner": algorithm.eval_env_runner_group._worker_manager.actors().values(),
        }.items():
            found = [ray.get(each.apply.remote(lambda _: ray.util.get_current_placement_group().id.hex())) for each in actors]
            places |= {f"{name} {i}": place for i, place in enumerate(found)}
        assert len(places) == 4 and set(places.values()) == {room._group.id.hex()}  # type: ignore[union-attr]
        algorithm.stop()
        ray.kill(rest)


def starts_answering(algorithm: Any) -> bool:
    return all(ray.get([each.apply.remote(lambda _: True) for each in algorithm._runners.actors], timeout=60))


@pytest.mark.slow
def test_without_room_a_run_ends_with_one_line_and_its_checkpoint_is_good(
    hurried: None, plane_dataset: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "algorithm": "bc", "dataset": plane_dataset, "env": fakes.PLANE, "num_updates": 8, "batch_size": 8,
        "updates_per_call": 2, "eval_every": 0, "checkpoint_every": 2, "log_every": 2, "device": "cpu", "eval_episodes": 2,
        "num_eval_runners": 0, "envs_per_runner": 2, "placement_timeout_s": 0.5,
    }  # fmt: skip
    stopped = train_on_ray(RunConfig(**settings), tmp_path / "run", should_stop=lambda: True)
    assert (stopped["updates"], stopped["finished"]) == (2, False)
    elsewhere = RunConfig(**{**settings, "num_eval_runners": 1, "runner_resources": {"nowhere": 1.0}})
    with pytest.warns(UserWarning, match="waiting for room"), pytest.raises(RemoteError, match="{nowhere: 1} too little"):
        train_on_ray(elsewhere, tmp_path / "run", resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        waiting = train_on_ray(elsewhere, tmp_path / "run", resume=True, should_stop=lambda: True)
    assert (waiting["updates"], waiting["finished"]) == (2, False)
    assert RunDir(tmp_path / "run").newest_checkpoint() == tmp_path / "run/checkpoints/00000002"
    assert train_on_ray(RunConfig(**settings), tmp_path / "run", resume=True)["finished"]


def test_a_recovery_is_told_before_the_wait_and_the_wait_before_the_building(
    hurried: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    asked = iter([[], [("learner", {"nowhere": 1.0})], []])

    def lose(*arguments: Any) -> Any:
        told.append("build")
        raise ActorLostError("a learner died with its node")

    monkeypatch.setattr(compat, "build", lose)
    monkeypatch.setattr("wmrl_ray.rllib.train.needs", lambda settings: next(asked))
    config = run_config(placement_timeout_s=0.5, online=OnlineConfig(num_envs=2, seed_steps=48, capacity=200))

    def on_event(event: Event) -> None:
        told.append(f"{event.kind}: {event.message}" if event.message else event.kind)

    with pytest.raises(RemoteError, match="no room on the cluster"):
        train_on_ray(config, tmp_path / "run", on_event=on_event)
    assert told[:2] == ["build", "start"]
    assert told[2] == "recovery: a learner died with its node; rebuilding from the start, before the first checkpoint"
    assert told[3].startswith("warning: waiting for room on the cluster") and len(told) == 4
