"""A small agent, and the comparison of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmrl_ray import checkpoint
from wmrl_ray.run.folder import RunDir

SMALL = {
    "model": {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 3, "num_samples": 8, "num_policy": 4, "num_elites": 4, "iterations": 2},
}


def learned(path: Path) -> list[dict[str, float]]:
    """What a run logged, without its times."""
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in RunDir(path).read_metrics()]


def same_checkpoint(a: Path, b: Path) -> None:
    trees = [checkpoint.load(RunDir(path).newest_checkpoint() or path)[0] for path in (a, b)]
    for tree in trees:
        for name in ("act_s", "env_s"):
            del tree["collector"]["statistics"][name]
    equal(*trees)


def equal(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            equal(*pair, f"{path}/{i}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        assert np.array_equal(np.asarray(a), np.asarray(b)), path
    else:
        assert a == b, path
