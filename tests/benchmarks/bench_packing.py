"""Packing: eight small runs of a sweep on two cores, against the ideal (the sum of their times alone, divided by two).

    python -m tests.benchmarks.bench_packing --rounds 3      # prints the table of RESULTS.md

Each round measures the eight runs one after another in one process (`--no-ray`), then as Tune trials on a Ray with two CPUs
that runs already; starting their processes counts. It also prints how many threads torch and the numeric libraries have in a
trial: one each, or they fight for the cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.rllib import fakes
from wmrl_ray.config import from_dict
from wmrl_ray.study import Plan, Study, expand
from wmrl_ray.sweep import Job, Outcome, in_process, on_ray, sweep

CORES, RUNS = 2, 8


class Quiet:
    """Listens, and keeps the seconds of each run."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def begin(self, num_jobs: int, num_finished: int) -> None: ...

    def progress(self, name: str, update: int, total: int) -> None: ...

    def end(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.name] = outcome


def plan_of(folder: Path, num_updates: int) -> Plan:
    """Eight seeds of TD3+BC with the paper's sizes on a small dataset."""
    file = folder / "plane.npz"
    if not file.exists():
        fakes.write_plane_dataset(file)
    values = {
        "paper": "bench",
        "table": "packing",
        "seeds": list(range(RUNS)),
        "run": {"num_updates": num_updates, "updates_per_call": 50, "checkpoint_every": num_updates, "log_every": num_updates}
        | {"eval_every": 0, "eval_episodes": 2, "envs_per_runner": 2},
        "variants": {"flat": {}},
        "datasets": {"plane": {"uri": str(file), "env": fakes.PLANE}},
        "algorithms": {"td3_bc": {}},
    }
    return expand(from_dict(Study, values))


def measured(plan: Plan, out: Path, execute: Any) -> float:
    """Seconds of the whole sweep."""
    started = time.monotonic()
    listener = Quiet()
    results = sweep(plan, out, execute, listener)
    seconds = time.monotonic() - started
    assert all(outcome.state == "finished" for _, outcome in results), results
    return seconds


def threads_of(spec: Any, report: Any) -> dict[str, Any]:
    """What a trial has: torch's threads, those of the numeric libraries, and the variable that new libraries read."""
    import torch
    from threadpoolctl import threadpool_info

    pools = {f"{pool['prefix']}": pool["num_threads"] for pool in threadpool_info()}
    return {"torch": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS"), "pools": pools}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2000)
    args = parser.parse_args()
    from wmrl_ray.cli.sweep import THREADS
    from wmrl_ray.rllib import compat
    from wmrl_ray.rllib.trials import run_trials

    compat.init(num_cpus=CORES, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": THREADS})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = plan_of(folder, args.updates)
        found = run_trials(threads_of, {"a": None, "b": None}, folder=folder / ".threads")
        print(f"threads in a trial: {next(iter(found.values())).result}")
        one_by_one, packed, loads = [], [], []
        for k in range(args.rounds):
            loads.append(os.getloadavg()[0])
            one_by_one.append(measured(plan, folder / f"alone{k}", in_process))
            packed.append(measured(plan, folder / f"packed{k}", on_ray(folder / f"packed{k}")))
            print(f"round {k}: {one_by_one[-1]:.1f} s, packed {packed[-1]:.1f} s, load {loads[-1]:.1f}", flush=True)
    alone, together = statistics.median(one_by_one), statistics.median(packed)
    ideal = alone / CORES
    rows = [
        ("one after another, one core", alone, ""),
        (f"ideal on {CORES} cores", ideal, ""),
        (f"Tune, {CORES} at a time", together, f"{together / ideal:.2f} x ideal"),
    ]
    about = f"medians of {args.rounds} rounds, load {min(loads):.1f} to {max(loads):.1f}"
    print(f"\n{RUNS} runs of {args.updates:,} updates, {about}\n")
    print("| | makespan, s | |\n|---|---|---|")
    for label, seconds, note in rows:
        print(f"| {label} | {seconds:.1f} | {note} |")
    print(yaml.safe_dump({"one_by_one": one_by_one, "packed": packed, "loads": loads}, default_flow_style=None))


if __name__ == "__main__":
    main()
