"""A run of a sweep is killed: Tune starts it again, and it goes on from its checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos import traps
from tests.chaos.runs import log_of
from tests.rllib import fakes
from tests.studies import run_sweep, tiny_plan, tiny_values
from wmrl_ray.run.folder import RunDir
from wmrl_ray.sweep import in_process, on_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

MOMENTS = {"sampling": ("step", 5), "update": ("sample", 6), "saving": ("seal", 2)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_trial_killed(moment: str, tmp_path: Path, row: Callable[..., Any]) -> None:
    point, count = MOMENTS[moment]
    recovery_s = _hurt(tmp_path, point, count, signal.SIGKILL)
    line = row("trial of a sweep", moment)
    line.write("started again, resumed; same result to the bit", recovery_s, "at most 4 updates made again")


def test_a_trial_stopped(tmp_path: Path, row: Callable[..., Any]) -> None:
    point, count = MOMENTS["update"]
    with pytest.warns(UserWarning, match="showed no sign of life for trial_timeout_s = 10 s"):
        recovery_s = _hurt(tmp_path, point, count, signal.SIGSTOP, trial_timeout_s=10.0)
    line = row("trial of a sweep", "SIGSTOP in an update")
    how = "ended and started again, resumed; same result to the bit (trial_timeout_s = 10)"
    line.write(how, recovery_s, "at most 4 updates made again")


def _hurt(tmp_path: Path, point: str, count: int, signum: int, **limits: float) -> float:
    """A sweep whose trial gets the signal ends as one in which nothing happens; seconds from the signal to its end."""
    file = str(fakes.write_plane_dataset(tmp_path / "plane.npz"))
    run = {"num_updates": 12, "updates_per_call": 2, "checkpoint_every": 4, "log_every": 2, "eval_every": 6, "batch_size": 8}
    plan = tiny_plan(
        tmp_path / "data",
        run={**run, "eval_episodes": 2, "envs_per_runner": 2},
        datasets={"plane": {"uri": file, "env": traps.TRAP_PLANE}},
    ).select(["plane/bc/baseline"])
    name = "plane/bc-baseline-s0"
    run_sweep(plan, tmp_path / "whole", in_process)
    traps.arm(point, count=count, signum=signum)
    outcomes, _ = run_sweep(plan, tmp_path / "hurt", on_ray(tmp_path / "hurt", max_failures=1, **limits))
    ended, hit = time.time(), traps.fired()
    assert hit is not None and outcomes[name].state == "finished", outcomes

    def learned(out: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in entry.items() if not k.startswith("time")} for entry in log_of(out / name)]

    assert learned(tmp_path / "hurt") == learned(tmp_path / "whole")
    newest = RunDir(tmp_path / "hurt" / name).newest_checkpoint()
    assert newest is not None and newest.name == "00000012"
    return ended - hit["time"]


def test_sigterm_leaves_one_checkpoint_of_every_run_at_work(tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("sweep of two runs at work", "SIGTERM")
    run = {"num_updates": 100_000_000, "updates_per_call": 2, "checkpoint_every": 100_000_000, "log_every": 2, "eval_every": 0}
    values = tiny_values(tmp_path, variants={"baseline": {}}, run={**run, "eval_episodes": 2, "batch_size": 8})
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "wmrl_ray", "sweep", str(study), "--out", str(out), "--num-cpus", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    runs = [out / f"plane/{algorithm}-baseline-s0" for algorithm in ("bc", "td3_bc")]
    try:
        until = time.monotonic() + 240
        while not all((run / "metrics.jsonl").exists() and log_of(run) for run in runs):
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        hit = time.time()
        _, err = process.communicate(timeout=120)
        stopped_s = time.time() - hit
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped; the same command goes on from the checkpoints" in err, err
    assert "2 stopped of 2 cells" in err
    for path in runs:
        (written,) = (path / "checkpoints").iterdir()
        assert int(written.name) >= log_of(path)[-1]["update"] > 0
        assert RunDir(path).newest_checkpoint() == written
    assert stopped_s < 60
    line.write("exit code 0; one checkpoint of each run where it stood", stopped_s, "nothing")
