"""What can be put around any environment: repeated actions, a trembling hand, episodes of one length."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import tests.fakes  # noqa: F401 - registers Drift-v0
from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env, make_vector_env
from wmrl_ray.envs.door import is_pixels
from wmrl_ray.envs.wrappers import ActionRepeat, FixedLength, TremblingHand, succeeds_at_end
from wmrl_ray.rollout import step_limit


class Counter(gym.Env):
    """Earns 1, 2, 3, ...; succeeds at `success`, terminates at `end`. Remembers the actions that reached it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, end: int = 5, success: int = 3):
        self.end, self.success, self.count, self.actions = end, success, 0, []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        obs = np.array([self.count], np.float32)
        return obs, float(self.count), self.count == self.end, False, {"success": self.count == self.success}


ACTION = np.array([0.5, -0.5], np.float32)


def test_a_repeated_action_earns_the_sum_and_stops_at_the_end() -> None:
    env = ActionRepeat(Counter(end=5, success=3), 2)
    env.reset()
    results = [env.step(ACTION) for _ in range(3)]
    assert [(obs[0], reward, terminated, info["success"]) for obs, reward, terminated, _, info in results] == [
        (2, 1 + 2, False, False),
        (4, 3 + 4, False, True),
        (5, 5, True, False),
    ]


def test_where_the_end_counts_a_repeated_actions_success_is_its_last_steps() -> None:
    env = Counter(end=4, success=3)
    env.success_at_end = True  # type: ignore[attr-defined]
    repeated = ActionRepeat(env, 2)
    repeated.reset()
    assert succeeds_at_end(repeated) and not succeeds_at_end(Counter())
    assert [repeated.step(ACTION)[4]["success"] for _ in range(2)] == [False, False]


@pytest.mark.parametrize(("repeat", "limit"), [(1, 20), (2, 10), (3, 7)])
def test_the_step_limit_counts_steps_of_repeated_actions(repeat: int, limit: int) -> None:
    assert step_limit("Drift-v0", {"action_repeat": repeat}) == limit
    env, length = make_env("Drift-v0", action_repeat=repeat), 0
    env.reset(seed=0)
    env.unwrapped.step = lambda action: (env.unwrapped.obs(), 0.0, False, False, {})  # type: ignore[attr-defined, method-assign]
    while not env.step(ACTION)[3]:
        length += 1
    assert length + 1 == limit
    assert step_limit("Drift-v0", {"action_repeat": repeat, "max_episode_steps": 9}) == 9
    assert step_limit("Drift-v0", {"action_repeat": repeat, "fixed_length": 8}) == 8


def test_a_fixed_length_goes_on_behind_the_end() -> None:
    env = FixedLength(Counter(end=2), 4)
    for _ in range(2):
        env.reset()
        results = [env.step(ACTION) for _ in range(4)]
        assert [(obs[0], terminated, truncated) for obs, _, terminated, truncated, _ in results] == [
            (1, False, False),
            (2, False, False),
            (3, False, False),
            (4, False, True),
        ]


def test_an_action_is_repeated_behind_the_end_of_a_fixed_length_too() -> None:
    """A repeated action stops where an episode ends, and an episode of a fixed length has not ended."""
    env = make_env("Hopper-v5", action_repeat=2, fixed_length=40)
    env.reset(seed=0)
    times = [env.unwrapped.data.time for _ in range(40) if env.step(np.ones(3, np.float32))]  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.diff(times), 2 * env.unwrapped.dt, rtol=1e-6)  # type: ignore[attr-defined]


def test_a_trembling_hand_replaces_that_share_of_actions_with_uniform_ones() -> None:
    inner = Counter(end=-1)
    env = TremblingHand(inner, 0.3)
    env.reset(seed=0)
    for _ in range(4000):
        env.step(ACTION)
    replaced = np.array([action for action in inner.actions if not np.array_equal(action, ACTION)])
    assert len(replaced) / 4000 == pytest.approx(0.3, abs=0.03)
    assert replaced.dtype == np.float32 and np.abs(replaced).max() <= 1.0
    np.testing.assert_allclose(replaced.mean(0), 0.0, atol=0.08)
    np.testing.assert_allclose(replaced.var(0), 1 / 3, atol=0.04)  # U(-1, 1)
    assert abs(np.corrcoef(replaced.T)[0, 1]) < 0.1


@pytest.mark.parametrize(("p_tremble", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always(p_tremble: float, share: float) -> None:
    inner = Counter(end=-1)
    env = TremblingHand(inner, p_tremble)
    env.reset(seed=0)
    for _ in range(50):
        env.step(ACTION)
    assert np.mean([not np.array_equal(action, ACTION) for action in inner.actions]) == share


def test_the_tremble_starts_from_the_seed_and_leaves_the_environments_stream_alone() -> None:
    def executed(seed: int) -> np.ndarray:
        inner = Counter(end=-1)
        env = TremblingHand(inner, 0.5)
        env.reset(seed=seed)
        for _ in range(20):
            env.step(ACTION)
        return np.array(inner.actions)

    np.testing.assert_array_equal(executed(1), executed(1))
    assert not np.array_equal(executed(1), executed(2))
    starts = [make_env("Pendulum-v1", p_tremble=p).reset(seed=3)[0] for p in (0.0, 0.5)]
    np.testing.assert_array_equal(*starts)


def test_the_door_takes_them_for_any_environment() -> None:
    env = make_env("Hopper-v5", action_repeat=2, fixed_length=40, p_tremble=0.5)
    env.reset(seed=0)
    ends = [env.step(np.ones(3, np.float32))[2:4] for _ in range(40)]
    assert ends == [(False, False)] * 39 + [(False, True)]  # though this hopper falls, and its limit is 1000 steps
    short = make_env("Hopper-v5")
    short.reset(seed=0)
    assert any(short.step(np.ones(3, np.float32))[2] for _ in range(80))


def test_a_fixed_length_longer_than_the_environments_limit_is_reached() -> None:
    env = make_env("Pendulum-v1", fixed_length=450, action_repeat=2)  # its own limit is 200
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(450)] == [False] * 449 + [True]


def test_the_limit_counts_steps_of_repeated_actions() -> None:
    env = make_env("Pendulum-v1", max_episode_steps=7, action_repeat=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(7)] == [False] * 6 + [True]


def test_repeating_outside_is_repeating_inside() -> None:
    """Families repeat actions themselves: the rewards are those of the wrapper."""
    ours, wrapped = make_env("dmc/cheetah-run", action_repeat=3), ActionRepeat(make_env("dmc/cheetah-run", action_repeat=1), 3)
    ours.reset(seed=2)
    wrapped.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        (a, reward_a, *_), (b, reward_b, *_) = ours.step(action), wrapped.step(action)
        np.testing.assert_array_equal(a, b)
        assert reward_a == reward_b


def test_they_are_below_the_intents_and_in_every_row() -> None:
    env = make_env("random-intents:3:Pendulum-v1", fixed_length=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(2)] == [False, True]
    envs = make_vector_env("random-intents:3:Pendulum-v1", 2, fixed_length=2, p_tremble=0.1)
    obs, _ = envs.reset(seed=0)
    assert obs.shape == (2, 6)
    assert [envs.step(np.zeros((2, 1), np.float32))[3].all() for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p_tremble": 1.5}, "p_tremble = 1.5; a probability is needed"),
        ({"fixed_length": 0}, "fixed_length = 0; a whole number, at least 1"),
        ({"fixed_length": "9"}, "fixed_length = '9'; a whole number, at least 1"),
        ({"p_tremble": "often"}, "p_tremble = 'often'; a probability is needed"),
        ({"action_repeat": 1.5}, "action_repeat = 1.5; a whole number, at least 1"),
        ({"action_repeat": 0}, "action_repeat = 0; a whole number, at least 1"),
        ({"fixed_length": 5, "max_episode_steps": 6}, "give fixed_length or max_episode_steps, not both"),
    ],
)
def test_a_value_that_cannot_be_gets_one_line(kwargs: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("Pendulum-v1", **kwargs)


def test_pixels_are_uint8_with_the_channels_first() -> None:
    def space(shape: tuple[int, ...], dtype: type = np.uint8) -> gym.Space:
        return gym.spaces.Box(0, 255, shape, dtype)

    assert is_pixels(space((9, 64, 64))) and is_pixels(space((3, 84, 96)))
    assert not any(
        map(is_pixels, (space((64, 64, 3)), space((9, 64, 64), np.float32), space((64, 64)), gym.spaces.Discrete(2)))
    )
