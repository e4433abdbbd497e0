"""The run that every row hurts, and what must hold for it afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.chaos import traps
from wmrl_ray import checkpoint
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.folder import RunDir


def config_of(*, num_learners: int = 0, num_runners: int = 1, **changes: Any) -> RunConfig:
    """120 updates and steps of a tiny TD-MPC; a line of the log every 12, a checkpoint every 24."""
    online = OnlineConfig(num_runners=num_runners, num_envs=2, seed_steps=48, capacity=200)
    return traps.run_config(num_learners=num_learners, online=online, **changes)


def log_of(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def learned(run_dir: Path) -> dict[str, np.ndarray]:
    """What the run came to: the agent's parameters and optimisers, and the episodes in its replay, as its last checkpoint has
    them. Of the log, what was collected (what Ray reports of losses are means over a call, without Ray they are the last).
    """
    newest = RunDir(run_dir).newest_checkpoint()
    assert newest is not None
    tree, _ = checkpoint.load(newest / "policy" if (newest / "policy").is_dir() else newest)
    replay = tree["streams"][0]["replay"] if "streams" in tree else tree["replay"]
    found = {f"agent/{name}": value for name, value in flat(tree["agent"])}
    found |= {f"replay/{name}": value for name, value in flat(replay["online"])}
    for name in ("online/steps", "online/episodes", "online/replay_steps"):
        found[name] = np.array([line[name] for line in log_of(run_dir) if name in line])
    return found


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Its tensors and arrays. Without the random stream of acting, which runners have for themselves."""
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flat(value, f"{path}/{name}")
    elif isinstance(tree, torch.Tensor | np.ndarray) and not path.endswith("act"):
        yield path, np.asarray(tree)


def check_same(run_dir: Path, plain: Path) -> None:
    """To the bit."""
    ours, expected = learned(run_dir), learned(plain)
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def check_whole(run_dir: Path, result: dict[str, Any], plain: Path) -> dict[str, float]:
    """Every update once, every step counted once, the last checkpoint complete; returns the last line of the log."""
    without = json.loads((plain / "result.json").read_text())
    assert result["steps"] == without["steps"]
    return check_log(run_dir, result)


def check_log(run_dir: Path, result: dict[str, Any]) -> dict[str, float]:
    """As `check_whole`, where how many steps were taken is not fixed."""
    assert (result["updates"], result["finished"]) == (120, True)
    lines = [line for line in log_of(run_dir) if "loss/model" in line]
    assert [line["update"] for line in lines] == list(range(12, 121, 12))
    newest = RunDir(run_dir).newest_checkpoint()
    assert newest is not None and newest.name == "00000120"
    assert [path.name for path in newest.parent.iterdir() if path.name.startswith(".")] == []
    return lines[-1]
