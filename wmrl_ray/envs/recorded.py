"""The environment that a dataset was recorded in, or is to be evaluated in: its EnvSpec -> arguments of `make_env`."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from wmrl_ray.envs.catalog import family_of
from wmrl_ray.envs.intents import split_intent_env_id

_NOT_THE_TASK = ("render_mode", "width", "height", "camera_id", "camera_name")  # of a recording's pictures


def recorded_config(env_id: str | None, env_spec: str | None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `env_spec` (EnvSpec as JSON) says of the environment beyond its id's registration: arguments, and the step limit.

    Args:
        env_id: of the dataset, with the module that registers it; None: the dataset names no environment.
        env_spec: None: nothing is known beyond the id.
        given: the run's own env_config, which decides how a step limit counts: in `make_env` after repeated actions.
    """
    if env_id is None or not env_spec:
        return {}
    spec, given = json.loads(env_spec), given or {}
    registered = _registered(split_intent_env_id(env_id)[1])
    usual = {} if registered is None else json.loads(json.dumps(registered.kwargs, default=repr))
    config = {
        name: value
        for name, value in (spec.get("kwargs") or {}).items()
        if name not in _NOT_THE_TASK and (name not in usual or usual[name] != value)
    }
    limit = spec.get("max_episode_steps")
    if limit is not None and "fixed_length" not in given and (registered is None or registered.max_episode_steps != limit):
        config["max_episode_steps"] = -(-int(limit) // int(given.get("action_repeat") or 1))
    return config


def overridden(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """One line about what `config` (a run's env_config) sets otherwise than the dataset's environment has it; None: nothing."""
    changed = [f"{name} = {config[name]!r} (the dataset's: {_short(old)})" for name, old in recorded.items()
               if name in config and config[name] != old]  # fmt: skip
    return f"env_config changes the dataset's environment: {', '.join(changed)}" if changed else None


def _registered(env_id: str) -> EnvSpec | None:
    """How the id is registered, its module imported; None: it is not, which `make_env` will say."""
    module, _, plain = env_id.rpartition(":")
    if (family := family_of(plain)) is not None:
        module = family.imports[-1]
    with contextlib.suppress(gym.error.Error, ImportError):  # `make_env` says what is missing
        if module and all(part.isidentifier() for part in module.split(".")):
            importlib.import_module(module)
        return gym.spec(plain)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
