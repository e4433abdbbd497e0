"""What a run may be asked to do: a user's mistakes, each with one clear error at the door."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import Imitator, OnlineTDMPC, registered
from wmrl_ray.config import ConfigError, from_dict, to_dict
from wmrl_ray.run.config import OnlineConfig, RunConfig


@pytest.fixture
def config() -> Iterator[RunConfig]:
    with registered(online=OnlineTDMPC, imitator=Imitator):
        yield RunConfig(
            algorithm="online",
            env="Drift-v0",
            num_updates=120,
            updates_per_call=10,
            eval_every=0,
            checkpoint_every=20,
            log_every=20,
            online=OnlineConfig(num_envs=2, seed_steps=60, capacity=80),
        )


def test_updates_that_do_not_fit_the_call_are_refused() -> None:
    with pytest.raises(ConfigError, match="eval_every = 30 is not a multiple of updates_per_call = 20"):
        RunConfig("bc", "x", num_updates=100, updates_per_call=20, eval_every=30, checkpoint_every=100, log_every=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "tdmpc"}, "learns from a dataset; set dataset"),
        ({"algorithm": "tdmpc", "dataset": "x"}, r"takes no steps of its own; drop online\.num_envs, online\.seed_steps"),
        ({"algorithm": "imitator"}, r"imitates; set dataset = <demonstrations>"),
        ({"env": None}, "steps in an environment; set env"),
        ({"online": {"num_envs": 3}}, r"updates_per_call = 10 is not a multiple of the 3 updates of a turn"),
        ({"online": {"updates_per_step": 0.3}}, r"updates_per_step = 0\.3 makes 0\.3 updates in a turn of 1 steps"),
        ({"online": {"num_demonstrations": 5}}, "num_demonstrations = 5, but no dataset"),
        ({"online": {"schedule": "asynchronous"}}, "online: .*needs at least 1 runner"),
        ({"online": {"capacity": 0}}, r"online: capacity = 0"),
        ({"online": {"nun_envs": 2}}, "did you mean 'num_envs'"),
    ],
)
def test_a_users_mistake_is_named_at_the_door(config: RunConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, {**to_dict(config), **change})


def test_the_updates_of_a_turn_may_be_whole_only_but_for_rounding(config: RunConfig) -> None:
    uneven = OnlineConfig(num_envs=10, updates_per_step=0.7 + 0.1 + 0.1 + 0.1)
    assert uneven.updates_per_turn != 10
    dataclasses.replace(config, online=uneven)
    with pytest.raises(ConfigError, match="makes 1e-10 updates in a turn"):
        dataclasses.replace(config, online=OnlineConfig(updates_per_step=1e-10))
