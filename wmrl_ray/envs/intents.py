"""Environments whose observations carry intents: what a Worker of a Manager acts in. Other code never knows.

Ids: `intents:MANAGER:ENV`, MANAGER being a Manager's run or checkpoint folder, and `random-intents:DIM:ENV` for the ablation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorObservationWrapper
from gymnasium.vector.utils import batch_space

from wmrl_ray.config import ConfigError, check
from wmrl_ray.policy import Policy, find_checkpoint

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


def load_manager(path: str | Path, device: str | torch.device = "cpu") -> Manager:
    """The Manager of a run or checkpoint folder; one object per process, however many environments ask for it.

    Raises:
        ConfigError: it holds another algorithm.
        CheckpointError: nothing complete there.
    """
    checkpoint = find_checkpoint(Path(path)).resolve()
    manifest = checkpoint / "manifest.json"
    # Why by content: a Manager that is trained again at the same path is another one
    return _load_manager(checkpoint, manifest.read_bytes() if manifest.is_file() else b"", str(device))


@functools.lru_cache(maxsize=4)
def _load_manager(checkpoint: Path, manifest: bytes, device: str) -> Manager:
    from wmrl_ray.core.agents.manager import Manager

    agent = Policy.load(checkpoint, device).agent
    if not isinstance(agent, Manager):
        raise ConfigError(f"{checkpoint} holds a {type(agent).__name__}, not a Manager; train one with algorithm: manager")
    return agent


class Intents:
    """What follows the observations of W environments side by side: a vector [D] each, of all of them in one call.

    dim: D. low, high: bounds of each of its numbers.
    """

    def __init__(self, dim: int, low: float, high: float):
        self.dim, self.low, self.high = dim, low, high

    def start(self, row: int, seed: int | None) -> None:
        """Environment `row` has been reset with `seed`; its random stream starts from it (None: goes on)."""
        raise NotImplementedError

    def vectors(self, obs: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """[N, D] for obs [N, O], the observations of the environments `rows`."""
        raise NotImplementedError

    def append(self, obs: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        """[N, O] -> [N, O + D]."""
        return np.concatenate([obs, self.vectors(obs, rows)], 1)

    def space(self, inner: gym.Space) -> Box:
        """Of flat observations with vectors behind them. Raises ConfigError for observations that the Manager does not read."""
        assert isinstance(inner, Box)
        lowest = np.concatenate([inner.low, np.full(self.dim, self.low, np.float32)])
        highest = np.concatenate([inner.high, np.full(self.dim, self.high, np.float32)])
        return Box(lowest, highest, dtype=np.float32)


class PlannedIntents(Intents):
    """The Manager plans at every step; its intent g_t (Eq. 5 of the IQL-TD-MPC paper) follows the observation.

    Each environment has its own stream of the planner's noise, as if it were alone; planning stays one call for all.
    """

    def __init__(self, manager: Manager, num_envs: int):
        super().__init__(manager.intent_dim, -np.inf, np.inf)
        self.manager = manager
        self._generators = [torch.Generator(manager.device) for _ in range(num_envs)]
        for generator in self._generators:
            generator.seed()

    def start(self, row: int, seed: int | None) -> None:
        if seed is not None:
            self._generators[row].manual_seed(seed)

    def vectors(self, obs: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        states = torch.from_numpy(obs).to(self.manager.device)
        return self.manager.act_intent(states, [self._generators[row] for row in rows]).cpu().numpy()

    def space(self, inner: gym.Space) -> Box:
        reads = (self.manager.obs_dim,)
        check(inner.shape == reads, f"the Manager reads observations of shape {reads}, the environment has {inner.shape}")
        return super().space(inner)


class RandomIntents(Intents):
    """Vectors of U(0, 1)^D, redrawn at every step: the ablation of Table III. Each environment has its own stream."""

    def __init__(self, dim: int, num_envs: int):
        super().__init__(dim, 0.0, 1.0)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]

    def start(self, row: int, seed: int | None) -> None:
        if seed is not None:
            self._generators[row] = np.random.default_rng([seed, 1])  # Why 1: the environment's own stream is that of `seed`

    def vectors(self, obs: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        return np.stack([self._generators[row].uniform(size=self.dim) for row in rows]).astype(np.float32)


def make_intents(source: str | int, num_envs: int, device: str | torch.device = "cpu") -> Intents:
    """For W environments: a Manager's (of that path, on `device`), or random ones of that size. Raises as `load_manager`."""
    if isinstance(source, int):
        return RandomIntents(source, num_envs)
    return PlannedIntents(load_manager(source, device), num_envs)


class StartsIntents(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """Tells `intents` when environment `row` is reset, and with what."""

    def __init__(self, env: gym.Env, intents: Intents, row: int):
        super().__init__(env)
        self.intents, self.row = intents, row

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.intents.start(self.row, seed)
        return self.env.reset(seed=seed, options=options)


class IntentEnv(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """One flat environment with intents behind its observations."""

    def __init__(self, env: gym.Env, source: str | int):
        self.intents = make_intents(source, num_envs=1)
        super().__init__(StartsIntents(env, self.intents, row=0))
        self.observation_space = self.intents.space(env.observation_space)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return self.intents.append(observation[None], [0])[0]


class IntentVectorEnv(VectorObservationWrapper):
    """W environments, each a `StartsIntents`, with intents behind their observations."""

    def __init__(self, env: VectorEnv, intents: Intents):
        super().__init__(env)
        self.intents = intents
        self.single_observation_space = intents.space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def observations(self, observations: np.ndarray) -> np.ndarray:
        return self.intents.append(observations, range(self.num_envs))
