"""Environments that RLlib knows as a class, or by a name of `tune.register_env`: as Gymnasium's ids, in every process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry


def creator_of(env: str | type | None) -> Callable[[EnvContext], gym.Env] | None:
    """What makes it, as RLlib would; None for an id, which `wmrl_ray.envs.make_env` makes."""
    if isinstance(env, str):
        return _global_registry.get(ENV_CREATOR, env) if _global_registry.contains(ENV_CREATOR, env) else None
    return env


def id_of(env: str | type | None) -> str | None:
    """Its id for `make_env`, which this process knows from now on. There, what `env_config` holds goes to its creator."""
    creator = creator_of(env)
    if env is None or creator is None:
        return env  # type: ignore[return-value] - an id
    name = env if isinstance(env, str) else f"{env.__module__}.{env.__qualname__}"
    env_id = f"rllib/{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-v0"

    def make(**env_config: Any) -> gym.Env:
        return creator(EnvContext(env_config, worker_index=0))

    gym.registry[env_id] = EnvSpec(env_id, entry_point=make)
    return env_id
