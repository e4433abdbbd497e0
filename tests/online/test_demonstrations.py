"""Imitation: half of every batch is an expert's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.online.runs import same_checkpoint
from wmrl_ray.collect import Collector
from wmrl_ray.data.datasets import dataset_from_episodes
from wmrl_ray.data.episode import DataError
from wmrl_ray.online import train_online
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir
from wmrl_ray.train import build_replay


def test_half_of_every_batch_is_the_experts(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = Collector("Drift-v0", num_envs=4, seed=9).collect(None, 60)
    card = {"env_id": "Drift-v0", "ref_min_score": -20.0, "ref_max_score": 20.0}
    dataset = dataset_from_episodes(episodes, name="expert", **card)
    monkeypatch.setattr("wmrl_ray.online.open_dataset", lambda uri: dataset)
    online = dataclasses.replace(config.online, num_demonstrations=3)
    config = dataclasses.replace(config, algorithm="imitator", dataset="expert", env=None, online=online)
    train_online(config, tmp_path / "whole")
    lines = RunDir(tmp_path / "whole").read_metrics()
    assert all(line["batch/expert"] == 0.5 for line in lines if "loss/model" in line)
    assert any("eval/score_mean" in line for line in lines)  # on the demonstrations' scale
    assert json.loads((tmp_path / "whole" / "dataset.json").read_text())["name"] == "expert"
    answers = iter([False] * 4 + [True])
    train_online(config, tmp_path / "parts", should_stop=lambda: next(answers))
    train_online(config, tmp_path / "parts", resume=True)
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")

    replay = build_replay(config, dataset)
    with pytest.raises(DataError, match="replay is empty"):
        replay.check_window(3)
    for episode in episodes[5:9]:
        replay.add(episode)
    batch = replay.sample(200, 3, return_to_go=True)
    assert batch.is_expert is not None and batch.obs.shape == (400, 4, 3) and batch.return_to_go is not None

    def sources(rows: torch.Tensor) -> set[int]:
        """Numbers of the episodes that the rows' first observations are of."""
        return {n for obs in rows for n, e in enumerate(episodes) if (e.obs == obs.numpy()).all(1).any()}

    assert sources(batch.obs[batch.is_expert][:, 0]) == {0, 1, 2}
    assert sources(batch.obs[~batch.is_expert][:, 0]) == {5, 6, 7, 8}
