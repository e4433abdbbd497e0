"""A small run of an agent that learns from its own steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import ImageActor, Imitator, OnlineTDMPC, registered
from tests.online.runs import SMALL
from wmrl_ray.run.config import OnlineConfig, RunConfig


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(online=OnlineTDMPC, imitator=Imitator, images=ImageActor):
        yield


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        algorithm="online",
        env="Drift-v0",
        num_updates=120,
        updates_per_call=10,
        batch_size=16,
        log_every=20,
        eval_every=0,
        eval_episodes=2,
        envs_per_runner=2,
        checkpoint_every=20,
        online=OnlineConfig(num_envs=2, seed_steps=60, capacity=80),
        agent=SMALL,
    )
