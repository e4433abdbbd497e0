"""Processes that die, or stop, at a moment that a test has chosen: whoever comes past an armed trap springs it.

A trap is a file, so that every process of a run sees it: `arm(point, ...)` writes it; the process that reaches the point for
the n-th time after that takes the file away and sends the signal. Points: "step" and "reset" of an environment (sampling),
"sample" of a replay (an update), "all_reduce" of gradients, "put" when the learner's weights are in the object store, "fetch"
when it takes episodes, "build" where it is made, "evaluate" of a runner of evaluations, "get_state" of a replay (saving,
where the learner is), "seal" (saving: the files are there, the manifest is not), "replace" (the manifest is there too, in a
folder that has not its name yet).

Importing this module sets the points; runs import it by the environment's id, TRAP_PLANE.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch.distributed as dist

from tests.rllib import fakes, online_fakes
from wmrl_ray import checkpoint
from wmrl_ray.data.replay import Replay
from wmrl_ray.rllib import online_learner
from wmrl_ray.rllib.env_runner import PlannerEnvRunner
from wmrl_ray.rllib.online_learner import OnlineLearner
from wmrl_ray.run.config import RunConfig

FOLDER = "WMRL_TEST_TRAPS"  # environment variable: where traps and pids are
TRAP_PLANE = "tests.chaos.traps:test/TrapPlane-v0"
_passed: Counter[str] = Counter()  # since this process saw the trap that is armed
_seen = 0


def folder() -> Path | None:
    name = os.environ.get(FOLDER)
    return Path(name) if name else None


def arm(point: str, *, count: int = 1, target: str = "self", signum: int = signal.SIGKILL) -> None:
    """At the `count`-th time that a process passes `point`, `signum` goes to `target`: "self", or whoever passed that point
    last ("step" for the runner, "sample" for the learner), or the process that `name_target` named so, or "node", the raylet
    of the runner, or "learner node", that of the learner.
    """
    home = folder()
    assert home is not None
    (home / "fired.json").unlink(missing_ok=True)
    partial = home / ".trap.json"
    partial.write_text(json.dumps({"point": point, "count": count, "target": target, "signal": int(signum)}))
    os.replace(partial, home / "trap.json")


def name_target(name: str, pid: int) -> None:
    """Of a process that passes no point."""
    home = folder()
    assert home is not None
    (home / f"last-{name}").write_text(str(pid))


def last(point: str) -> int:
    """Of whoever passed the point last."""
    home = folder()
    assert home is not None
    return int((home / f"last-{point}").read_text())


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def fired() -> dict[str, Any] | None:
    """When the trap was sprung, and the process that was hit."""
    file = (folder() or Path()) / "fired.json"
    return json.loads(file.read_text()) if file.exists() else None


def pids() -> set[int]:
    """Of every process that passed a point."""
    return {int(file.name) for file in ((folder() or Path()) / "pids").iterdir()}


def reach(point: str) -> None:
    global _seen
    home = folder()
    if home is None or not home.is_dir():
        return
    (home / "pids").mkdir(exist_ok=True)
    (home / "pids" / str(os.getpid())).touch()
    (home / f"last-{point}").write_text(str(os.getpid()))
    try:
        content = (home / "trap.json").read_text()
        stamp = (home / "trap.json").stat().st_mtime_ns
    except FileNotFoundError:
        return
    trap = json.loads(content)
    if trap["point"] != point:
        return
    if stamp != _seen:
        _seen = stamp
        _passed.clear()
    _passed[point] += 1
    if _passed[point] < trap["count"]:
        return
    try:
        os.rename(home / "trap.json", home / "sprung.json")  # one process only
    except FileNotFoundError:
        return
    nodes = {"node": "step", "learner node": "sample"}
    target = trap["target"]
    pid = os.getpid() if target == "self" else parent_of(last(nodes[target])) if target in nodes else last(target)
    (home / ".fired.json").write_text(json.dumps({"time": time.time(), "pid": pid}))
    os.replace(home / ".fired.json", home / "fired.json")
    os.kill(pid, trap["signal"])


def _trapped(function: Callable[..., Any], point: str, *, after: bool = False) -> Callable[..., Any]:
    def passing(*args: Any, **kwargs: Any) -> Any:
        if not after:
            reach(point)
        result = function(*args, **kwargs)
        if after:
            reach(point)
        return result

    return passing


Replay.sample = _trapped(Replay.sample, "sample")
Replay.get_state = _trapped(Replay.get_state, "get_state")
checkpoint.seal = _trapped(checkpoint.seal, "seal")
checkpoint.replace = _trapped(checkpoint.replace, "replace")
dist.all_reduce = _trapped(dist.all_reduce, "all_reduce")
OnlineLearner.build = _trapped(OnlineLearner.build, "build")  # type: ignore[method-assign]
OnlineLearner._publish = _trapped(OnlineLearner._publish, "put", after=True)  # type: ignore[method-assign]
online_learner.fetch = _trapped(online_learner.fetch, "fetch", after=True)
PlannerEnvRunner.run_episodes = _trapped(PlannerEnvRunner.run_episodes, "evaluate")  # type: ignore[method-assign]


class TrapPlane(fakes.Plane):
    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        reach("reset")
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reach("step")
        return super().step(action)


gym.register("test/TrapPlane-v0", entry_point=TrapPlane, max_episode_steps=max(fakes.LENGTHS))


class TrappedTDMPC(online_fakes.OwnTDMPC):
    """Of this module, so that a learner imports it."""


class TrappedConfig(online_fakes.OwnTDMPCConfig):
    agent_name = "own_tdmpc"
    default_algo_class = TrappedTDMPC


def run_config(**changes: Any) -> RunConfig:
    return online_fakes.run_config(**{"env": TRAP_PLANE, "eval_every": 0, "checkpoint_every": 24, "log_every": 12, **changes})
