"""The door: what an environment answers comes in as it is, or is refused with environment, episode and step."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatten, flatten_space

from tests.fakes import FakeAgent, constant
from wmrl_ray.collect import Collector
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent
from wmrl_ray.envs import make_env, make_vector_env
from wmrl_ray.envs.door import CheckedEnv, EnvError
from wmrl_ray.envs.factory import behind_door
from wmrl_ray.rollout import env_dims, evaluate, step_limit

ACTION = np.zeros(1, np.float32)
FLOATS = Box(-np.inf, np.inf, (3,), np.float64)


class Says(gym.Env):
    """Answers as it is told: its observation is `obs` (the step's number by default); five steps."""

    action_space: gym.Space = Box(-1.0, 1.0, (1,), np.float32)
    observation_space: gym.Space = FLOATS

    def __init__(self, space: gym.Space = FLOATS, obs: Any = None, at: int = 0, **answer: Any):
        """at: the step with the odd answer, until then it is a good one."""
        self.observation_space, self.obs, self.at, self.answer = space, obs, at, answer

    def observe(self) -> Any:
        return np.full(3, float(self.t)) if self.obs is None or self.t < self.at else self.obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, Any, Any, Any, Any]:
        self.t += 1
        said = {"reward": 1.0, "terminated": False, "truncated": self.t == 5, "info": {}}
        said |= self.answer if self.t >= self.at else {}
        return self.observe(), said["reward"], said["terminated"], said["truncated"], said["info"]


gym.register("Says-v0", entry_point=Says, max_episode_steps=20)
gym.register("Endless-v0", entry_point=Says)


def door(*args: Any, **kwargs: Any) -> CheckedEnv:
    env = CheckedEnv(Says(*args, **kwargs))
    env.reset(seed=7)
    return env


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    """A refusal is one line: numpy may not warn beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("answer", "reads"),
    [
        ({"obs": np.array([1.0, 2.0, 3.0, 4.0])}, r"observation has shape \(4,\), and its space says \(3,\)"),
        ({"obs": np.zeros((3, 1))}, r"observation has shape \(3, 1\), and its space says \(3,\)"),
        ({"obs": np.array([0.0, np.nan, 0.0])}, r"observation\[1\] is nan"),
        ({"obs": np.array([0.0, 0.0, -np.inf], np.float32)}, r"observation\[2\] is -inf"),
        ({"obs": np.full(3, 1e200)}, r"observation\[0\] is 1e\+200"),
        ({"obs": np.array([0.0, np.inf, 0.0], np.float16)}, r"observation\[1\] is inf"),
        ({"obs": "far away"}, r"its observation is 'far away'"),
        ({"obs": [[0.0], [0.0, 1.0]]}, r"its observation is \[\[0\.0\], \[0\.0, 1\.0\]\]"),
        ({"reward": np.nan}, r"its reward is nan"),
        ({"reward": -np.inf}, r"its reward is -inf"),
        ({"reward": 1e39}, r"its reward is 1e\+39"),
        ({"reward": np.ones(2)}, r"its reward is float64 of shape \(2,\)"),
        ({"reward": None}, r"its reward is None"),
        ({"terminated": 0.5}, r"its terminated is 0\.5"),
        ({"truncated": None}, r"its truncated is None"),
        ({"info": None}, r"its info is None"),
        ({"info": {"is_success": 2}}, r"its info\['is_success'\] is 2"),
        ({"info": {"success": np.array([True, False])}}, r"its info\['success'\] is bool of shape \(2,\)"),
    ],
)
def test_what_no_episode_can_hold_is_refused_with_its_place(answer: dict[str, Any], reads: str) -> None:
    env = door(at=2, **answer)
    env.step(ACTION)
    with pytest.raises(EnvError, match=rf"^env = 'Says', episode 0, step 2, reset with seed 7: .*({reads})") as caught:
        env.step(ACTION)
    assert "\n" not in str(caught.value)


def test_a_bad_first_observation_is_refused_in_the_reset() -> None:
    env = CheckedEnv(Says(obs=np.full(3, np.nan)))
    for episode in (0, 1):
        with pytest.raises(EnvError, match=rf"episode {episode}, step 0: its observation\[0\] is nan"):
            env.reset()


@pytest.mark.parametrize("reward", [1, 1.0, np.float32(1), np.int64(1), np.array([1.0]), np.array(1), True])
@pytest.mark.parametrize("flag", [True, np.bool_(True), np.array([True]), 1, 1.0])
def test_a_number_is_one_in_whatever_form_it_comes(reward: Any, flag: Any) -> None:
    env = door(reward=reward, terminated=flag, truncated=flag)
    _, got, terminated, truncated, _ = env.step(ACTION)
    assert (type(got), got, terminated, truncated) == (float, 1.0, True, True)


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({}, None),
        ({"success": None}, None),
        ({"success": True}, True),
        ({"is_success": 1.0}, True),
        ({"is_success": np.array([0.0])}, False),
        ({"solved": np.bool_(True)}, True),
        ({"success": None, "solved": False}, False),
        ({"success": False, "is_success": True}, False),
    ],
)
def test_success_has_three_names(info: dict[str, Any], success: bool | None) -> None:
    got = door(info={"other": 3} | info).step(ACTION)[4]
    assert got.get("success") is success and got["other"] == 3 and ("success" in got) == (success is not None)


def test_success_by_any_name_counts_in_evaluation_and_collecting() -> None:
    config = {"info": {"is_success": 1.0}}
    found = evaluate(FakeAgent(constant(0.0)), "Says-v0", 2, env_config=config)
    assert found.reports_success and found.successes == [True, True]
    collector = Collector("Says-v0", config, 1)
    collector.collect(None, 5)
    assert collector.take_statistics().metrics()["online/success_mean"] == 1.0


NESTED = Dict(z=Box(-1, 1, (2, 2)), a=Tuple([Box(-1, 1, (), np.float64), Dict(x=Box(-9, 9, (3,), np.int64))]))


def test_nested_observations_are_flattened_as_gymnasium_does() -> None:
    obs = {"z": np.arange(4.0).reshape(2, 2), "a": (np.float64(5), {"x": [6, 7, 8]}), "unknown": "ignored"}
    env = door(NESTED, obs)
    got, _ = env.reset()
    np.testing.assert_array_equal(got, flatten(NESTED, obs | {"a": (obs["a"][0], {"x": np.array([6, 7, 8])})}))
    bounds = flatten_space(NESTED)
    assert got.dtype == env.observation_space.dtype == np.float32
    assert np.array_equal(env.observation_space.low, bounds.low) and np.array_equal(env.observation_space.high, bounds.high)
    with pytest.raises(EnvError, match=r"its observation has no \['a'\]\[1\]\['x'\]"):
        door(NESTED, obs | {"a": (5.0, {})})
    with pytest.raises(EnvError, match=r"observation\['z'\] has shape \(3,\), and its space says \(2, 2\)"):
        door(NESTED, obs | {"z": np.zeros(3)})
    with pytest.raises(EnvError, match=r"observation\['z'\]\[0, 1\] is inf"):
        door(NESTED, obs | {"z": np.array([[0, np.inf], [0, 0]])})


def test_an_array_that_the_environment_writes_into_again_stays_as_it_was() -> None:
    array = np.zeros(3, np.float32)
    env = door(Box(-1, 1, (3,), np.float32), array)
    first = env.step(ACTION)[0]
    array[:] = 1.0
    assert (first == 0.0).all() and (env.step(ACTION)[0] == 1.0).all()


def test_images_with_their_channels_last_are_transposed() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    env = door(Box(0, 255, image.shape, np.uint8), image)
    got = env.step(ACTION)[0]
    np.testing.assert_array_equal(got, image.transpose(2, 0, 1))
    assert got.flags.c_contiguous and env.observation_space == Box(0, 255, (3, 8, 9), np.uint8)
    first = door(Box(0, 255, (3, 8, 9), np.uint8), got)
    np.testing.assert_array_equal(first.step(ACTION)[0], got)
    with pytest.raises(EnvError, match="its image is float32, and its space says uint8"):
        door(Box(0, 255, image.shape, np.uint8), image.astype(np.float32))


@pytest.mark.parametrize(
    ("space", "reads"),
    [
        (Box(0, 255, (64, 64), np.uint8), r"ReshapeObservation\(env, \(1, 64, 64\)\)"),
        (Box(0, 255, (8, 8, 8), np.uint8), r"TransformObservation that makes one of it"),
        (Dict(pixels=Box(0, 255, (3, 64, 64), np.uint8)), r"at 'pixels'.*TransformObservation that takes this picture alone"),
        (Discrete(3), r"has observations Discrete\(3\); Box.*FlattenObservation"),
    ],
)
def test_a_message_about_observations_names_the_way_out(space: gym.Space, reads: str) -> None:
    with pytest.raises(ConfigError, match=reads) as caught:
        CheckedEnv(Says(space))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "reads"),
    [
        (Discrete(3), r"discrete actions Discrete\(3\).*ActionWrapper that has Box\(-1, 1, \(3,\)\)"),
        (MultiDiscrete([2, 3]), r"has actions MultiDiscrete.*TransformAction"),
        (Box(-np.inf, np.inf, (2,)), r"has actions Box\(-inf, inf, \(2,\), float32\).*TransformAction"),
    ],
)
def test_a_message_about_actions_names_the_way_out(space: gym.Space, reads: str) -> None:
    env = Says()
    env.action_space = space
    with pytest.raises(ConfigError, match=reads):
        CheckedEnv(env)


def test_the_ways_out_lead_out() -> None:
    grey = Says(Box(0, 255, (64, 64), np.uint8), np.ones((64, 64), np.uint8))
    assert CheckedEnv(gym.wrappers.ReshapeObservation(grey, (1, 64, 64))).reset()[0].shape == (1, 64, 64)
    assert CheckedEnv(gym.wrappers.FlattenObservation(Says(Discrete(3), 1))).reset()[0].tolist() == [0.0, 1.0, 0.0]
    pictures = Says(Dict(pixels=Box(0, 255, (3, 64, 64), np.uint8)), {"pixels": np.ones((3, 64, 64), np.uint8)})
    alone = gym.wrappers.TransformObservation(pictures, lambda obs: obs["pixels"], Box(0, 255, (3, 64, 64), np.uint8))
    assert CheckedEnv(alone).reset()[0].shape == (3, 64, 64)
    boundless = Says()
    boundless.action_space = Box(-np.inf, np.inf, (2,), np.float32)
    CheckedEnv(gym.wrappers.TransformAction(boundless, lambda action: action, Box(-1.0, 1.0, (2,), np.float32)))


class Old(Says):
    """gym's interface, before Gymnasium."""

    def step(self, action: np.ndarray) -> Any:
        return super().step(action)[:4]


class OldReset(Says):
    def reset(self) -> Any:
        return super().reset()[0]


class OldAnswer(Says):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset()[0]


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: gym.wrappers.TimeLimit(env, 9)])
def test_the_old_interface_is_refused(wrap: Any) -> None:
    env = CheckedEnv(wrap(Old()))
    env.reset()
    with pytest.raises(EnvError, match=r"episode 0, step 1: step returned .*4.*five values|no five values"):
        env.step(ACTION)
    with pytest.raises(ConfigError, match=r"env = 'OldReset': its reset takes no seed; an environment has reset\("):
        CheckedEnv(wrap(OldReset()))
    with pytest.raises(EnvError, match=r"reset returned float64 of shape \(3,\), not \(obs, info\)"):
        CheckedEnv(wrap(OldAnswer())).reset()


def test_an_exception_of_the_environments_own_stays_itself_and_says_where() -> None:
    class Breaks(Says):
        def observe(self) -> Any:
            if self.t == 2:
                raise ZeroDivisionError("its own")
            return super().observe()

    env = CheckedEnv(Breaks())
    env.reset(seed=3)
    env.step(ACTION)
    with pytest.raises(ZeroDivisionError, match="its own") as caught:
        env.step(ACTION)
    assert caught.value.__notes__ == ["in env = 'Breaks', episode 0, step 2, reset with seed 3"]


# -- episodes by number, step limits -----------------------------------------------------------------------------------------


class BadIn(Says):
    """NaN at the second step of the episode of one seed."""

    def __init__(self, seed: int):
        super().__init__()
        self.bad = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.is_bad = seed == self.bad
        return super().reset(seed=seed)

    def observe(self) -> Any:
        return np.full(3, np.nan if self.is_bad and self.t == 2 else 0.0)


gym.register("BadIn-v0", entry_point=BadIn, max_episode_steps=20)


def test_an_evaluation_names_the_episode_by_its_own_number_and_does_not_blame_the_weights() -> None:
    from wmrl_ray.rollout import episode_seed

    seed = episode_seed(0, 4)
    agent = make_agent("bc", {}, *env_dims("BadIn-v0", {"seed": seed}), seed=0, device="cpu")
    with pytest.raises(EnvError, match=rf"episode 4, step 2, reset with seed {seed}: its observation\[0\] is nan"):
        evaluate(agent, "BadIn-v0", 6, env_config={"seed": seed}, num_envs=3)
    envs = make_vector_env("BadIn-v0", 2, seed=seed)  # as RLlib's runners step them
    for i, env in enumerate(envs.unwrapped.envs):
        env.numbers, env.seeds = itertools.count(i, 2), (episode_seed(0, k) for k in itertools.count(i, 2))
    envs.reset()
    with pytest.raises(EnvError, match=rf"episode 4, step 2, reset with seed {seed}:"):
        for _ in range(40):
            envs.step(np.zeros((2, 1), np.float32))


def test_a_collector_names_the_episode_too() -> None:
    with pytest.raises(EnvError, match=r"env = 'Says-v0', episode 0, step 3, reset with seed \d+: its reward is nan"):
        Collector("Says-v0", {"at": 3, "reward": float("nan")}, 2).collect(None, 5)


@pytest.mark.parametrize("use", [make_env, lambda env_id: make_vector_env(env_id, 2), env_dims, lambda id: Collector(id)])
def test_an_environment_without_a_step_limit_is_refused(use: Any) -> None:
    with pytest.raises(ConfigError, match=r"^env = 'Endless-v0' has no step limit.*; set env_config\.max_episode_steps = N$"):
        use("Endless-v0")


@pytest.mark.parametrize(
    ("env_id", "more"),
    [
        ("Endless-v0", {}),
        ("Endless-v0", {"action_repeat": 2}),
        ("Pendulum-v1", {}),
        ("wmrl/PointMaze-UMaze-v0", {}),
        ("dmc/cartpole-balance", {}),
        ("dmc/cartpole-balance", {"action_repeat": 4}),
        pytest.param("myoHandKeyTurnFixed-v0", {}, marks=pytest.mark.slow),
        pytest.param("PickCube-v1", {}, marks=pytest.mark.slow),
    ],
)
def test_max_episode_steps_is_the_limit_in_every_family(env_id: str, more: dict[str, Any]) -> None:
    config = {"max_episode_steps": 2, **more}
    env = make_env(env_id, **config)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    assert [env.step(action)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    assert step_limit(env_id, config) == 2
    env.close()


@pytest.mark.parametrize("limit", [0, -1, 2.5, "ten", True])
def test_a_step_limit_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ConfigError, match=rf"env_config\.max_episode_steps = {limit!r}; a whole number"):
        make_env("Pendulum-v1", max_episode_steps=limit)


def test_an_environment_that_is_made_elsewhere_gets_the_limit_that_comes_first() -> None:
    with pytest.raises(ConfigError, match="env = 'Says' has no step limit"):
        make_vector_env(Says, 1)
    for own, given, limit in ((None, 3, 3), (4, 3, 3), (2, 3, 2), (4, None, 4)):
        env = behind_door(Says() if own is None else gym.wrappers.TimeLimit(Says(), own), given)
        env.reset()
        ends = [env.step(ACTION)[3] for _ in range(5)]
        assert ends.index(True) == limit - 1
    envs = make_vector_env(Says, 2, max_episode_steps=2)
    envs.reset(seed=0)
    assert [envs.step(np.zeros((2, 1), np.float32))[3].tolist() for _ in range(2)] == [[False] * 2, [True] * 2]
