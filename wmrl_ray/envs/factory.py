"""id -> environment: the door where a wrong id, a missing simulator or an unfit space becomes one clear line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from wmrl_ray.config import ConfigError, check, did_you_mean
from wmrl_ray.envs.layouts import maze_ids
from wmrl_ray.envs.wrappers import FlatEnv, SeededResets, is_flat


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """The environment with flat float32 observations and actions in [-1, 1], with its step limit.

    Args:
        env_id: one of ours ("wmrl/PointMaze-UMaze-v0"), or any Gymnasium id with Box (or Dict of Box) observations and bounded
            Box actions. A module prefix ("wmrl_ray.envs:wmrl/...", "my_package:My-v0") is imported first. With intents:
            "intents:MANAGER:ID", "random-intents:DIM:ID" (see `envs/intents.py`).
        kwargs: for `gymnasium.make` (`render_mode`, `max_episode_steps`, the environment's own).

    Raises:
        ConfigError: unknown id, simulator not installed, an argument that it does not take, or a space that is neither.
    """
    from wmrl_ray.envs.intents import IntentEnv, split_intent_env_id  # Why here: it loads agents, most need none

    source, env_id = split_intent_env_id(env_id)
    if source is not None:
        return IntentEnv(make_env(env_id, **kwargs), source)
    known = env_id.rpartition(":")[2]
    if known in maze_ids():
        env_id = known  # registered already: this package is imported
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except gym.error.Error as error:
        ids = [*maze_ids(), *gym.registry]
        raise ConfigError(f"env = {env_id!r} cannot be made{did_you_mean(known, ids)}: {_first_line(error)}") from error
    except ImportError as error:
        raise ConfigError(f"env = {env_id!r} needs a package that is not installed: {_first_line(error)}") from error
    except TypeError as error:
        if not kwargs:
            raise
        raise ConfigError(f"env = {env_id!r} cannot be made with env_config = {kwargs}: {_first_line(error)}") from error
    return flattened(env)


def flattened(env: gym.Env) -> gym.Env:
    """`env` with the project's interface. Raises ConfigError: as `FlatEnv`."""
    return env if is_flat(env) else FlatEnv(env)


def make_vector_env(env: str | Callable[[], gym.Env], num_envs: int, **kwargs: Any) -> VectorEnv:
    """W environments stepped one after another in this process; an ended one resets at the next step. Their intents, if the id
    asks for any, are planned in one call.

    Args:
        env: an id for `make_env`, or what makes one environment.
        num_envs: W. Each of `.unwrapped.envs` is a `SeededResets`.
        kwargs: for `make_env`.

    Raises:
        ConfigError: as `make_env`; num_envs < 1.
    """
    from wmrl_ray.envs.intents import IntentVectorEnv, StartsIntents, make_intents, split_intent_env_id

    check(num_envs >= 1, f"num_envs = {num_envs}; at least 1 is needed")
    source, env = split_intent_env_id(env) if isinstance(env, str) else (None, env)
    make = functools.partial(make_env, env, **kwargs) if isinstance(env, str) else env
    intents = None if source is None else make_intents(source, num_envs)

    def make_row(row: int) -> gym.Env:
        made = flattened(make())
        return SeededResets(made if intents is None else StartsIntents(made, intents, row))

    makers = [functools.partial(make_row, row) for row in range(num_envs)]
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return envs if intents is None else IntentVectorEnv(envs, intents)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
