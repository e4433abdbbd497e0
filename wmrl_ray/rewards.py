"""How well an agent that was never told a reward knows it: rewards decoded from its critics beside the environment's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wmrl_ray.collect import Collector
from wmrl_ray.config import check
from wmrl_ray.core.agents import Agent
from wmrl_ray.core.batch import Batch
from wmrl_ray.data.episode import Episode
from wmrl_ray.rollout import evaluate


@dataclass(frozen=True)
class RewardRecovery:
    """Every step of E episodes. decoded, true: [N], episode after episode. lengths, returns: [E]."""

    decoded: np.ndarray
    true: np.ndarray
    lengths: list[int]
    returns: list[float]

    @property
    def pearson(self) -> float | None:
        """The correlation over all steps; None where one of the two never changes."""
        return pearson(self.decoded, self.true)

    @property
    def pearson_of_episodes(self) -> list[float | None]:
        ends = np.cumsum(self.lengths)[:-1]
        return [pearson(a, b) for a, b in zip(np.split(self.decoded, ends), np.split(self.true, ends), strict=True)]


def recover_rewards(
    agent: Agent,
    env_id: str,
    num_episodes: int = 5,
    *,
    env_config: Mapping[str, Any] | None = None,
    num_envs: int = 5,
    seed: int = 0,
    num_random: int = 0,
) -> RewardRecovery:
    """Rolls out the evaluation policy and decodes the reward of every step (Section 5.2 of the IQ-MPC paper: 5 episodes).

    Args:
        num_random: episodes of the random policy after them. Why: an agent that imitates well earns nearly the same in every
            step, and what never changes correlates with nothing.

    Raises:
        ConfigError: the agent decodes no rewards; or as `evaluate`.
    """
    decode = getattr(agent, "decoded_reward", None)
    check(decode is not None, f"{type(agent).__name__} decodes no rewards from its critics; imitating agents such as iq_mpc do")
    evaluation = evaluate(agent, env_id, num_episodes, env_config=env_config, num_envs=num_envs, seed=seed)
    episodes = [*evaluation.episodes, *_random_episodes(env_id, num_random, env_config, num_envs, seed)]
    decoded = [decode(steps_of(episode)).float().cpu().numpy()[:, 0] for episode in episodes]  # type: ignore[misc]
    true = [episode.reward for episode in episodes]
    returns = [float(reward.sum(dtype=np.float64)) for reward in true]
    return RewardRecovery(np.concatenate(decoded), np.concatenate(true), [len(episode) for episode in episodes], returns)


def _random_episodes(env_id: str, count: int, env_config: Mapping[str, Any] | None, num_envs: int, seed: int) -> list[Episode]:
    if count == 0:
        return []
    collector, found = Collector(env_id, env_config, min(num_envs, count), seed), []
    while len(found) < count:
        found += collector.collect(None, 100, until_end=True)
    collector.close()
    return found[:count]


def steps_of(episode: Episode) -> Batch:
    """Each of an episode's T steps as a window of one: B = T, H = 1."""
    obs = torch.from_numpy(np.stack([episode.obs[:-1], episode.obs[1:]], 1))
    terminated = torch.zeros(len(episode), 1, dtype=torch.bool)
    terminated[-1] = episode.terminated
    action, reward = torch.from_numpy(episode.action)[:, None], torch.from_numpy(episode.reward)[:, None]
    return Batch(obs, action, reward, terminated, torch.ones_like(terminated))


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else None
