"""The run that every row hurts, and what must hold for it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.chaos import traps
from wmrl_ray.run import OnlineConfig, RunConfig, RunDir


def config_of(*, num_learners: int = 0, num_runners: int = 1, **changes: Any) -> RunConfig:
    """120 updates and steps of a tiny TD-MPC; a line of the log every 12, a checkpoint every 24."""
    online = OnlineConfig(num_runners=num_runners, num_envs=2, seed_steps=48, capacity=200)
    return traps.run_config(num_learners=num_learners, online=online, **changes)


def log_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def learned(run_dir: Path) -> list[dict[str, float]]:
    """What was learned and collected; without times, and without what only runs on Ray count."""
    drop = ("time", "eval/", "online/lost", "online/steps_per_s")
    return [{k: v for k, v in line.items() if not k.startswith(drop)} for line in log_of(run_dir)]


def check_whole(run_dir: Path, result: dict[str, Any], plain: Path) -> dict[str, float]:
    """Every update once, every step counted once, the last checkpoint complete; returns the last line of the log."""
    without = json.loads((plain / "result.json").read_text())
    assert (result["updates"], result["finished"], result["steps"]) == (120, True, without["steps"])
    lines = [line for line in log_of(run_dir) if "loss/model" in line]
    assert [line["update"] for line in lines] == list(range(12, 121, 12))
    newest = RunDir(run_dir).newest_checkpoint()
    assert newest is not None and newest.name == "00000120"
    assert [path.name for path in newest.parent.iterdir() if path.name.startswith(".")] == []
    return lines[-1]
