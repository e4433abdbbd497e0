"""A user's mistakes, each with one clear error, and what must hold when a run fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from wmrl_ray.collect import Collector
from wmrl_ray.config import ConfigError, from_dict, to_dict
from wmrl_ray.online import train_online
from wmrl_ray.run import OnlineConfig, RunConfig
from wmrl_ray.train import train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "tdmpc"}, "learns from a dataset; set dataset"),
        ({"algorithm": "tdmpc", "dataset": "x"}, r"takes no steps of its own; drop online\.num_envs, online\.seed_steps"),
        ({"algorithm": "imitator"}, r"imitates; set dataset = <demonstrations>"),
        ({"env": None}, "steps in an environment; set env"),
        ({"online": {"num_envs": 3}}, r"updates_per_call = 10 is not a multiple of the 3 updates of a turn"),
        ({"online": {"updates_per_step": 0.3}}, r"the 0\.3 updates of a turn"),
        ({"online": {"num_demonstrations": 5}}, "num_demonstrations, but no dataset"),
        ({"online": {"schedule": "asynchronous"}}, "online: .*needs at least 1 runner"),
        ({"online": {"capacity": 0}}, r"online: capacity = 0"),
        ({"online": {"nun_envs": 2}}, "did you mean 'num_envs'"),
    ],
)
def test_a_users_mistake_is_named_at_the_door(config: RunConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, {**to_dict(config), **change})


def test_a_run_that_cannot_go_on_says_why(config: RunConfig, tmp_path: Path) -> None:
    with_runners = dataclasses.replace(config, online=OnlineConfig(num_runners=2, seed_steps=60))
    with pytest.raises(ConfigError, match="num_runners = 2 are Ray actors"):
        train_online(with_runners, tmp_path / "run")
    with pytest.raises(ConfigError, match="takes its own steps; train it with online"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    early = dataclasses.replace(config, online=OnlineConfig(seed_steps=1))
    with pytest.raises(ConfigError, match=r"after 1 steps: the replay is empty.*raise online\.seed_steps"):
        train_online(early, tmp_path / "run")


def test_a_resumed_run_keeps_its_schedule_but_may_drop_unfinished_episodes(config: RunConfig, tmp_path: Path) -> None:
    train_online(config, tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(ConfigError, match=r"online\.num_envs = 1: it was started with 2"):
        train_online(
            dataclasses.replace(config, online=OnlineConfig(seed_steps=60, capacity=80)), tmp_path / "run", resume=True
        )
    dropped = dataclasses.replace(config, online=dataclasses.replace(config.online, replay_unfinished=False))
    assert train_online(dropped, tmp_path / "run", resume=True)["finished"]


def test_a_replay_without_room_for_an_episode_is_refused_at_the_door(config: RunConfig, tmp_path: Path) -> None:
    small = dataclasses.replace(config, online=dataclasses.replace(config.online, capacity=19))
    with pytest.raises(ConfigError, match=r"online\.capacity = 19, but an episode of Drift-v0 has up to 20 steps"):
        train_online(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_updates_of_a_turn_may_be_whole_only_but_for_rounding(config: RunConfig) -> None:
    uneven = OnlineConfig(num_envs=10, updates_per_step=0.7 + 0.1 + 0.1 + 0.1)
    assert uneven.updates_per_turn != 10
    dataclasses.replace(config, online=uneven)
    with pytest.raises(ConfigError, match="the 1e-10 updates of a turn"):
        dataclasses.replace(config, online=OnlineConfig(updates_per_step=1e-10))


def test_environments_are_closed_when_a_run_fails(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Collector, "close", lambda self: closed.append(self))
    early = dataclasses.replace(config, online=dataclasses.replace(config.online, seed_steps=1))
    with pytest.raises(ConfigError, match="the replay is empty"):
        train_online(early, tmp_path / "run")
    assert len(closed) == 1
