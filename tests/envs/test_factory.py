"""One door for every environment: one interface behind it, one clear line when it stays shut."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env, make_vector_env
from wmrl_ray.envs.door import CheckedEnv

POINT = "wmrl/PointMaze-UMaze-v0"


class Recorder(gym.Env):
    """Remembers the action that reached it; observes a Dict of float64."""

    observation_space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2, 2)), b=gym.spaces.Box(-np.inf, np.inf, (1,), np.float64))
    action_space = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))

    def reset(self, *, seed=None, options=None):  # noqa: ANN001, ANN201
        return {"a": np.arange(4.0).reshape(2, 2), "b": np.array([7.0])}, {}

    def step(self, action):  # noqa: ANN001, ANN201
        self.action = action
        return {"a": np.zeros((2, 2)), "b": np.array([8.0])}, np.float64(1), np.bool_(True), False, {}


def test_observations_become_flat_float32_and_actions_are_scaled_to_the_bounds() -> None:
    inner = Recorder()
    env = CheckedEnv(inner)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, np.array([0, 1, 2, 3, 7], np.float32))
    assert (obs.dtype, env.observation_space.shape, env.observation_space.dtype) == (np.float32, (5,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    for action, scaled in (((-1, -1), (-2, 0)), ((0, 0), (0, 5)), ((1, 1), (2, 10)), ((9, -9), (2, 0)), ((0.5, 0.5), (1, 7.5))):
        _, reward, terminated, _, _ = env.step(np.array(action, np.float32))
        np.testing.assert_allclose(inner.action, scaled)
        assert inner.action.dtype == np.float32
    assert (type(reward), terminated) == (float, True)


def test_a_plain_gymnasium_id_gets_the_projects_interface() -> None:
    env = make_env("Pendulum-v1")
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    full, _ = make_env("Pendulum-v1"), env.reset(seed=0)
    full.reset(seed=0)
    raw = gym.make("Pendulum-v1")
    raw.reset(seed=0)
    np.testing.assert_allclose(full.step(np.array([0.5], np.float32))[0], raw.step(np.array([1.0], np.float32))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("wmrl/PointMaze-Umaze-v0", r"'wmrl/PointMaze-Umaze-v0' cannot be made \(did you mean 'wmrl/PointMaze-UMaze-v0'\?\)"),
        ("nonsense-v0", r"env = 'nonsense-v0' cannot be made"),
        ("no_such_package:Some-v0", r"needs a package that is not installed: No module named 'no_such_package'"),
        ("CartPole-v1", r"env = 'CartPole-v1' has discrete actions Discrete\(2\); a bounded Box is needed.*ActionWrapper"),
    ],
)
def test_an_id_that_cannot_be_used_gets_one_clear_line(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_env(env_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("absent", ["mujoco", "gymnasium_robotics"])
def test_a_missing_simulator_names_the_extra_to_install(absent: str, without: Callable[[str], None]) -> None:
    without(absent)
    with pytest.raises(ConfigError, match=r"install it with: pip install 'wmrl-ray\[robotics\]'"):
        make_env(POINT)


def test_a_vector_environment_resets_the_ended_ones_from_the_seeds_it_is_given() -> None:
    envs = make_vector_env(POINT, 3)
    for i, env in enumerate(envs.envs):
        env.seeds = iter([5 + i, 50 + i])
    single = make_env(POINT)

    def started_from(*seeds: int) -> np.ndarray:
        return np.stack([single.reset(seed=seed)[0] for seed in seeds])

    obs, _ = envs.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((3, 4), np.float32)
    np.testing.assert_array_equal(obs, started_from(5, 6, 7))
    for _ in range(300):
        _, _, _, truncated, _ = envs.step(np.zeros((3, 2), np.float32))
    assert truncated.all()
    fresh, _, _, truncated, _ = envs.step(np.zeros((3, 2), np.float32))
    assert not truncated.any()
    np.testing.assert_array_equal(fresh, started_from(50, 51, 52))
    obs, _ = envs.reset(seed=0)  # no seeds are left: as any vector environment
    np.testing.assert_array_equal(obs, started_from(0, 1, 2))


def test_an_argument_that_the_environment_does_not_take_gets_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"'Pendulum-v1' cannot be made with env_config = \{'gravity': 1\}: .*gravity"):
        make_env("Pendulum-v1", gravity=1)


def test_a_vector_of_no_environments_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_envs = 0"):
        make_vector_env(POINT, 0)
