"""A study of seconds: two Workers of a tiny Manager on the plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.rllib import fakes
from wmrl_ray.config import from_dict
from wmrl_ray.study import Plan, Study, expand

MANAGER_AGENT = {
    "model": {"latent_dim": 3, "encoder_dim": 8, "hidden_dim": 8},
    "plan": {"horizon": 2, "num_samples": 0, "num_policy": 8, "num_elites": 2, "iterations": 1},
    "skip": 2,
}


def tiny_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """What its YAML would hold; the dataset is written below `folder`, which names it."""
    file = folder / "plane.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fakes.write_plane_dataset(file)
    run = {"num_updates": 4, "updates_per_call": 2, "checkpoint_every": 2, "log_every": 2, "eval_every": 0, "batch_size": 8}
    values = {
        "paper": "test",
        "table": "tiny",
        "seeds": [0],
        "run": {**run, "eval_episodes": 2, "envs_per_runner": 2},
        "variants": {"baseline": {}, "intents": {"num_updates": 2}},
        "datasets": {"plane": {"uri": str(file), "env": fakes.PLANE}},
        "manager": {"run": {"agent": MANAGER_AGENT}},
        "algorithms": {"bc": {}, "td3_bc": {}},
    }
    return values | changes


def tiny_plan(folder: Path, **changes: Any) -> Plan:
    return expand(from_dict(Study, tiny_values(folder, **changes)))
