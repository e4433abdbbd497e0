"""Every agent that acts learns a small real task: to move a point on a plane to where the reward is."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.core.small import CONFIGS
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import Agent
from wmrl_ray.core.batch import Batch

Episodes = tuple[np.ndarray, np.ndarray, np.ndarray]  # obs [N, T+1, 2], action [N, T, 2], reward [N, T]
Of = Callable[[np.ndarray], np.ndarray]  # of obs [..., 2]


def nearness(obs: np.ndarray) -> np.ndarray:
    """A reward [...]: 1 at the origin, 0 in the corners."""
    return 1.0 - np.abs(obs).mean(-1)


def ascent(obs: np.ndarray) -> np.ndarray:
    """A reward [...]: 1 in the upper right corner, 0 in the lower left one."""
    return (1.0 + obs.mean(-1)) / 2


def point_episodes(num: int, length: int, rng: np.random.Generator, mean: Of, noise: float, reward_at: Of) -> Episodes:
    """Of a behaviour with actions about mean(obs)."""
    obs, action, reward = np.zeros((num, length + 1, 2)), np.zeros((num, length, 2)), np.zeros((num, length))
    obs[:, 0] = rng.uniform(-1, 1, (num, 2))
    for t in range(length):
        action[:, t] = np.clip(mean(obs[:, t]) + noise * rng.normal(size=(num, 2)), -1, 1)
        obs[:, t + 1] = np.clip(obs[:, t] + 0.2 * action[:, t], -1, 1)
        reward[:, t] = reward_at(obs[:, t + 1])
    return obs.astype(np.float32), action.astype(np.float32), reward.astype(np.float32)


def learn(agent: Agent, episodes: Episodes, num_updates: int, rng: np.random.Generator) -> None:
    obs, action, reward = episodes
    return_to_go = np.ascontiguousarray(reward[:, ::-1].cumsum(1)[:, ::-1])
    N, T, H = *reward.shape, agent.config.window
    for _ in range(num_updates):
        rows, starts = rng.integers(N, size=64), rng.integers(T - H + 1, size=64)
        window = starts[:, None] + np.arange(H + 1)
        agent.update(
            Batch(
                torch.from_numpy(obs[rows[:, None], window]),
                torch.from_numpy(action[rows[:, None], window[:, :-1]]),
                torch.from_numpy(reward[rows[:, None], window[:, :-1]]),
                torch.zeros(64, H, dtype=torch.bool),
                torch.ones(64, H, dtype=torch.bool),
                torch.from_numpy(starts),
                torch.from_numpy(return_to_go[rows[:, None], window[:, :-1]]),
            )
        )


def mean_reward(agent: Agent, rng: np.random.Generator, reward_at: Of = nearness) -> float:
    obs, state, total = rng.uniform(-1, 1, (16, 2)).astype(np.float32), None, 0.0
    reward = np.zeros(16, np.float32)
    for t in range(20):
        action, state, _ = agent.act(torch.from_numpy(obs), state, torch.full((16,), t == 0), reward=torch.from_numpy(reward))
        obs = np.clip(obs + 0.2 * action.numpy(), -1, 1).astype(np.float32)
        reward = reward_at(obs)
        total += float(reward.mean())
    return total / 20


LEARNING = {  # what differs for a task of 20 steps and 400 updates
    "bc": {},
    "iql": {"gamma": 0.5, "tau": 0.05, "beta": 30.0, "lr": 1e-3, "lr_steps": None},
    "td3_bc": {"gamma": 0.9, "lr": 1e-3},
    "awac": {"gamma": 0.9, "temperature": 0.1, "lr": 1e-3},
    "cql": {"gamma": 0.5, "tau": 0.1, "conservative_coef": 1.0, "reward_scale": 10.0, "lr": 1e-2, "actor_lr": 3e-3},
    "tdmpc": {"gamma": 0.9},
    "tdmpc2": {"gamma": 0.9, "lr": 1e-3, "encoder_lr_scale": 1.0},
    "iql_tdmpc": {"gamma": 0.9, "beta": 10.0, "lr": 1e-3},
}
CLONED = 0.75  # more than cloning earns there: 0.70 to 0.73, of three seeds


# Why so high: IQL and AWAC with all weights 1 and TD3+BC without Q are clones; they earn 0.71 to 0.73, intact 0.85 to 0.90.
@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("bc", 0.60),
        ("iql", 0.80),
        ("td3_bc", 0.80),
        ("awac", 0.82),
        ("cql", 0.80),
        ("tdmpc", 0.80),
        ("tdmpc2", 0.80),
        ("iql_tdmpc", 0.75),
    ],
)
def test_it_learns_to_move_a_point_to_the_origin_and_only_a_clone_moves_as_the_data(name: str, at_least: float) -> None:
    rng = np.random.default_rng(0)
    episodes = point_episodes(200, 20, rng, lambda obs: -0.3 * obs, 0.7, nearness)  # a weak pull to the origin
    agent = make_agent(name, {**CONFIGS[name], **LEARNING[name]}, 2, 2)
    learn(agent, episodes, 400, rng)
    learned = mean_reward(agent, np.random.default_rng(1))
    assert learned > episodes[2].mean() and learned > at_least, (learned, episodes[2].mean())
    assert (learned < CLONED) == (name == "bc"), learned


def test_a_decision_transformer_earns_much_or_little_as_it_is_asked() -> None:
    rng = np.random.default_rng(0)
    drift = rng.permutation(np.repeat([0.5, -0.5], 100))[:, None]  # half the episodes go up, half down, from anywhere
    episodes = point_episodes(200, 20, rng, lambda obs: drift, 0.3, ascent)
    config = {"reward_scale": 0.1, "lr": 3e-3, "warmup": 1, "dropout": 0.0, "embedding_dim": 32}
    agent = make_agent("dt", {**CONFIGS["dt"], **config}, 2, 2)
    clone = make_agent("bc", {**CONFIGS["bc"], "lr": 3e-3}, 2, 2)
    for learner in (agent, clone):
        learn(learner, episodes, 150, rng)

    def earned(target_return: float) -> float:
        agent.config = replace(agent.config, target_return=target_return)
        return mean_reward(agent, np.random.default_rng(1), ascent)

    high, low, cloned = earned(18.0), earned(2.0), mean_reward(clone, np.random.default_rng(1), ascent)
    assert high > low + 0.4 and high > cloned + 0.1, (
        high,
        low,
        cloned,
    )  # of four seeds: 0.83 to 0.90, 0.14 to 0.20, 0.48 to 0.71
