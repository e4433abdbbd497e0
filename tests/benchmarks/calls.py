"""What the benchmarks of agents time: the same variants, batches and plans for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wmrl_ray.core.agents.base import Agent
from wmrl_ray.core.batch import Batch

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "float32", "compile": "off"},
    "bf16": {"precision": "bfloat16", "compile": "off"},
    "fp32 compiled": {"precision": "float32", "compile": "default"},
    "bf16 compiled": {"precision": "bfloat16", "compile": "default"},
}


def random_batch(size: int, horizon: int, obs_dim: int, action_dim: int, num_experts: int | None = None) -> Batch:
    """The same at every call. num_experts: how many of the rows, the last ones, are an expert's; None: an agent without any."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    full = torch.ones(size, horizon, dtype=torch.bool)
    return Batch(
        obs=normal(size, horizon + 1, obs_dim),
        action=normal(size, horizon, action_dim).clamp(-1, 1),
        reward=normal(size, horizon),
        terminated=~full,
        valid=full,
        time=torch.zeros(size, dtype=torch.long),
        return_to_go=normal(size, horizon),
        is_expert=None if num_experts is None else torch.arange(size) >= size - num_experts,
    )


def planner(agent: Agent, num_envs: int = 1) -> Callable[[], None]:
    """A call that plans once for `num_envs` environments, with a warm start."""
    obs, is_first = torch.randn(num_envs, agent.obs_dim), torch.zeros(num_envs, dtype=torch.bool)
    _, state, _ = agent.act(obs, None, ~is_first)

    def call() -> None:
        nonlocal state
        _, state, _ = agent.act(obs, state, is_first)

    return call
