"""The environment that a dataset was recorded in, or is to be evaluated in: its EnvSpec -> arguments of `make_env`."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from wmrl_ray.envs.catalog import family_of
from wmrl_ray.envs.intents import split_intent_env_id

_NOT_THE_TASK = ("render_mode", "width", "height", "camera_id", "camera_name")  # of a recording's pictures
_NOT_SAID = (*_NOT_THE_TASK, "action_repeat", "obs")  # those two are compared with the dataset (`check_compatible`)


def recorded_config(env_id: str | None, env_spec: str | None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `env_spec` (EnvSpec as JSON) says of the environment beyond its id's registration: arguments, and the step limit.

    Args:
        env_id: of the dataset, with the module that registers it; None: the dataset names no environment.
        env_spec: None: nothing is known beyond the id.
        given: the run's own env_config, which decides how a step limit counts: in `make_env` after repeated actions.
    """
    if env_id is None or not env_spec:
        return {}
    spec, usual, registered = json.loads(env_spec), {}, _registered(split_intent_env_id(env_id)[1])
    if registered is not None:
        kwargs = json.loads(json.dumps(registered.kwargs, default=repr))
        usual = _said({"kwargs": kwargs, "max_episode_steps": registered.max_episode_steps})
    beyond = {name for name, value in _said(spec).items() if name not in usual or usual[name] != value}
    return {name: value for name, value in _said(spec, given or {}).items() if name in beyond}


def overridden(env_spec: str | None, config: Mapping[str, Any]) -> str | None:
    """One line about what `config` (a run's env_config) sets otherwise than the dataset's environment has it; None: nothing."""
    if not env_spec:
        return None
    said = _said(json.loads(env_spec), config)
    changed = [
        f"{name} = {_short(value)} (the dataset's: {_short(said[name]) if name in said else 'not set'})"
        for name, value in config.items()
        if name not in _NOT_SAID and not (name in said and said[name] == value)
    ]
    return f"env_config changes the dataset's environment: {', '.join(changed)}" if changed else None


def _said(spec: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """All that the spec says, as arguments of `make_env` beside `given`."""
    said = {name: value for name, value in (spec.get("kwargs") or {}).items() if name not in _NOT_THE_TASK}
    if (limit := spec.get("max_episode_steps")) is not None:
        name = "fixed_length" if "fixed_length" in given else "max_episode_steps"
        said[name] = -(-int(limit) // int(given.get("action_repeat") or 1))
    return said


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
