"""The hierarchy on Ray: a Manager is trained, its intents reach runners, and Workers that know nothing of them learn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rllib import fakes
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents.manager import Manager
from wmrl_ray.envs.intents import load_manager
from wmrl_ray.rllib import ManagerConfig
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run import RunConfig
from wmrl_ray.train import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

MANAGER = {
    "model": {"latent_dim": 6, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 2, "num_samples": 0, "num_policy": 8, "num_elites": 4, "iterations": 1},
    "skip": 3,
}


@pytest.fixture
def manager_run(plane_dataset: str) -> RunConfig:
    every = dict.fromkeys(("num_updates", "eval_every", "checkpoint_every"), 12)
    settings = {"batch_size": 8, "updates_per_call": 2, "log_every": 4, "seed": 5, "device": "cpu", **every}
    return from_dict(RunConfig, {"algorithm": "manager", "dataset": plane_dataset, "agent": MANAGER, **settings})


def logged(run_dir: Path) -> list[dict[str, float]]:
    """The updates' numbers, without times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]


@pytest.mark.parametrize("num_learners", [0, 1])
def test_a_manager_trained_on_ray_is_the_one_of_the_loop_without_ray(
    manager_run: RunConfig, tmp_path: Path, num_learners: int
) -> None:
    config = dataclasses.replace(manager_run, num_learners=num_learners, num_eval_runners=2)
    train(manager_run, tmp_path / "plain")
    result = train_on_ray(config, tmp_path / "ray")
    assert result["finished"] and not any(name.startswith("eval/") for name in result)
    losses = logged(tmp_path / "ray")
    assert [line["update"] for line in losses] == [4, 8, 12]
    assert losses == logged(tmp_path / "plain")
    ours, theirs = (load_manager(tmp_path / name) for name in ("ray", "plain"))
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, theirs.model.state_dict()[name], msg=name)


def test_the_managers_rllib_algorithm_trains_saves_and_refuses_to_act(plane_dataset: str, tmp_path: Path) -> None:
    config = ManagerConfig().dataset(plane_dataset).training(agent=MANAGER, batch_size=8, updates_per_call=3)
    algorithm = config.learners(num_learners=1).evaluation(evaluation_num_env_runners=1).build_algo()
    try:
        assert algorithm.eval_env_runner_group is None
        assert all(np.isfinite(value) for value in fakes.losses(algorithm.train()).values())
        manager = load_manager(algorithm.save_to_path(tmp_path / "saved"))
        assert isinstance(manager, Manager) and manager.config.skip == 3
        with pytest.raises(ConfigError, match="evaluate its Workers"):
            algorithm.evaluate()
    finally:
        algorithm.stop()
