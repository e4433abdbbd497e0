"""What is doubtful about a dataset is told at the start of each run that learns from it, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.cli.conftest import Wmrl
from wmrl_ray.data.datasets import open_dataset

STEPS, EPISODES = 12, 6
COMMON = {
    "num_updates": 4,
    "batch_size": 4,
    "updates_per_call": 2,
    "log_every": 2,
    "eval_every": 0,
    "eval_episodes": 1,
    "checkpoint_every": 4,
    "num_eval_runners": 0,
    "env": "Pendulum-v1",
    "env_config": {"max_episode_steps": 5},
}
LATENT = {"latent_dim": 8, "encoder_dim": 16, "mlp_dim": 12, "simnorm_dim": 4}
SMALL = {
    "model": LATENT,
    "plan": {"horizon": 2, "num_samples": 4, "num_policy": 2, "num_elites": 2, "iterations": 1},
    "gamma": 0.9,
}
ONLINE = {"algorithm": "tdmpc2", "agent": SMALL, "online": {"seed_steps": 10}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """D4RL's layout without next_observations and timeouts: episodes that end in a terminal step."""
    rng, rows = np.random.default_rng(0), STEPS * EPISODES
    np.savez(
        tmp_path / "cut.npz",
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        rewards=rng.normal(size=rows).astype(np.float32),
        terminals=np.arange(1, rows + 1) % STEPS == 0,
    )
    return tmp_path / "cut.npz"


@pytest.mark.parametrize("values", [{"algorithm": "bc"}, ONLINE], ids=["offline", "online"])
def test_a_run_warns_once_of_what_its_reader_could_not_know(wmrl: Wmrl, source: Path, tmp_path: Path, values) -> None:
    check_warning(wmrl, source, tmp_path, values, "--no-ray")


@pytest.mark.ray
def test_a_run_on_ray_warns_too(wmrl: Wmrl, source: Path, tmp_path: Path, local_ray: None) -> None:
    check_warning(wmrl, source, tmp_path, {"algorithm": "bc"}, "--debug")


def check_warning(wmrl: Wmrl, source: Path, tmp_path: Path, values: dict[str, Any], flag: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**COMMON, "dataset": str(source), **values}))
    outcome = wmrl("train", tmp_path / "run.yaml", "--run-dir", tmp_path / "run", flag)
    assert outcome.code == 0, outcome.err
    assert [event["event"] for event in outcome.events[:3]] == ["start", "warning", "update"]
    (warning,) = [event for event in outcome.events if event["event"] == "warning"]
    notes = open_dataset(source).card.notes
    assert len(notes) == 2 and all(note in warning["message"] for note in notes)
    assert warning["message"].startswith("dataset cut: ") and "\n" not in warning["message"]
