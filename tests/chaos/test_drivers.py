"""The driver is killed; the same command goes on from the newest checkpoint, and nobody whom it started stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import traps
from tests.chaos.runs import check_same, check_whole, config_of, log_of
from wmrl_ray.config import to_dict
from wmrl_ray.online import train_online
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

DRIVER = """
import json, sys
from tests.chaos import traps
from wmrl_ray.config import from_dict
from wmrl_ray.rllib.config import CONFIGS
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.online import train_online
from wmrl_ray.run.config import RunConfig
CONFIGS["own_tdmpc"] = traps.TrappedConfig
train = train_on_ray if sys.argv[3] == "ray" else train_online
train(from_dict(RunConfig, json.loads(sys.argv[1])), sys.argv[2], resume=True)
"""


def killed(config: RunConfig, run_dir: Path, how: str) -> int:
    """Runs the driver in a session of its own until the trap gets it; returns the number of the session."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(to_dict(config)), str(run_dir), how],
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )
    assert process.wait(timeout=400) == -signal.SIGKILL
    return process.pid


def session_of(leader: int) -> set[int]:
    """The processes of the session that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.add(int(stat.parent.name))
    return found


MOMENTS = {
    "sampling": ("step", 85),
    "update": ("sample", 55),
    "saving": ("seal", 3),
    "between manifest and rename": ("replace", 4),  # on Ray the second time of two: a checkpoint is one within another
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_without_ray_killed(moment: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("driver, without Ray", moment)
    point, count = MOMENTS[moment]
    traps.arm(point, count=count)
    config = config_of(num_runners=0)
    killed(config, tmp_path / "run", "plain")
    _resume(line, lambda: train_online(config, tmp_path / "run", resume=True, on_event=line.on_event), tmp_path / "run", plain)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_driver_on_ray_killed(
    moment: str, plain: Path, tmp_path: Path, row: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    line = row("driver with a learner and a runner", moment)
    point, count = MOMENTS[moment]
    traps.arm(point, count=count, target="driver")
    config = config_of(num_learners=1)
    watched = subprocess.Popen(
        [sys.executable, "-c", NAMED + DRIVER, json.dumps(to_dict(config)), str(tmp_path / "run"), "ray"],
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        start_new_session=True,
    )
    assert watched.wait(timeout=400) == -signal.SIGKILL
    until = time.monotonic() + 90
    while (left := session_of(watched.pid)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    request.getfixturevalue("local_ray")
    _resume(line, lambda: train_on_ray(config, tmp_path / "run", resume=True, on_event=line.on_event), tmp_path / "run", plain)


NAMED = """
import os
from tests.chaos import traps
traps.name_target("driver", os.getpid())
"""


def _resume(line: Any, again: Callable[[], dict[str, Any]], run_dir: Path, plain: Path) -> None:
    hit = traps.fired()
    assert hit is not None
    newest = RunDir(run_dir).newest_checkpoint()
    assert newest is not None
    reached = max(entry["update"] for entry in log_of(run_dir))
    started = time.time()
    check_whole(run_dir, again(), plain)
    check_same(run_dir, plain)
    first = next(when for when, event in line.events if event.kind == "update" and event.update > reached)
    at = int(newest.name)
    assert line.events[0][1].update == at
    result = f"the same command resumed from update {at}; same result to the bit"
    line.write(result, first - started, f"nothing; {reached - at} to {reached - at + 12} updates made again")
