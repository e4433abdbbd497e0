"""A user's mistakes, each with one clear error, and what must hold when a run fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from wmrl_ray.collect import Collector
from wmrl_ray.config import ConfigError
from wmrl_ray.online import train_online
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.train import train


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


def test_environments_are_closed_when_a_run_fails(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Collector, "close", lambda self: closed.append(self))
    early = dataclasses.replace(config, online=dataclasses.replace(config.online, seed_steps=1))
    with pytest.raises(ConfigError, match="the replay is empty"):
        train_online(early, tmp_path / "run")
    assert len(closed) == 1
