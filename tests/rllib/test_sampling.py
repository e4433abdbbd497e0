"""What becomes of runners that die, without Ray; and acting on images."""

from __future__ import annotations

import concurrent.futures
import math
import time
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError
from ray.rllib.core.columns import Columns

from tests.rllib import fakes
from tests.rllib.online_fakes import OwnImagesConfig, OwnTDMPCConfig
from wmrl_ray.collect import Collector, Statistics
from wmrl_ray.rllib import sampling
from wmrl_ray.rllib.callbacks import read_episode
from wmrl_ray.rllib.env_runner import PlannerEnvRunner
from wmrl_ray.rllib.failures import Failure, RemoteError
from wmrl_ray.rllib.module import IS_FIRST, LAST_REWARD, AgentModule
from wmrl_ray.rllib.sampling import Answer, Order, Runners

SOON = math.inf  # by the clock of deadlines: what has ended is not waited for


class CountedRunners(Runners):
    """Runners that are numbers: how many were made so far."""

    made = 0

    def __post_init__(self) -> None:
        self.deaths = [0] * self.num_runners
        self.actors = [self._make(runner) for runner in range(self.num_runners)]

    def _make(self, runner: int) -> int:
        self.made += 1
        return self.made


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> CountedRunners:
    killed: list[Any] = []
    monkeypatch.setattr(sampling.ray, "kill", killed.append)
    runners = CountedRunners(OwnTDMPCConfig(), {}, 2)
    runners.killed = killed  # type: ignore[attr-defined]
    return runners


def ended(result: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)
    return future


def test_a_dead_runner_is_replaced_and_the_other_left_alone(runners: CountedRunners) -> None:
    answer = Answer([], Statistics())
    assert runners.answer(1, ended(ActorDiedError()), SOON) is None
    assert runners.actors == [1, 3]
    assert runners.killed == [2]  # type: ignore[attr-defined]
    assert runners.answer(0, ended(answer), SOON) is answer


def test_one_that_dies_again_and_again_without_an_answer_stops_the_run(runners: CountedRunners) -> None:
    for _ in range(2):
        assert runners.answer(0, ended(ActorDiedError()), SOON) is None
    assert runners.answer(0, ended(Answer([], Statistics())), SOON) is not None  # an answer starts the count anew
    for _ in range(2):
        assert runners.answer(0, ended(ActorDiedError()), SOON) is None
    with pytest.raises(RemoteError, match="runner 0 died 3 times in a row without an answer"):
        runners.answer(0, ended(ActorDiedError()), SOON)


def test_one_that_failed_is_not_replaced_but_raises_with_its_traceback(runners: CountedRunners) -> None:
    with pytest.raises(RemoteError, match="runner failed: ValueError: boom\n\nOn the runner:\nTraceback of it"):
        runners.answer(0, ended(Failure("ValueError", "boom", "Traceback of it")), SOON)
    assert runners.actors == [1, 2]


def test_the_module_acts_on_images_and_their_episodes_stay_bytes() -> None:
    spaces = gym.spaces.Box(0, 255, (3, 4, 4), np.uint8), gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    settings = {"algorithm": OwnImagesConfig.agent_name, "agent": {}, "device": "cpu"}
    module = AgentModule(observation_space=spaces[0], action_space=spaces[1], inference_only=True, model_config=settings)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    batch = {Columns.OBS: images, IS_FIRST: torch.ones(5), LAST_REWARD: torch.zeros(5)}
    action = module._forward_inference(batch)[Columns.ACTIONS]
    with torch.no_grad():
        expected = module.agent.model(images.float().mean((-2, -1)) / 255).clamp(-1, 1)
    assert torch.equal(action, expected)

    class Chunk:
        is_terminated = True

        def __len__(self) -> int:
            return 2

        def get_observations(self) -> list[np.ndarray]:
            return list(images[:3].numpy())

        def get_actions(self) -> list[np.ndarray]:
            return [np.zeros(2, np.float64)] * 2

        def get_rewards(self) -> list[float]:
            return [0.0, 1.0]

        def get_infos(self) -> list[dict[str, Any]]:
            return infos

    infos: list[dict[str, Any]] = [{}] * 3
    episode = read_episode([Chunk()]).episode
    assert episode.obs.dtype == np.uint8
    assert episode.action.dtype == np.float32
    # a reset that reports success is no step, here and without Ray
    for said, success in (([1, 0, 0], False), ([0, 1, 0], True), ([1], None)):
        infos = [*({"success": bool(value)} for value in said), {}, {}][:3]
        assert read_episode([Chunk()]).success is success


def test_ray_killing_a_runner_for_memory_is_a_death_too(runners: CountedRunners, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runners.answer(1, ended(OutOfMemoryError("killed by the memory monitor")), SOON) is None
    assert runners.actors == [1, 3]
    states: list[Any] = [OutOfMemoryError("again"), None]

    class Asked:
        def remote(self, session: int) -> Any:
            assert session == 7
            return states.pop(0)

    class Actor:
        get_collector_state = Asked()

    def get(state: Any, timeout: float) -> Any:
        if isinstance(state, Exception):
            raise state
        return state

    runners.actors = [Actor(), Actor()]
    monkeypatch.setattr(sampling.ray, "get", get)
    assert runners.collector_states(7) == ([None, None], [0])  # one died, the other had not collected yet


def test_all_that_hang_are_waited_for_once(runners: CountedRunners, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runners that do not answer cost one limit, not four."""
    runners.config.call_timeout_s = 0.4
    runners.started = {0, 1}
    started, deadline = time.monotonic(), runners.deadline(0)
    for runner in (0, 1):
        assert runners.answer(runner, concurrent.futures.Future(), deadline) is None
    waited: list[float] = []

    def hang(reference: Any, timeout: float) -> Any:
        waited.append(timeout)
        time.sleep(timeout)
        raise GetTimeoutError

    actor = SimpleNamespace(get_collector_state=SimpleNamespace(remote=lambda session: None))
    runners.actors = [actor, actor]
    runners.deaths, runners.started = [0, 0], {0, 1}
    monkeypatch.setattr(sampling.ray, "get", hang)
    assert runners.collector_states("s") == ([None, None], [0, 1])
    assert 0.8 <= time.monotonic() - started < 1.2 and waited[1] < 0.05


def test_an_actor_that_may_still_be_starting_has_more_time(runners: CountedRunners, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STARTING_S", 1000.0)
    runners.config.call_timeout_s = 10.0

    def left_s() -> list[float]:
        return [round(runners.deadline(runner) - time.monotonic(), -1) for runner in (0, 1)]

    assert left_s() == [1010, 1010]
    assert runners.answer(0, ended(Answer([], Statistics())), SOON) is not None
    assert left_s() == [10, 1010]
    assert runners.answer(0, ended(ActorDiedError()), SOON) is None
    assert left_s() == [1010, 1010]  # the one in its place is another


def test_an_order_ends_with_an_episode_so_that_it_cannot_die_with_its_runner() -> None:
    runner = PlannerEnvRunner.__new__(PlannerEnvRunner)
    runner._collector, runner._session, runner._answered = Collector(fakes.PLANE, num_envs=2), 1, None
    order = Order(1000, session=1, seed=(0,), weights=None)
    for _ in range(3):
        answer, episodes = runner.collect(order)
        assert isinstance(answer, Answer)
        assert 1 <= len(episodes) <= 2 and answer.lengths == [len(episode) for episode in episodes]
        assert answer.statistics.steps <= 2 * max(answer.lengths)


def test_a_runner_has_no_collector_of_a_session_in_which_it_was_not_asked() -> None:
    runner = PlannerEnvRunner.__new__(PlannerEnvRunner)
    runner._collector, runner._session = None, 0
    assert runner.get_collector_state(1) is None
    runner._collector, runner._session = Collector(fakes.PLANE), 1
    assert runner.get_collector_state(2) is None
    assert runner.get_collector_state(1)["num_steps"] == 0
