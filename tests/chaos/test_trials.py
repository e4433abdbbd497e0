"""A run of a sweep is killed: Tune starts it again, and it goes on from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import traps
from tests.chaos.runs import log_of
from tests.rllib import fakes
from tests.studies import run_sweep, tiny_plan
from wmrl_ray.run.folder import RunDir
from wmrl_ray.sweep import in_process, on_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

MOMENTS = {"sampling": ("step", 5), "update": ("sample", 6), "saving": ("seal", 2)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_trial_killed(moment: str, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("trial of a sweep", moment)
    file = str(fakes.write_plane_dataset(tmp_path / "plane.npz"))
    run = {"num_updates": 12, "updates_per_call": 2, "checkpoint_every": 4, "log_every": 2, "eval_every": 6, "batch_size": 8}
    plan = tiny_plan(
        tmp_path / "data",
        run={**run, "eval_episodes": 2, "envs_per_runner": 2},
        datasets={"plane": {"uri": file, "env": traps.TRAP_PLANE}},
    ).select(["plane/bc/baseline"])
    name = "plane/bc-baseline-s0"
    run_sweep(plan, tmp_path / "whole", in_process)
    point, count = MOMENTS[moment]
    traps.arm(point, count=count)
    outcomes, _ = run_sweep(plan, tmp_path / "hurt", on_ray(tmp_path / "hurt", max_failures=1))
    ended, hit = time.time(), traps.fired()
    assert hit is not None and outcomes[name].state == "finished", outcomes

    def learned(out: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in entry.items() if not k.startswith("time")} for entry in log_of(out / name)]

    assert learned(tmp_path / "hurt") == learned(tmp_path / "whole")
    newest = RunDir(tmp_path / "hurt" / name).newest_checkpoint()
    assert newest is not None and newest.name == "00000012"
    line.write("started again, resumed; same result to the bit", ended - hit["time"], "at most 4 updates made again")


def test_a_sweep_that_is_to_stop_leaves_one_checkpoint_of_every_run_at_work(tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("sweep", "SIGTERM's request to stop")
    file = str(fakes.write_plane_dataset(tmp_path / "plane.npz"))
    run = {"num_updates": 100_000_000, "updates_per_call": 2, "checkpoint_every": 100_000_000, "log_every": 2, "eval_every": 0}
    plan = tiny_plan(
        tmp_path / "data",
        run={**run, "eval_episodes": 2, "envs_per_runner": 2, "batch_size": 8},
        datasets={"plane": {"uri": file, "env": traps.TRAP_PLANE}},
    ).select(["plane/bc/baseline"])
    name, asked = "plane/bc-baseline-s0", []

    def should_stop() -> bool:
        started = (tmp_path / "out" / name / "metrics.jsonl").exists() and bool(log_of(tmp_path / "out" / name))
        if started and not asked:
            asked.append(time.time())
        return started

    outcomes, _ = run_sweep(plan, tmp_path / "out", on_ray(tmp_path / "out"), should_stop=should_stop)
    stopped_s = time.time() - asked[0]
    assert (outcomes[name].state, stopped_s < 60) == ("stopped", True)
    (written,) = (tmp_path / "out" / name / "checkpoints").iterdir()
    assert int(written.name) == outcomes[name].updates > 0
    assert RunDir(tmp_path / "out" / name).newest_checkpoint() == written
    line.write("one checkpoint where it stood; the sweep ended", stopped_s, "nothing")
