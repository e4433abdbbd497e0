"""Every agent that acts learns a small real task: a point on a plane, paid for being near the origin."""

import numpy as np
import pytest
import torch

from tests.core.test_agents import CONFIGS
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.batch import Batch


def point_episodes(num: int, length: int, rng: np.random.Generator):
    """Random behaviour with a weak pull to the origin: obs [N, T+1, 2], action, reward [N, T]."""
    obs, action, reward = np.zeros((num, length + 1, 2)), np.zeros((num, length, 2)), np.zeros((num, length))
    obs[:, 0] = rng.uniform(-1, 1, (num, 2))
    for t in range(length):
        action[:, t] = np.clip(-0.3 * obs[:, t] + 0.7 * rng.normal(size=(num, 2)), -1, 1)
        obs[:, t + 1] = np.clip(obs[:, t] + 0.2 * action[:, t], -1, 1)
        reward[:, t] = 1.0 - np.abs(obs[:, t + 1]).mean(-1)
    return obs.astype(np.float32), action.astype(np.float32), reward.astype(np.float32)


def mean_reward(agent, rng: np.random.Generator) -> float:
    obs, state, total = rng.uniform(-1, 1, (16, 2)).astype(np.float32), None, 0.0
    reward = np.zeros(16, np.float32)
    for t in range(20):
        action, state, _ = agent.act(torch.from_numpy(obs), state, torch.full((16,), t == 0), reward=torch.from_numpy(reward))
        obs = np.clip(obs + 0.2 * action.numpy(), -1, 1).astype(np.float32)
        reward = 1.0 - np.abs(obs).mean(-1)
        total += float(reward.mean())
    return total / 20


LEARNING = {  # what differs for a task of 20 steps and 400 updates
    "bc": {},
    "iql": {"gamma": 0.9, "beta": 10.0, "lr": 1e-3, "lr_steps": None},
    "td3_bc": {"gamma": 0.9, "lr": 1e-3},
    "awac": {"gamma": 0.9, "temperature": 0.1, "lr": 1e-3},
    "cql": {"gamma": 0.5, "tau": 0.1, "conservative_coef": 1.0, "reward_scale": 10.0, "lr": 1e-2, "actor_lr": 3e-3},
    "dt": {"reward_scale": 0.1, "target_return": 18.0, "lr": 3e-3, "warmup": 1, "dropout": 0.0, "embedding_dim": 32},
    "tdmpc": {"gamma": 0.9},
    "tdmpc2": {"gamma": 0.9, "lr": 1e-3, "encoder_lr_scale": 1.0},
    "iql_tdmpc": {"gamma": 0.9, "beta": 10.0, "lr": 1e-3},
}


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("bc", 0.60),
        ("iql", 0.70),
        ("td3_bc", 0.70),
        ("awac", 0.70),
        ("cql", 0.80),
        ("dt", 0.70),
        ("tdmpc", 0.80),
        ("tdmpc2", 0.80),
        ("iql_tdmpc", 0.75),
    ],
)
def test_it_learns_to_move_a_point_to_the_origin(name: str, at_least: float):
    rng = np.random.default_rng(0)
    obs, action, reward = point_episodes(200, 20, rng)
    return_to_go = np.ascontiguousarray(reward[:, ::-1].cumsum(1)[:, ::-1])
    agent = make_agent(name, {**CONFIGS[name], **LEARNING[name]}, 2, 2)
    H = agent.config.window
    for _ in range(400):
        rows, starts = rng.integers(200, size=64), rng.integers(20 - H + 1, size=64)
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
    learned = mean_reward(agent, np.random.default_rng(1))
    assert learned > reward.mean() and learned > at_least, (learned, reward.mean())
