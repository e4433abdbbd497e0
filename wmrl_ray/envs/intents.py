"""Environments whose observations carry intents: what a Worker of a Manager acts in. Other code never knows.

Ids: `intents:MANAGER:ENV`, MANAGER being a Manager's run or checkpoint folder, and `random-intents:DIM:ENV` for the ablation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box

from wmrl_ray.config import ConfigError, check
from wmrl_ray.policy import Policy

if TYPE_CHECKING:
    from wmrl_ray.core.agents.manager import Manager

MANAGED, RANDOM = "intents", "random-intents"


def intent_env_id(source: str | Path | int, env_id: str) -> str:
    """The id of `env_id` with the intents of a Manager (a path), or with random vectors of that size (a number)."""
    check(":" not in str(source), f"the Manager's path {source} has a colon, which separates the parts of an id; rename it")
    return f"{RANDOM if isinstance(source, int) else MANAGED}:{source}:{env_id}"


def split_intent_env_id(env_id: str) -> tuple[str | int | None, str]:
    """The inverse: (the Manager's path, a size, or None; the id of the environment inside). Raises ConfigError."""
    kind, _, rest = env_id.partition(":")
    if kind not in (MANAGED, RANDOM):
        return None, env_id
    source, _, inner = rest.partition(":")
    check(bool(source and inner), f"env = {env_id!r}; an id with intents looks like '{kind}:SOURCE:ENV'")
    if kind == MANAGED:
        return source, inner
    check(source.isdigit() and int(source) > 0, f"env = {env_id!r}: {source!r} is not a size; write '{RANDOM}:50:{inner}'")
    return int(source), inner


def load_manager(path: str | Path) -> Manager:
    """The Manager of a run or checkpoint folder.

    Raises:
        ConfigError: it holds another algorithm.
        CheckpointError: nothing complete there.
    """
    from wmrl_ray.core.agents.manager import Manager

    agent = Policy.load(path).agent
    if not isinstance(agent, Manager):
        raise ConfigError(f"{path} holds a {type(agent).__name__}, not a Manager; train one with algorithm: manager")
    return agent


def with_intents(env: gym.Env, source: str | int) -> gym.Env:
    """`env`, which is flat already, with intents behind its observations."""
    return RandomIntentEnv(env, source) if isinstance(source, int) else IntentEnv(env, load_manager(source))


class _Concatenated(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """Appends a vector to each observation [O] -> [O + D]."""

    def __init__(self, env: gym.Env, low: float, high: float, dim: int):
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, Box)
        lowest = np.concatenate([inner.low, np.full(dim, low, np.float32)])
        highest = np.concatenate([inner.high, np.full(dim, high, np.float32)])
        self.observation_space = Box(lowest, highest, dtype=np.float32)

    def vector(self, obs: np.ndarray, is_first: bool) -> np.ndarray:
        """[D] for the observation [O]."""
        raise NotImplementedError

    def restart(self, seed: int) -> None:
        """Starts the random stream again."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.restart(seed)
        return np.concatenate([obs, self.vector(obs, True)]), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return np.concatenate([obs, self.vector(obs, False)]), float(reward), terminated, truncated, info


class IntentEnv(_Concatenated):
    """The Manager plans at every step; its intent g_t (Eq. 5 of the IQL-TD-MPC paper) follows the observation.

    A reset with a seed also seeds the planner, so that an episode is repeatable.
    """

    def __init__(self, env: gym.Env, manager: Manager):
        super().__init__(env, -np.inf, np.inf, manager.intent_dim)
        dim = env.observation_space.shape
        check(dim == (manager.obs_dim,), f"the Manager reads observations of size {manager.obs_dim}, the environment has {dim}")
        self.manager = manager
        self._plan_state: torch.Tensor | None = None

    def restart(self, seed: int) -> None:
        self.manager.act_generator.manual_seed(seed)

    def vector(self, obs: np.ndarray, is_first: bool) -> np.ndarray:
        row = torch.from_numpy(obs)[None]
        intent, self._plan_state = self.manager.act_intent(row, self._plan_state, torch.tensor([is_first]))
        return intent[0].numpy()


class RandomIntentEnv(_Concatenated):
    """Vectors of U(0, 1)^D, redrawn at every step: the ablation of Table III."""

    def __init__(self, env: gym.Env, dim: int):
        super().__init__(env, 0.0, 1.0, dim)
        self._dim = dim
        self._generator = np.random.default_rng()

    def restart(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def vector(self, obs: np.ndarray, is_first: bool) -> np.ndarray:
        return self._generator.uniform(size=self._dim).astype(np.float32)
