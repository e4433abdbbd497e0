"""The Workers of the IQL-TD-MPC paper beside CORL's own files: one update, one thread, same process, interleaved.

python -m tests.benchmarks.bench_workers --peer PATH     # PATH: a checkout of corl-team/CORL, or its git folder
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.calls import VARIANTS, random_batch
from tests.benchmarks.harness import KINDS, flops, gemm_rates, interleaved, machine, table, time_shares
from tests.benchmarks.peer_corl import FILES, make_update
from wmrl_ray.core.agents import AGENTS, make_agent
from wmrl_ray.core.batch import Batch

OBS, ACTION = 17, 6  # halfcheetah's and walker's
BATCH, BATCH_DT, SEQUENCE = 256, 64, 20  # CORL's defaults


def batch_of(name: str) -> Batch:
    return random_batch(BATCH_DT, SEQUENCE, OBS, ACTION) if name == "dt" else random_batch(BATCH, 1, OBS, ACTION)


def repeat(call: Callable[[], object], times: int) -> Callable[[], None]:
    """One measurement; an even number, since TD3+BC's actor learns in every second update."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of corl-team/CORL or its git folder; else only ours is timed")
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--updates", type=int, default=4, help="per repetition")
    parser.add_argument("--variants", nargs="*", default=["fp32", "bf16"], choices=list(VARIANTS))
    parser.add_argument("--names", nargs="*", default=list(FILES), choices=list(FILES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    names = [name for name in arguments.names if name in AGENTS]
    print(f"{machine()}\nobs {OBS}, action {ACTION}, batch {BATCH} (dt: {BATCH_DT} x {SEQUENCE} steps)")
    print(f"{arguments.repetitions} interleaved repetitions of {arguments.updates} updates, medians; ms per update\n")
    rate = max(rate for route, rate in gemm_rates(256, 256).items() if route.startswith("fp32"))
    lines, spent = [], []
    for name in names:
        batch = batch_of(name)
        agents = {variant: make_agent(name, VARIANTS[variant], OBS, ACTION) for variant in arguments.variants}
        calls: dict[str, Callable[[], object]] = {
            variant: functools.partial(agent.update, batch) for variant, agent in agents.items()
        }
        if arguments.peer:
            calls["CORL"] = make_update(arguments.peer, name, batch)
        timings = interleaved({who: repeat(call, arguments.updates) for who, call in calls.items()}, arguments.repetitions)
        theirs = timings.get("CORL")
        for who, timing in timings.items():
            ratios = ["-", "-"]
            if theirs:
                ratios = [f"{theirs.wall_ms / timing.wall_ms:.2f}x", f"{theirs.cpu_ms / timing.cpu_ms:.2f}x"]
            floor = f"{flops(repeat(calls[who], 2)) / 2 / rate / 1e6:.2f}" if who in ("fp32", "CORL") else "-"
            ms = [f"{t / arguments.updates:.2f}" for t in (timing.wall_ms, timing.cpu_ms)]
            lines.append([name, who, *ms, *ratios, floor])
        spent.append([name, *(f"{share:.0%}" for share in time_shares(calls[arguments.variants[0]]).values())])
    print(table(["", "", "ms", "CPU ms", "speed-up", "in CPU time", "floor ms"], lines))
    print(f"\nfloor: the products alone at {rate:.0f} GFLOP/s, this run's rate for 256 x 256 x 256\n")
    if spent:
        print(f"### where the time of ours goes\n{table(['', *KINDS], spent)}")


if __name__ == "__main__":
    main()
