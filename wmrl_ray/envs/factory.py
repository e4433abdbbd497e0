"""id -> environment: the door where a wrong id, a missing simulator or an unfit space becomes one clear line."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from wmrl_ray.config import ConfigError, check, did_you_mean
from wmrl_ray.envs.catalog import family_of, known_ids
from wmrl_ray.envs.door import CheckedEnv
from wmrl_ray.envs.layouts import maze_ids
from wmrl_ray.envs.wrappers import ActionRepeat, FixedLength, SeededResets, TremblingHand, step_limit_of


def make_env(
    env_id: str, *, action_repeat: int | None = None, p_tremble: float = 0.0, fixed_length: int | None = None, **kwargs: Any
) -> gym.Env:
    """The environment behind the door (`CheckedEnv`): flat float32 observations (or pixels), actions in [-1, 1], a step limit.

    Args:
        env_id: one that `wmrl envs` lists ("wmrl/PointMaze-UMaze-v0", "dmc/walker-walk", "myoHandKeyTurnFixed-v0",
            "PickCube-v1"), or any Gymnasium id with Box (or Dict of Box) observations and bounded Box actions. A module prefix
            ("wmrl_ray.envs:wmrl/...", "my_package:My-v0") is imported first. With intents: "intents:MANAGER:ID",
            "random-intents:DIM:ID" (see `envs/intents.py`).
        action_repeat: how often an action is taken; None: the family's default (DMControl and ManiSkill 2, others 1).
        p_tremble: probability that a random action is executed instead of the agent's.
        fixed_length: steps of every episode, which then never terminates; None: as the environment has it.
        kwargs: the environment's own; `max_episode_steps` and `render_mode` for all, obs="pixels" where `wmrl envs` says so.

    Raises:
        ConfigError: unknown id, simulator not installed, an argument that it does not take, a space that is neither, or no
            step limit.
    """
    from wmrl_ray.envs.intents import IntentEnv, split_intent_env_id  # Why here: it loads agents, most need none

    source, env_id = split_intent_env_id(env_id)
    if source is not None:
        wrapped = {"action_repeat": action_repeat, "p_tremble": p_tremble, "fixed_length": fixed_length}
        return IntentEnv(make_env(env_id, **wrapped, **kwargs), source)
    check(
        type(p_tremble) in (int, float) and 0.0 <= p_tremble <= 1.0,
        f"env_config.p_tremble = {p_tremble!r}; a probability is needed",
    )
    if fixed_length is not None:
        check("max_episode_steps" not in kwargs, "give fixed_length or max_episode_steps, not both")
        kwargs["max_episode_steps"] = fixed_length
    limit = kwargs.get("max_episode_steps")
    for name, value in {"fixed_length": fixed_length, "max_episode_steps": limit, "action_repeat": action_repeat}.items():
        check(
            value is None or (type(value) is int and value >= 1),
            f"env_config.{name} = {value!r}; a whole number, at least 1, is needed",
        )
    env = _make_simulator(env_id, action_repeat, fixed_length, kwargs)
    return TremblingHand(env, p_tremble) if p_tremble else env


def _make_simulator(env_id: str, action_repeat: int | None, fixed_length: int | None, kwargs: dict[str, Any]) -> gym.Env:
    """With the project's interface; `max_episode_steps` and `fixed_length` count steps of repeated actions."""
    known = env_id.rpartition(":")[2]
    if known in maze_ids():
        env_id = known  # registered already: this package is imported
    module = env_id.removesuffix(known).rstrip(":")
    check(
        all(part.isidentifier() for part in module.split(".")) or not module,
        f"env = {env_id!r}: {module!r} is no module; an id looks like 'package.module:Name-v0'",
    )
    family = family_of(known) if module in ("", "wmrl_ray.envs") else None
    try:
        if family is not None:  # it repeats actions itself, which is cheaper
            make = importlib.import_module(f"wmrl_ray.envs.{family.module}").make
            env = behind_door(make(known, **kwargs, **({} if action_repeat is None else {"action_repeat": action_repeat})))
            return env if fixed_length is None else FixedLength(env, fixed_length)
        repeat = 1 if action_repeat is None else action_repeat
        if kwargs.get("max_episode_steps") is not None:
            kwargs = kwargs | {"max_episode_steps": kwargs["max_episode_steps"] * repeat}
        env = behind_door(gym.make(env_id, disable_env_checker=True, **kwargs))
        if fixed_length is not None:
            env = FixedLength(env, fixed_length * repeat)  # Why inside: repeating an action stops where an episode ends
        return env if repeat == 1 else ActionRepeat(env, repeat)
    except gym.error.Error as error:
        ids = [*known_ids(), *gym.registry]
        raise ConfigError(f"env = {env_id!r} cannot be made{did_you_mean(known, ids)}: {_first_line(error)}") from error
    except ImportError as error:
        raise ConfigError(
            f"env = {env_id!r} needs a package that is not installed: {_first_line(error)}; a module of your own must be in "
            "the folder in which you start, or on PYTHONPATH"
        ) from error
    except TypeError as error:
        if not kwargs and "gymnasium.Env" not in str(error):  # which is Gymnasium's word on an environment of the old gym
            raise
        raise ConfigError(f"env = {env_id!r} cannot be made with env_config = {kwargs}: {_first_line(error)}") from error


def behind_door(env: gym.Env, max_episode_steps: int | None = None) -> gym.Env:
    """`env` as a `CheckedEnv`, with a step limit: its own, or `max_episode_steps` where that comes first.

    Raises:
        ConfigError: as `CheckedEnv`, or neither limit is there.
    """
    limit = step_limit_of(env)
    if max_episode_steps is not None and (limit is None or limit > max_episode_steps):
        env, limit = TimeLimit(env, max_episode_steps), max_episode_steps
    if limit is None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        raise ConfigError(
            f"env = {name!r} has no step limit, so that an episode may never end; set env_config.max_episode_steps = N"
        )
    return env if env.has_wrapper_attr("next_episode") else CheckedEnv(env)


def make_vector_env(env: str | Callable[[], gym.Env], num_envs: int, **kwargs: Any) -> VectorEnv:
    """W environments stepped one after another in this process; an ended one resets at the next step. Their intents, if the id
    asks for any, are planned in one call.

    Args:
        env: an id for `make_env`, or what makes one environment.
        num_envs: W. Each of `.unwrapped.envs` is a `SeededResets`.
        kwargs: for `make_env`; where `env` makes one itself, `max_episode_steps` counts and the rest is its own business.

    Raises:
        ConfigError: as `make_env`; num_envs < 1.
    """
    from wmrl_ray.envs.intents import IntentVectorEnv, StartsIntents, make_intents, split_intent_env_id

    check(num_envs >= 1, f"num_envs = {num_envs}; at least 1 is needed")
    source, env = split_intent_env_id(env) if isinstance(env, str) else (None, env)
    make = functools.partial(make_env, env, **kwargs) if isinstance(env, str) else env
    intents = None if source is None else make_intents(source, num_envs)

    def make_row(row: int) -> gym.Env:
        made = behind_door(make(), kwargs.get("max_episode_steps"))
        return SeededResets(made if intents is None else StartsIntents(made, intents, row))

    makers = [functools.partial(make_row, row) for row in range(num_envs)]
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return envs if intents is None else IntentVectorEnv(envs, intents)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
