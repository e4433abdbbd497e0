"""Any environment with Box spaces -> flat float32 observations and actions in [-1, 1]."""

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
        and len(obs.shape) == 1
        and obs.dtype == np.float32
        and isinstance(action, Box)
        and len(action.shape) == 1
        and action.dtype == np.float32
        and bool((action.low == -1.0).all() and (action.high == 1.0).all())
    )


class FlatEnv(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """Flattens and casts the observation; takes actions in [-1, 1] (clipped) and scales them to the environment's bounds.

    Raises:
        ConfigError: the observation is not a Box (or a Dict or Tuple of them), or is an image; the action is not a bounded Box.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        flat = flatten_space(env.observation_space)
        if not isinstance(flat, Box) or _has_other_than_box(env.observation_space):
            raise ConfigError(f"env = {name!r} has observations {env.observation_space}; Box, or Dict of Box, is needed")
        if flat.dtype == np.uint8:
            raise ConfigError(f"env = {name!r} has image observations {env.observation_space}; a vector observation is needed")
        action = env.action_space
        if not isinstance(action, Box) or not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
            raise ConfigError(f"env = {name!r} has actions {action}; a bounded Box is needed")
        self._inner = action
        self._middle = (action.high.astype(np.float64) + action.low) / 2
        self._half = (action.high.astype(np.float64) - action.low) / 2
        # Why: an unset space would be the inner one, with other bounds
        self.observation_space = Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)
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
        return np.asarray(flatten(self.env.observation_space, obs), dtype=np.float32)


class SeededResets(gym.Wrapper[Any, Any, Any, Any]):
    """Starts each episode from the next of `seeds` while there are any: a vector environment resets its ended ones unseeded."""

    seeds: Iterator[int] = iter(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=next(self.seeds, seed), options=options)


def _has_other_than_box(space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return any(_has_other_than_box(inner) for inner in space.values())
    if isinstance(space, gym.spaces.Tuple):
        return any(_has_other_than_box(inner) for inner in space)
    return not isinstance(space, Box)
