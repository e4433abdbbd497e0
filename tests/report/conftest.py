"""Run directories written file by file as `wmrl train` documents them, with numbers chosen by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.studies import ROW, planned, report, write_study

STAND_IN = "A replacement of D4RL's maze2d-umaze, made by wmrl_ray with the same recipe; scores are on its own scale."
CARD = {
    "uri": "minari://wmrl/pointmaze/umaze-v0",
    "name": "wmrl/pointmaze/umaze-v0",
    "sha256": "ab" * 32,
    "num_steps": 1000,
    "num_episodes": 10,
    "episode_length_max": 300,
    "env_spec": '{"id": "wmrl/PointMaze-UMaze-v0", "max_episode_steps": 300}',
    "obs_dim": 4,
    "action_dim": 2,
    "env_id": "wmrl/PointMaze-UMaze-v0",
    "ref_min_score": 20.0,
    "ref_max_score": 220.0,
    "return_mean": 120.0,
    "return_max": 230.0,
    "obs_mean": [0.0] * 4,
    "obs_std": [1.0] * 4,
    "stand_in": STAND_IN,
    "description": "PD controller between random goals",
}
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run(name, algorithm, seed, scores) -> the folder; evaluated every 100 updates, finished unless more are planned."""

    def write(
        name: str,
        algorithm: str = "bc",
        seed: int = 0,
        scores: tuple[float, ...] = (10.0, 30.0),
        *,
        planned: int | None = None,
        trajectories: bool = True,
        card: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        shown = CARD | (card or {})
        planned = 100 * len(scores) if planned is None else planned
        values = {"algorithm": algorithm, "dataset": shown["uri"], "env": None, "seed": seed, "num_updates": planned} | config
        values.setdefault("agent", {"horizon": 1, "lr": 3e-4})
        (run / "config.json").write_text(json.dumps(values))
        (run / "dataset.json").write_text(json.dumps(shown))
        (run / "environment.json").write_text(
            json.dumps({"python": "3.11.2", "packages": {"torch": "2.13.0"}, "git": "abc123"})
        )
        lines = []
        for k, score in enumerate(scores, start=1):
            lines += [
                {"update": 100 * k - 50 * j, "time_s": 2.0 * k - j, "loss/critic": 1.0 / (k + j), "loss/actor": 3.0 - k}
                for j in (1, 0)
            ]
            episode_return = 20.0 + 2.0 * score
            lines.append(
                {"update": 100 * k, "time_s": 2.0 * k, "eval/return_mean": episode_return, "eval/return_std": 5.0}
                | {"eval/score_mean": score, "eval/success_mean": score / 100, "eval/length_mean": 300.0, "eval/episodes": 20}
            )
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if planned == 100 * len(scores):
            (run / "result.json").write_text(json.dumps({"seconds": 2.0 * len(scores), "updates_per_s": 50.0}))
        if trajectories:
            _write_trajectories(run / "trajectories.npz", seed)
        return run

    return write


def _write_trajectories(path: Path, seed: int, num_episodes: int = 5, steps: int = 60) -> None:
    """Smooth random walks inside the U maze's right column, [T+1, 4] each."""
    generator = np.random.default_rng(seed)
    xy = np.clip(generator.normal(0, 0.06, (num_episodes, steps + 1, 2)).cumsum(axis=1), -0.4, 0.4) + [1.0, 0.0]
    obs = np.concatenate([xy, np.zeros_like(xy)], axis=-1).astype(np.float32).reshape(-1, 4)
    np.savez(path, obs=obs, offsets=np.arange(num_episodes + 1) * (steps + 1), returns=np.zeros(num_episodes))


@pytest.fixture
def pair(tmp_path, write_run):
    """pair(baseline scores, scores with intents, ...) -> page, numbers of the study; one run for each score."""

    def make(baseline, ours, *, column="bc", table="table2", other="intents", row=ROW, **changes):
        cells = []
        for variant, scores in (("baseline", baseline), (other, ours)):
            for seed, score in enumerate(scores):
                run = f"{column}-{variant}-{seed}"
                write_run(run, column, seed, (0.0, score), trajectories=False)
                cells.append(planned(column, variant, seed, run, row))
        write_study(tmp_path / "runs", cells, table, **changes)
        return report(tmp_path)

    return make
