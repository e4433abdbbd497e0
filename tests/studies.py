"""A study of seconds, two Workers of a tiny Manager on the plane, and a sweep of it that is listened to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.rllib import fakes
from wmrl_ray.config import from_dict
from wmrl_ray.study import Plan, Study, expand
from wmrl_ray.sweep import Execute, Job, Outcome, sweep

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


class SweepLog:
    """What a sweep told: names of the jobs that ended, in order."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.updates: list[tuple[str, int, int]] = []

    def begin(self, num_jobs: int, num_finished: int) -> None:
        self.numbers = (num_jobs, num_finished)

    def progress(self, name: str, update: int, total: int) -> None:
        self.updates.append((name, update, total))

    def end(self, job: Job, outcome: Outcome) -> None:
        self.jobs.append(job.name)


def run_sweep(plan: Plan, out: Path, execute: Execute, **kwargs: Any) -> tuple[dict[str, Outcome], SweepLog]:
    """The outcome of every cell, by run, and what the sweep told."""
    log = SweepLog()
    results = sweep(plan, out, execute, log, **kwargs)
    assert [cell for cell, _ in results] == plan.cells
    return {cell.run: outcome for cell, outcome in results}, log
