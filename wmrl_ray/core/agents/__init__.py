"""One file per algorithm, siblings that can be read by diff."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from wmrl_ray.config import ConfigError, did_you_mean, from_dict
from wmrl_ray.core.agents.awac import AWAC
from wmrl_ray.core.agents.base import Agent, AgentConfig, ObsDim
from wmrl_ray.core.agents.bc import BC
from wmrl_ray.core.agents.cql import CQL
from wmrl_ray.core.agents.dt import DT
from wmrl_ray.core.agents.iq_mpc import IQMPC
from wmrl_ray.core.agents.iq_sac import IQSAC
from wmrl_ray.core.agents.iql import IQL
from wmrl_ray.core.agents.iql_tdmpc import IQLTDMPC
from wmrl_ray.core.agents.manager import Manager
from wmrl_ray.core.agents.td3_bc import TD3BC
from wmrl_ray.core.agents.tdmpc import TDMPC
from wmrl_ray.core.agents.tdmpc2 import TDMPC2

AGENTS: dict[str, type[Agent]] = {
    "bc": BC,
    "iql": IQL,
    "td3_bc": TD3BC,
    "awac": AWAC,
    "cql": CQL,
    "dt": DT,
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
    "iql_tdmpc": IQLTDMPC,
    "manager": Manager,
    "iq_sac": IQSAC,
    "iq_mpc": IQMPC,
}


def agent_config(name: str, values: Mapping[str, Any] | AgentConfig) -> AgentConfig:
    """The agent's own frozen Config from a mapping, strictly. Raises ConfigError."""
    if name not in AGENTS:
        raise ConfigError(f"unknown algorithm {name!r}{did_you_mean(name, AGENTS)}; known: {', '.join(AGENTS)}")
    if isinstance(values, AgentConfig):
        return values
    return from_dict(AGENTS[name].Config, values, "agent")


def make_agent(
    name: str,
    config: Mapping[str, Any] | AgentConfig,
    obs_dim: ObsDim,
    action_dim: int,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Agent:
    """Builds the agent `name`; obs_dim is O, or (C, h, w) of images. Raises ConfigError for an unknown name or key."""
    checked = agent_config(name, config)
    return AGENTS[name](checked, obs_dim, action_dim, seed=seed, device=device)
