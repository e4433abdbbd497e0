"""Any environment with Box spaces -> flat float32 observations (or pixels) and actions in [-1, 1]; and what can be put around
one: repeated actions, a trembling hand, episodes of one length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatten, flatten_space

from wmrl_ray.config import ConfigError


def is_flat(env: gym.Env) -> bool:
    """The environment already has the project's interface."""
    obs, action = env.observation_space, env.action_space
    return (
        isinstance(obs, Box)
        and (is_pixels(obs) or (len(obs.shape) == 1 and obs.dtype == np.float32))
        and isinstance(action, Box)
        and len(action.shape) == 1
        and action.dtype == np.float32
        and bool((action.low == -1.0).all() and (action.high == 1.0).all())
    )


def is_pixels(space: gym.Space) -> bool:
    """Images as the project takes them: uint8 [C, h, w], with fewer channels than rows and columns."""
    return (
        isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < min(space.shape[1:])
    )


class FlatEnv(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """Flattens and casts the observation, or leaves pixels as they are; takes actions in [-1, 1] (clipped) and scales them to
    the environment's bounds.

    Raises:
        ConfigError: the observation is not a Box (or a Dict or Tuple of them), or is an image of another layout; the action is
            not a bounded Box.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self._pixels = is_pixels(env.observation_space)
        flat = env.observation_space if self._pixels else flatten_space(env.observation_space)
        if not isinstance(flat, Box) or _has_other_than_box(env.observation_space):
            raise ConfigError(f"env = {name!r} has observations {env.observation_space}; Box, or Dict of Box, is needed")
        if flat.dtype == np.uint8 and not self._pixels:
            raise ConfigError(
                f"env = {name!r} has image observations {env.observation_space}; a vector, or uint8 [channels, height, width], "
                "is needed"
            )
        action = env.action_space
        if not isinstance(action, Box) or not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise ConfigError(f"env = {name!r} has actions {action}; a bounded Box is needed")
        self._inner = action
        self._middle = (action.high.astype(np.float64) + action.low) / 2
        self._half = (action.high.astype(np.float64) - action.low) / 2
        # Why: an unset space would be the inner one, with other bounds
        if not self._pixels:
            flat = Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)
        self.observation_space = flat
        self.action_space = Box(-1.0, 1.0, (int(np.prod(action.shape)),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.clip(action, -1.0, 1.0).reshape(self._inner.shape)
        scaled = np.clip(self._middle + self._half * action, self._inner.low, self._inner.high).astype(self._inner.dtype)
        obs, reward, terminated, truncated, info = self.env.step(scaled)
        return self._flat(obs), float(reward), bool(terminated), bool(truncated), info

    def _flat(self, obs: Any) -> np.ndarray:
        return obs if self._pixels else np.asarray(flatten(self.env.observation_space, obs), dtype=np.float32)


class ActionRepeat(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """Takes every action `repeat` times, or until the episode ends; rewards add up, success at any of them counts, or at the
    last where only the end of an episode does.
    """

    def __init__(self, env: gym.Env, repeat: int):
        super().__init__(env)
        self.action_repeat, self._at_end = repeat, succeeds_at_end(env)
        limit = step_limit_of(env)
        self.max_episode_steps = None if limit is None else -(-limit // repeat)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, success = 0.0, False
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            success = bool(info.get("success", False)) or (success and not self._at_end)
            if terminated or truncated:
                break
        if "success" in info:
            info["success"] = success
        return obs, total, terminated, truncated, info


class TremblingHand(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """With probability p_tremble the action that is executed is a uniformly random one instead of the agent's.

    Noise of the dynamics as in HyPE (Ren et al., 2024) and Appendix E.4 of the IQ-MPC paper: the agent is not told, and the
    transition stays under the action it chose. Its random stream starts from reset's seed and is not the environment's.
    """

    def __init__(self, env: gym.Env, p_tremble: float):
        super().__init__(env)
        self.p_tremble = p_tremble
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._generator = np.random.default_rng([seed, 2])  # Why 2: 1 is that of random intents
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._generator.random() < self.p_tremble:
            action = self._generator.uniform(-1.0, 1.0, action.shape).astype(np.float32)
        return self.env.step(action)


class FixedLength(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """Episodes of exactly `length` steps: the environment goes on where it would have ended, and never terminates.

    As in TD-MPC2, whose tasks are all of one length: an agent that drops the object has to live with it.
    """

    def __init__(self, env: gym.Env, length: int):
        super().__init__(env)
        self.length, self._elapsed = length, 0
        self.max_episode_steps = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._elapsed = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, _, _, info = self.env.step(action)
        self._elapsed += 1
        return obs, reward, False, self._elapsed >= self.length, info


class SeededResets(gym.Wrapper[Any, Any, Any, Any]):
    """Starts each episode from the next of `seeds` while there are any: a vector environment resets its ended ones unseeded."""

    seeds: Iterator[int] = iter(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=next(self.seeds, seed), options=options)


def step_limit_of(env: gym.Env) -> int | None:
    """After how many steps of `env` an episode is truncated; None: never, or it does not say."""
    if env.has_wrapper_attr("max_episode_steps"):  # families that count by themselves
        return env.get_wrapper_attr("max_episode_steps")
    return None if env.spec is None else env.spec.max_episode_steps


def action_repeat_of(env: gym.Env) -> int:
    """How often an action of `env` is taken in its simulator; 1 where nothing repeats it."""
    return env.get_wrapper_attr("action_repeat") if env.has_wrapper_attr("action_repeat") else 1


def succeeds_at_end(env: gym.Env) -> bool:
    """What an episode's success is: the success of its last step, where `env` has success_at_end = True; else of any step.

    Why two: TD-MPC2 and the papers that follow it report the last step of MyoSuite's and ManiSkill's episodes, which go on
    after a success; in D4RL's mazes a goal that was reached counts.
    """
    return env.has_wrapper_attr("success_at_end") and bool(env.get_wrapper_attr("success_at_end"))


def _has_other_than_box(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_has_other_than_box(inner) for inner in space.values())
    if isinstance(space, gym.spaces.Tuple):
        return any(_has_other_than_box(inner) for inner in space)
    return not isinstance(space, Box)
