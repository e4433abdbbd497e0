"""A run whose actors die: built again from its newest checkpoint, with the result of a run in which none did."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, OwnerDiedError

from tests.rllib import fakes
from tests.test_trackers import read_tensorboard
from wmrl_ray.data.episode import Episode
from wmrl_ray.data.replay import DemonstrationReplay, Replay
from wmrl_ray.rllib import compat, failures
from wmrl_ray.rllib.algorithm import AgentAlgorithm
from wmrl_ray.rllib.evaluation import RunningEvaluation
from wmrl_ray.rllib.failures import (
    ActorLostError,
    CollectiveError,
    Failure,
    RemoteError,
    as_lost,
    collective,
    gather,
    guarded,
    unwrap,
)
from wmrl_ray.rllib.online_learner import OnlineLearner
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event
from wmrl_ray.run.folder import RunDir
from wmrl_ray.trackers import Trackers
from wmrl_ray.train import train


def broken_off() -> Exception:
    """What a rank raises whose peer has gone."""
    with pytest.raises(CollectiveError) as caught, collective():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
    return caught.value


def test_a_rank_without_memory_has_a_failure_of_its_own() -> None:
    with pytest.raises(torch.OutOfMemoryError), collective():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_death_is_told_from_an_error_and_the_error_counts_more() -> None:
    def failure(error: Exception) -> Failure:
        def fail() -> None:
            raise error

        return guarded(fail)()

    gone = ObjectLostError("0" * 56, "", ""), OwnerDiedError("0" * 56, "", "")
    died, own = ActorDiedError(), failure(ValueError("NCCL and gloo: Connection closed by peer"))  # its words do not count
    left, nccl = failure(broken_off()), failure(torch.distributed.DistBackendError("remote process exited"))
    for values in ([died, left], [left, died], [left], [nccl], [failure(gone[1]), left], [failure(gone[0])]):
        with pytest.raises(ActorLostError):
            unwrap(values, "learner", 2)
    for values in ([died, own], [left, own], [nccl, own], [own, failure(gone[0])]):
        with pytest.raises(RemoteError, match="ValueError") as caught:
            unwrap(values, "learner", 2)
        assert not isinstance(caught.value, ActorLostError)
    with pytest.raises(ActorLostError, match="1 of 2 learners died"):
        unwrap([1], "learner", 2)
    with pytest.raises(ActorLostError, match="1 of 2 learners did not answer within call_timeout_s = 5 s"):
        unwrap([1], "learner", 2, 5.0)


def test_a_death_is_found_behind_what_ray_makes_of_it() -> None:
    behind = RuntimeError("the group could not start")
    behind.__cause__ = OwnerDiedError("0" * 56, "", "")
    assert isinstance(as_lost(behind, "building"), ActorLostError)
    assert isinstance(as_lost(ObjectLostError("0" * 56, "", ""), "building"), ActorLostError)
    assert as_lost(ValueError("mine"), "building") is None


def test_an_error_in_rllibs_handler_of_a_death_is_a_death_and_ours_is_final() -> None:
    def handled(error: Exception) -> Exception:
        error.__context__ = ActorDiedError()  # as in `except ActorDiedError: raise error`
        return error

    assert isinstance(as_lost(handled(TypeError("exceptions must derive from BaseException")), "building"), ActorLostError)
    assert as_lost(handled(RemoteError("runner 0 died 3 times in a row")), "building") is None


@pytest.mark.parametrize(("error", "is_lost"), [(ActorDiedError(), True), (TypeError("RLlib's own"), False)])
def test_what_ends_an_evaluation_is_a_loss_only_where_a_runner_is_gone(error: Exception, is_lost: bool) -> None:
    def fetch(**kwargs: Any) -> Any:
        raise error

    group: Any = SimpleNamespace(
        healthy_worker_ids=lambda: [1],
        num_remote_env_runners=lambda: 1,
        foreach_env_runner_async=lambda *args, **kwargs: 1,
        fetch_ready_async_reqs=fetch,
    )
    running = RunningEvaluation(group, {}, 2, seed=0, num_updates=0, timeout_s=60.0)
    with pytest.raises(RemoteError, match="evaluation runner") as caught:
        running.poll(None)
    assert isinstance(caught.value, ActorLostError) == is_lost


@pytest.mark.parametrize("imitates", [False, True])
def test_lost_episodes_end_a_call_only_if_nothing_else_can_be_learned_from(imitates: bool) -> None:
    """The demonstrations of an imitator are no episodes of its own."""
    episode = Episode(np.zeros((5, 2), np.float32), np.zeros((4, 1), np.float32), np.zeros(4, np.float32), terminated=False)
    own = Replay(obs_dim=2, action_dim=1)
    replay: Any = own
    if imitates:
        demonstrations = Replay(obs_dim=2, action_dim=1)
        demonstrations.add(episode)
        replay = DemonstrationReplay(demonstrations, own)
    learner: Any = SimpleNamespace(replay=replay, agent=SimpleNamespace(config=SimpleNamespace(window=3)))
    lost = ObjectLostError("0" * 56, "", "")
    with pytest.raises(ObjectLostError):
        OnlineLearner._check_going_on(learner, lost)
    own.add(episode)
    OnlineLearner._check_going_on(learner, lost)
    assert replay.num_online_steps == 4


pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


class Rank:
    """Two that work together: one waits for the other without end, as in a collective call whose peer is stopped."""

    def work(self, how: str) -> Any:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "wait":
            time.sleep(600)
        return guarded(lambda: 1 / 0)() if how == "fail" else how


@pytest.mark.parametrize(
    ("how", "error", "text", "within_s"),
    [
        (["wait", "die"], ActorLostError, "learner died", 5.0),
        (["wait", "fail"], RemoteError, "ZeroDivisionError", 5.0),
        (["wait", "done"], ActorLostError, "1 of 2 learners did not answer within call_timeout_s = 1 s", 3.0),
        (["wait", "wait"], ActorLostError, "2 of 2 learners did not answer within call_timeout_s = 1 s", 3.0),
    ],
)
def test_the_others_are_not_waited_for(
    how: list[str], error: type[Exception], text: str, within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "REASON_S", 0.5)
    ranks = [ray.remote(num_cpus=0)(Rank).remote() for _ in how]
    assert ray.get([rank.work.remote("here") for rank in ranks]) == ["here", "here"]
    started = time.monotonic()
    with pytest.raises(error, match=text):
        gather(
            [rank.work.remote(each) for rank, each in zip(ranks, how, strict=True)], "learner", 1.0 if within_s < 5 else 60.0
        )
    assert time.monotonic() - started < within_s
    for rank in ranks:
        ray.kill(rank)


@pytest.fixture
def config(plane_dataset: str) -> RunConfig:
    return RunConfig(
        algorithm="bc", dataset=plane_dataset, env=fakes.PLANE, num_updates=24, batch_size=8, updates_per_call=2, eval_every=12,
        eval_episodes=4, checkpoint_every=8, log_every=4, device="cpu", num_learners=1, num_eval_runners=1, envs_per_runner=2,
        seed=5,
    )  # fmt: skip


def learned(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(("time", "online/policy", "online/queue"))} for line in lines]
    return sorted(kept, key=lambda line: (line["update"], sorted(line)))


def learner_pids(algorithm: AgentAlgorithm) -> list[int]:
    return algorithm.on_learners(lambda learner: os.getpid())


class Saboteur:
    """Does `harm(algorithm)` when training reaches each of `updates` for the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, updates: list[int], harm: Callable[[AgentAlgorithm], None]) -> None:
        self.left, self.harm, original = list(updates), harm, AgentAlgorithm.step

        def step(algorithm: AgentAlgorithm) -> Any:
            if self.left and algorithm.num_updates >= self.left[0]:
                self.left.pop(0)
                self.harm(algorithm)
            return original(algorithm)

        monkeypatch.setattr(AgentAlgorithm, "step", step)


def kill_learner(rank: int) -> Callable[[AgentAlgorithm], None]:
    return lambda algorithm: os.kill(learner_pids(algorithm)[rank], signal.SIGKILL)


def test_a_learner_that_dies_changes_nothing_in_the_result(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, num_eval_runners=0)
    whole = train(dataclasses.replace(config, num_learners=0), tmp_path / "whole")
    Saboteur(monkeypatch, [6, 18], kill_learner(0))  # before the first checkpoint, and after the second
    events: list[Event] = []
    result = train_on_ray(config, tmp_path / "hurt", on_event=events.append)
    assert learned(tmp_path / "hurt") == learned(tmp_path / "whole")
    assert {**result, "seconds": 0} == {**whole, "seconds": 0}
    recoveries = [event for event in events if event.kind == "recovery"]
    assert [event.update for event in recoveries] == [0, 16]
    assert all("died" in event.message for event in recoveries)
    assert "; rebuilding from the start" in recoveries[0].message and recoveries[1].message.endswith(
        "; rebuilding from checkpoint 16"
    )
    assert [event.kind for event in events].count("start") == 1


@pytest.mark.slow
def test_the_second_of_two_learners_that_dies_changes_nothing_either(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, num_learners=2, num_eval_runners=0)
    train_on_ray(config, tmp_path / "whole")
    Saboteur(monkeypatch, [18], kill_learner(1))
    events: list[Event] = []
    train_on_ray(config, tmp_path / "hurt", on_event=events.append)
    assert learned(tmp_path / "hurt") == learned(tmp_path / "whole")
    assert [event.update for event in events if event.kind == "recovery"] == [16]


@pytest.mark.slow
def test_an_evaluation_runner_that_dies_does_not_end_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_runner(algorithm: AgentAlgorithm) -> None:
        (pid,) = algorithm.eval_env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
        os.kill(pid, signal.SIGKILL)

    train_on_ray(config, tmp_path / "whole")
    Saboteur(monkeypatch, [10], kill_runner)
    events: list[Event] = []
    train_on_ray(config, tmp_path / "hurt", on_event=events.append)
    assert learned(tmp_path / "hurt") == learned(tmp_path / "whole")
    assert [event.update for event in events if event.kind == "recovery"] == [8]


@pytest.mark.slow
def test_deaths_without_progress_end_the_run_and_its_checkpoint_stays(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, max_failures=1, eval_every=0)
    Saboteur(monkeypatch, [10, 12], kill_learner(0))
    with pytest.raises(RemoteError, match="failure 2 without a new checkpoint, max_failures = 1"):
        train_on_ray(config, tmp_path / "run")
    newest = RunDir(tmp_path / "run").newest_checkpoint()
    assert newest is not None and newest.name == "00000008"
    assert train_on_ray(config, tmp_path / "run", resume=True)["finished"]
    train(dataclasses.replace(config, num_learners=0), tmp_path / "plain")
    losses = [[{k: v for k, v in line.items() if "eval" not in k} for line in learned(tmp_path / n)] for n in ("run", "plain")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_an_error_of_a_learners_own_still_ends_the_run_with_its_traceback(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(algorithm: AgentAlgorithm) -> None:
        def fail(learner: Any) -> None:
            raise ValueError("mine")

        algorithm.on_learners(fail)

    Saboteur(monkeypatch, [10], break_it)
    events: list[Event] = []
    with pytest.raises(RemoteError, match="ValueError: mine"):
        train_on_ray(config, tmp_path / "run", on_event=events.append)
    assert "recovery" not in [event.kind for event in events]


def test_a_run_whose_first_session_is_lost_while_it_is_built_has_a_start(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, built = compat.build, []

    def lose_the_first(*arguments: Any) -> Any:
        built.append(arguments)
        if len(built) == 1:
            raise ActorLostError("a learner died")
        return build(*arguments)

    monkeypatch.setattr(compat, "build", lose_the_first)
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        trackers.on_event(event)

    with Trackers.open(config, tmp_path / "run") as trackers:
        train_on_ray(config, tmp_path / "run", on_event=tell)
    assert [event.kind for event in events[:2]] == ["start", "recovery"] and events[-1].kind == "end"
    assert read_tensorboard(tmp_path / "run/tensorboard")
