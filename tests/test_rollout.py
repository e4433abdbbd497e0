"""Evaluation: exact counts, own seeds per episode, batched acting, nothing left changed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.fakes import FakeAgent, constant
from wmrl_ray.config import ConfigError
from wmrl_ray.envs import maze_layout
from wmrl_ray.rollout import Evaluation, env_dims, evaluate

POINT = "wmrl/PointMaze-UMaze-v0"


class Countdown(gym.Env):
    """An episode of a length drawn at reset; the observation is (the steps left, the length), the reward 1 per step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    reports_success = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(1, 12))
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        info = {"success": self.left == 1} if self.reports_success else {}
        return self._obs(), 1.0, self.left == 0 and self.length % 2 == 0, self.left == 0 and self.length % 2 == 1, info

    def _obs(self) -> np.ndarray:
        return np.array([self.left, self.length], np.float32)


class Silent(Countdown):
    reports_success = False


class Passing(gym.Env):
    """Six steps; a success at the third, and in every second episode at the last."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps, self.count = 0, self.count + 1
        return np.zeros(1, np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        success = self.steps == 3 or (self.steps == 6 and self.count % 2 == 0)
        return np.zeros(1, np.float32), 0.0, False, self.steps == 6, {"success": success}


class PassingAtEnd(Passing):
    success_at_end = True


gym.register("Passing-v0", entry_point=Passing, max_episode_steps=12)
gym.register("PassingAtEnd-v0", entry_point=PassingAtEnd, max_episode_steps=12)
gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=12)
gym.register("Silent-v0", entry_point=Silent, max_episode_steps=12)


def lengths_of_seed(num_episodes: int, num_envs: int, seed: int = 0) -> list[int]:
    return evaluate(FakeAgent(constant(0.0)), "Countdown-v0", num_episodes, num_envs=num_envs, seed=seed).lengths


def same(a: Evaluation, b: Evaluation) -> bool:
    return all(
        np.array_equal(x.obs, y.obs) and np.array_equal(x.action, y.action) for x, y in zip(a.episodes, b.episodes, strict=True)
    )


def test_every_episode_counts_once_whatever_its_length_and_the_number_of_environments() -> None:
    one_by_one = lengths_of_seed(25, 1)
    assert len(one_by_one) == 25
    assert len(set(one_by_one)) > 5
    for num_envs in (2, 7, 25, 40):
        assert lengths_of_seed(25, num_envs) == one_by_one


def test_episode_k_has_the_same_seed_in_a_longer_evaluation_and_another_seed_has_others() -> None:
    assert lengths_of_seed(30, 4)[:10] == lengths_of_seed(10, 4)
    assert lengths_of_seed(30, 4, seed=1) != lengths_of_seed(30, 4)


def test_an_episode_holds_what_happened() -> None:
    evaluation = evaluate(FakeAgent(lambda obs: obs[:, :1] / 100), "Countdown-v0", 12, num_envs=5)
    for k, episode in enumerate(evaluation.episodes):
        steps = len(episode.action)
        np.testing.assert_array_equal(episode.obs[:, 0], np.arange(steps, -1, -1))
        np.testing.assert_allclose(episode.action[:, 0], episode.obs[:-1, 0] / 100, rtol=1e-6)
        assert (evaluation.lengths[k], evaluation.returns[k]) == (steps, float(steps))
        assert episode.terminated == (steps % 2 == 0)
        assert evaluation.successes[k] == (steps > 1)
        assert (episode.obs.dtype, episode.action.dtype, episode.reward.dtype) == (np.float32,) * 3
        episode.validate()


def test_is_first_marks_exactly_the_first_step_of_an_episode() -> None:
    agent = FakeAgent(constant(0.0))
    evaluate(agent, "Countdown-v0", 20, num_envs=4)
    assert all(len(obs) == 4 for obs, _, _ in agent.calls)
    marked = sum(int(is_first.sum()) for _, is_first, _ in agent.calls)
    assert marked == 20
    for obs, is_first, _ in agent.calls:
        assert torch.equal(obs[is_first][:, 0], obs[is_first][:, 1])  # all steps are left


def test_the_plan_state_comes_back_to_the_agent() -> None:
    agent = FakeAgent(constant(0.0))
    evaluate(agent, "Countdown-v0", 9, num_envs=3)
    assert agent.calls[0][2] is None
    for (obs, is_first, _), (_, _, state) in zip(agent.calls, agent.calls[1:], strict=False):
        age = obs[:, 1] - obs[:, 0]
        running = obs[:, 0] > 0
        assert state is not None
        torch.testing.assert_close(state[running], age[running])
        assert bool((state[is_first] == 0).all())


def test_the_agents_reports_are_averaged_over_steps() -> None:
    agent = FakeAgent(constant(0.0))
    evaluation = evaluate(agent, "Countdown-v0", 1)
    steps = evaluation.lengths[0]
    assert evaluation.act_metrics == {"plan/age_mean": pytest.approx((steps - 1) / 2)}


def test_a_seed_fixes_the_agents_noise_and_its_stream_goes_on_as_before() -> None:
    agent = FakeAgent(constant(0.1, -0.1), noise=0.5)
    before = agent.act_generator.get_state()
    first = evaluate(agent, POINT, 3, num_envs=2, seed=4)
    assert torch.equal(agent.act_generator.get_state(), before)
    torch.randn(5, generator=agent.act_generator)
    assert same(first, evaluate(agent, POINT, 3, num_envs=2, seed=4))
    assert not same(first, evaluate(agent, POINT, 3, num_envs=2, seed=5))


def test_a_good_law_reaches_the_goal_and_standing_still_elsewhere_does_not() -> None:
    goal = torch.tensor(maze_layout(POINT).goal)
    servo = evaluate(FakeAgent(lambda obs: (10 * (goal - obs[:, :2]) - obs[:, 2:]).clamp(-1, 1)), POINT, 12, num_envs=6)
    still = evaluate(FakeAgent(constant(0.0, 0.0)), POINT, 12, num_envs=6)
    assert sum(servo.returns) > sum(still.returns)
    assert sum(servo.successes) > sum(still.successes)
    assert servo.lengths == [300] * 12
    assert not any(episode.terminated for episode in servo.episodes)


def test_without_recording_only_the_numbers_are_kept() -> None:
    evaluation = evaluate(FakeAgent(constant(0.0)), "Countdown-v0", 5, record=False)
    assert evaluation.episodes == []
    assert evaluation.lengths == lengths_of_seed(5, 2)


def test_an_environment_without_success_says_so() -> None:
    assert evaluate(FakeAgent(constant(0.0)), "Countdown-v0", 3).reports_success
    silent = evaluate(FakeAgent(constant(0.0)), "Silent-v0", 3)
    assert (silent.reports_success, silent.successes) == (False, [False] * 3)


@pytest.mark.parametrize("env_config", [{}, {"p_tremble": 0.5}, {"action_repeat": 2}])
@pytest.mark.parametrize(("env_id", "expected"), [("Passing-v0", [True] * 4), ("PassingAtEnd-v0", [False, True] * 2)])
def test_the_environment_says_whether_its_last_step_or_any_counts_as_success(
    env_id: str, expected: list[bool], env_config: dict[str, Any]
) -> None:
    assert evaluate(FakeAgent(constant(0.0)), env_id, 4, env_config=env_config, num_envs=1).successes == expected


def test_an_action_that_is_not_finite_names_the_episode_and_step() -> None:
    agent = FakeAgent(lambda obs: torch.where(obs[:, :1] == 1, torch.nan, torch.zeros(len(obs), 1)))
    with pytest.raises(FloatingPointError, match=r"not finite in episode \d+, step \d+"):
        evaluate(agent, "Countdown-v0", 8, num_envs=3)


@pytest.mark.parametrize("kwargs", [{"num_episodes": 0}, {"num_episodes": 1, "num_envs": 0}])
def test_a_count_below_one_is_refused(kwargs: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="= 0; at least 1 is needed"):
        evaluate(FakeAgent(constant(0.0)), POINT, **kwargs)


@pytest.mark.needs_gl
def test_frames_show_the_whole_first_episode_and_change_nothing_else() -> None:
    agent = FakeAgent(constant(0.3, 0.3))
    filmed = evaluate(agent, POINT, 2, num_envs=2, frames=True)
    assert filmed.frames is not None
    assert filmed.frames.shape[0] == 301
    assert filmed.frames.shape[-1] == 3
    assert filmed.frames.dtype == np.uint8
    assert not np.array_equal(filmed.frames[0], filmed.frames[20])
    assert same(filmed, evaluate(agent, POINT, 2, num_envs=2))


@pytest.mark.needs_gl
def test_any_mujoco_environment_can_be_filmed() -> None:
    agent = FakeAgent(constant(*[0.1] * 6))
    filmed = evaluate(agent, "HalfCheetah-v5", 1, frames=True)
    assert filmed.frames is not None
    assert len(filmed.frames) == 1001
    assert not np.array_equal(filmed.frames[0], filmed.frames[50])


@pytest.mark.needs_gl
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_dmcontrol_can_be_filmed_from_states_and_from_pixels(obs: str) -> None:
    pytest.importorskip("dm_control")
    agent = FakeAgent(constant(*[0.1] * 6))
    filmed = evaluate(agent, "dmc/walker-walk", 1, env_config={"max_episode_steps": 12, "obs": obs}, frames=True)
    assert filmed.frames is not None and filmed.frames.shape == (13, 256, 256, 3)
    assert not np.array_equal(filmed.frames[0], filmed.frames[12])
    assert filmed.lengths == [12] and not filmed.reports_success
    assert filmed.episodes[0].obs.shape == {"state": (13, 24), "pixels": (13, 9, 64, 64)}[obs]
    assert filmed.episodes[0].obs.dtype == {"state": np.float32, "pixels": np.uint8}[obs]


def test_the_sizes_of_an_environment() -> None:
    assert env_dims(POINT) == (4, 2)
    assert env_dims("Pendulum-v1") == (3, 1)
