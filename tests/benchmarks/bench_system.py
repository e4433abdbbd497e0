"""Beside the algorithm: opening 1e6 steps, sampling windows, the share of the bare loop's speed that Ray leaves, memory.

python -m tests.benchmarks.bench_system
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import interleaved, machine, table

OBS, ACTION, STEPS, EPISODE = 29, 8, 1_000_000, 1_000  # antmaze's sizes
BATCH, HORIZON, UPDATES = 256, 5, 10
ENV = "wmrl/AntMaze-UMaze-v0"


def write_dataset(path: Path) -> None:
    """1e6 random steps in the flat layout. Only sizes matter here; nothing is learned from it."""
    generator = np.random.default_rng(0)
    rows = STEPS + STEPS // EPISODE
    starts = np.arange(0, rows + 1, EPISODE + 1)
    last = np.isin(np.arange(rows), starts[1:] - 1)
    action = generator.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    action[last] = 0
    np.savez(
        path,
        obs=generator.standard_normal((rows, OBS), np.float32),
        action=action,
        reward=np.where(last, 0, generator.random(rows)).astype(np.float32),
        terminated=np.zeros(rows, np.uint8),
        episode_starts=starts,
    )


def in_process(name: str, *arguments: str) -> dict[str, Any]:
    """Runs one measurement of this file in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_system", "--only", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def rss_mib() -> float:
    """The largest resident set of this process so far; mapped pages count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_once(uri: str) -> dict[str, Any]:
    from wmrl_ray.data import open_dataset

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        open_dataset(uri)
        seconds.append(time.perf_counter() - start)
    return {"open_s": seconds[0], "again_s": seconds[1]}


def sample(uri: str) -> dict[str, Any]:
    from wmrl_ray.data import Replay, open_dataset

    replay = Replay(open_dataset(uri), seed=0)
    timing = interleaved({"sample": lambda: replay.sample(BATCH, HORIZON)}, repetitions=300, warmup=20)["sample"]
    return {"ms": timing.wall_ms, "cpu_ms": timing.cpu_ms}


def learner_memory(uri: str) -> dict[str, Any]:
    """A learner after 300 updates, which have touched most pages of the data."""
    from wmrl_ray.data import open_dataset
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.train import build_agent, build_replay, update_many

    config = RunConfig("iql_tdmpc", uri, batch_size=BATCH)
    dataset = open_dataset(uri)
    before = rss_mib()
    agent, replay = build_agent(config, dataset), build_replay(config, dataset)
    update_many(agent, replay, 300, BATCH)
    return {"rss_mib": rss_mib(), "before_mib": before}


def bare_and_ray(uri: str, repetitions: int, num_learners: int) -> dict[str, Any]:
    """The same updates by `update_many` and by `Algorithm.train()`, in turn; and the memory of all of it."""
    import ray

    from wmrl_ray.data import open_dataset
    from wmrl_ray.rllib import compat
    from wmrl_ray.rllib.config import IQLTDMPCConfig
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.train import build_agent, build_replay, update_many

    config = RunConfig("iql_tdmpc", uri, env=ENV, batch_size=BATCH, num_learners=num_learners)
    dataset = open_dataset(uri)
    agent, replay = build_agent(config, dataset), build_replay(config, dataset)
    compat.init(debug=False, num_cpus=4)
    settings = IQLTDMPCConfig().dataset(uri).environment(ENV).learners(num_learners=num_learners)
    algorithm = settings.training(batch_size=BATCH, updates_per_call=UPDATES).build_algo()
    try:
        calls: dict[str, Callable[[], object]] = {
            "bare": lambda: update_many(agent, replay, UPDATES, BATCH),
            "ray": algorithm.train,
        }
        timings = interleaved(calls, repetitions)
    finally:
        algorithm.stop()
        ray.shutdown()
    pairs = [bare / on_ray for bare, on_ray in zip(timings["bare"].wall, timings["ray"].wall, strict=True)]
    return {
        "bare_per_s": 1e3 * UPDATES / timings["bare"].wall_ms,
        "ray_per_s": 1e3 * UPDATES / timings["ray"].wall_ms,
        "median_ratio": float(np.median(pairs)),
        "rss_mib": rss_mib(),
    }


def measure_one(name: str, uri: str, repetitions: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "open": lambda: open_once(uri),
        "sample": lambda: sample(uri),
        "memory": lambda: learner_memory(uri),
        "ray-0": lambda: bare_and_ray(uri, repetitions, 0),
        "ray-1": lambda: bare_and_ray(uri, repetitions, 1),
    }
    return measurements[name]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one measurement, as JSON, in this process (with --uri)")
    parser.add_argument("--uri")
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.only:
        print(json.dumps(measure_one(arguments.only, arguments.uri, arguments.repetitions)))
        return

    with tempfile.TemporaryDirectory() as folder:
        os.environ["WMRL_CACHE_DIR"] = f"{folder}/cache"
        path = Path(folder) / "steps.npz"
        write_dataset(path)
        given = ("--uri", str(path), "--repetitions", str(arguments.repetitions))
        first, *later = [in_process("open", *given) for _ in range(6)]
        windows, memory = in_process("sample", *given), in_process("memory", *given)
        on_ray = {n: in_process(f"ray-{n}", *given) for n in (0, 1)}
    rows = [
        ["open 1e6 steps, first time (reads, hashes, writes the cache)", f"{first['open_s']:.2f} s"],
        ["open 1e6 steps, later, in a new process (imports included)", f"{np.median([x['open_s'] for x in later]):.3f} s"],
        ["open 1e6 steps, again in that process", f"{np.median([x['again_s'] for x in later]):.3f} s"],
        [f"sample {BATCH} windows of {HORIZON + 1} observations", f"{windows['ms']:.2f} ms ({windows['cpu_ms']:.2f} ms CPU)"],
        ["learner with 1e6 mapped steps, after 300 updates", f"{memory['rss_mib']:.0f} MiB RSS"],
    ]
    for n, r in on_ray.items():
        speed = f"{r['ray_per_s']:.2f} of {r['bare_per_s']:.2f} updates/s, median of pairs {r['median_ratio']:.1%}"
        rows.append([f"Algorithm.train() beside the bare loop, num_learners = {n} ({UPDATES} updates a call)", speed])
        rows.append(
            [f"driver of that (bare loop and Algorithm in one process), num_learners = {n}", f"{r['rss_mib']:.0f} MiB RSS"]
        )
    print(f"{machine()}\n\n{table(['what', 'measured'], rows)}")


if __name__ == "__main__":
    main()
