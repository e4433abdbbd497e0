"""Demonstrations: the expert's own episodes, on a scale of their own, made in parts that a broken-off pass keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import OnlineTDMPC, registered
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.exporting import export
from wmrl_ray.data.makers import experts
from wmrl_ray.data.makers.experts import expert_dataset_id, make_demonstrations, paper_episodes
from wmrl_ray.rollout import episode_seed, evaluate
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import evaluation_env


class Pusher(OnlineTDMPC):
    """Pushes the point of Drift-v0 back to 0, with noise of its own stream."""

    @torch.no_grad()
    def act(self, obs: Any, plan_state: Any, is_first: Any, *, explore: bool = False, reward: Any = None) -> Any:
        assert not explore
        noise = 0.1 * torch.randn(len(obs), 2, generator=self.act_generator)
        return (noise - 1.5 * obs[:, :2]).clamp(-1, 1), None, {}


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(pusher=Pusher):
        yield


def saved(path: Path, env: str = "Drift-v0", env_config: dict[str, Any] | None = None) -> Path:
    agent = Pusher(Pusher.Config(), 3, 2)
    about = {
        "algorithm": "pusher",
        "agent": {},
        "obs_dim": 3,
        "action_dim": 2,
        "env": env,
        "env_config": env_config or {},
        "update": 7,
    }
    return checkpoint.save(path, {"agent": {"model": agent.model.state_dict()}}, {**about, "dataset": None})


@pytest.mark.parametrize(
    ("task", "count"),
    [("dmc/walker-walk", 100), ("dmc/humanoid-walk", 500), ("dmc/dog-run", 1000), ("dmc/dog-trot", 500), ("myo-key-turn", 100)],
)
def test_the_number_of_demonstrations_is_the_papers(task: str, count: int) -> None:
    assert paper_episodes(task) == count


def test_ids_are_of_the_task() -> None:
    assert expert_dataset_id("dmc/walker-walk") == "wmrl/expert/walker-walk-v0"
    assert expert_dataset_id("Drift-v0") == "wmrl/expert/drift-v0"


def test_demonstrations_are_the_experts_episodes_on_their_own_scale(home: Path) -> None:
    expert = saved(home / "expert")
    made = make_demonstrations("Drift-v0", expert, num_episodes=13, reference_episodes=20, seed=4)
    dataset = open_dataset(made)
    assert made == "wmrl/expert/drift-v0" and len(dataset) == 13 and dataset.card.env_id == "Drift-v0"
    from wmrl_ray.policy import Policy

    agent = Policy.load(expert).agent
    parts = [evaluate(agent, "Drift-v0", n, num_envs=n, seed=episode_seed(4, first)) for first, n in ((0, 10), (10, 3))]
    for episode, expected in zip(dataset, [e for part in parts for e in part.episodes], strict=True):
        assert np.array_equal(episode.obs, expected.obs) and np.array_equal(episode.action, expected.action)
        assert np.array_equal(episode.reward, expected.reward) and episode.terminated == expected.terminated
    returns = [episode.episode_return for episode in dataset]
    assert dataset.card.ref_max_score == pytest.approx(np.mean(returns)) and dataset.card.has_scale
    assert dataset.card.ref_min_score is not None and dataset.card.ref_min_score < np.mean(returns) - 1
    assert f"{np.mean(returns):.4g}" in dataset.card.description and "after 7 updates" in dataset.card.description
    assert not list((home / "minari").rglob("*.npz"))  # the parts are gone
    with pytest.raises(DataError, match="exists already"):
        make_demonstrations("Drift-v0", expert, num_episodes=2)


def test_demonstrations_are_learned_from_with_their_own_action_repeat_only(home: Path) -> None:
    expert = saved(home / "expert", env_config={"action_repeat": 2})
    made = make_demonstrations("Drift-v0", expert, num_episodes=20, reference_episodes=20)
    dataset = open_dataset(made)
    assert dataset.card.action_repeat == 2
    config = RunConfig(algorithm="bc", dataset=made, env_config={"action_repeat": 2})
    assert evaluation_env(config, dataset) == "Drift-v0"
    with pytest.raises(ConfigError, match="action_repeat = 2, but environment 'Drift-v0' takes each action 1 times"):
        evaluation_env(dataclasses.replace(config, env_config={}), dataset)
    assert open_dataset(export(made, home / "demonstrations.parquet", "parquet")).card.action_repeat == 2


def test_a_pass_that_is_broken_off_goes_on_with_what_it_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expert, made = saved(home / "expert"), []
    monkeypatch.setattr(experts, "PART", 3)

    def stop(done: int, total: int) -> None:
        made.append(done)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demonstrations("Drift-v0", expert, num_episodes=8, reference_episodes=5, progress=stop)
    assert not (home / "minari" / "wmrl").exists()
    calls: list[int] = []
    monkeypatch.setattr("wmrl_ray.rollout.evaluate", lambda *args, **kwargs: calls.append(args[2]) or evaluate(*args, **kwargs))
    resumed = make_demonstrations("Drift-v0", expert, num_episodes=8, reference_episodes=5)
    assert calls == [2]  # six were there
    whole = make_demonstrations("Drift-v0", expert, num_episodes=8, reference_episodes=5, dataset_id="wmrl/whole-v0")
    assert open_dataset(resumed).card.sha256 == open_dataset(whole).card.sha256


def test_the_expert_acts_with_other_settings_when_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[str] = []
    act = Pusher.act

    def noted(self: Pusher, *args: Any, **options: Any) -> Any:
        settings.append(self.config.precision)
        return act(self, *args, **options)

    monkeypatch.setattr(Pusher, "act", noted)
    expert = saved(home / "expert")
    make_demonstrations("Drift-v0", expert, num_episodes=2, reference_episodes=2, changes={"precision": "bfloat16"})
    assert set(settings) == {"bfloat16"}
    assert 'acting with {"precision": "bfloat16"}' in open_dataset("wmrl/expert/drift-v0").card.description


def test_what_is_no_expert_of_the_task_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="was trained in 'Pendulum-v1', not in 'Drift-v0'"):
        make_demonstrations("Drift-v0", saved(home / "other", env="Pendulum-v1"), num_episodes=2)
    monkeypatch.setattr(experts, "_random_returns", lambda *args: np.full(20, 100.0))
    with pytest.raises(DataError, match="it is no expert; train it further"):
        make_demonstrations("Drift-v0", saved(home / "worse"), num_episodes=2)
    assert not (home / "minari" / "wmrl").exists()
