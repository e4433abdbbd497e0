"""TD-MPC at its paper's sizes beside the public code: update and plan, one thread, same process, interleaved.

python -m tests.benchmarks.bench_tdmpc --peer PATH     # PATH: a checkout of nicklashansen/tdmpc, or its git folder
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.calls import VARIANTS, planner, random_batch
from tests.benchmarks.harness import (
    KINDS,
    RATIO_HEADER,
    Timing,
    flops,
    gemm_rates,
    interleaved,
    machine,
    ratio_table,
    table,
    time_shares,
)
from tests.benchmarks.peer import checkout
from tests.benchmarks.peer_tdmpc import PeerTDMPC
from wmrl_ray.core.agents import make_agent

OBS, ACTION, BATCH, HORIZON, ENVS = 17, 6, 512, 5, 8  # cheetah's dimensions, the paper's sizes
THEIRS = "public code"
AT_ONCE = f", {ENVS} environments at once"


def batched_rows(timings: dict[str, Timing]) -> list[list[str]]:
    """Each variant with `ENVS` environments at once, per environment, against itself with one."""
    lines = []
    for name in [name for name in timings if name.endswith(AT_ONCE)]:
        many, one = timings[name], timings[name.removesuffix(AT_ONCE)]
        wall, cpu = many.wall_ms / ENVS, many.cpu_ms / ENVS
        lines.append([name, f"{wall:.1f}", f"{cpu:.1f}", f"{one.wall_ms / wall:.2f}x", f"{one.cpu_ms / cpu:.2f}x"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of nicklashansen/tdmpc or its git folder; else only ours is timed")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    with contextlib.ExitStack() as stack:
        peer = PeerTDMPC(stack.enter_context(checkout(arguments.peer, "src", "cfgs")), OBS, ACTION) if arguments.peer else None
        report(peer, arguments.repetitions, arguments.variants)


def report(peer: PeerTDMPC | None, repetitions: int, variants: list[str]) -> None:
    """Prints every table."""
    batch = random_batch(BATCH, HORIZON, OBS, ACTION)
    agents = {name: make_agent("tdmpc", VARIANTS[name], OBS, ACTION) for name in variants}
    observation = torch.randn(OBS).numpy()

    updates: dict[str, Callable[[], object]] = {}
    plans: dict[str, Callable[[], object]] = {}
    if peer:
        peer.set_batch(batch.obs, batch.action, batch.reward)
        updates[THEIRS], plans[THEIRS] = peer.update, lambda: peer.plan(observation)
    updates |= {f"ours, {name}": lambda agent=agent: agent.update(batch) for name, agent in agents.items()}
    plans |= {f"ours, {name}": planner(agent) for name, agent in agents.items()}
    batched = {f"ours, {name}{AT_ONCE}": planner(agent, ENVS) for name, agent in agents.items()}

    print(f"{machine()}\n{repetitions} interleaved repetitions, medians; ms per call on the clock and of CPU time\n")
    print(f"### update (batch {BATCH}, H {HORIZON})\n{ratio_table(interleaved(updates, repetitions), [THEIRS])}\n")
    timed = interleaved(plans | batched, repetitions)
    single = {name: timing for name, timing in timed.items() if name in plans}
    print(f"### plan (512 + 25 samples, H 5, 6 iterations)\n{ratio_table(single, [THEIRS])}\n")
    print(f"### plan, per environment, against one at a time\n{table(RATIO_HEADER, batched_rows(timed))}\n")

    rates = gemm_rates()
    print(f"### the floor\n{table(['512 x 512 x 512', 'GFLOP/s'], [[name, f'{rate:.0f}'] for name, rate in rates.items()])}\n")
    counted = {"update": {THEIRS: updates.get(THEIRS)}, "plan": {THEIRS: plans.get(THEIRS)}}
    counted_agent = make_agent("tdmpc", VARIANTS["fp32"], OBS, ACTION)
    counted["update"]["ours"], counted["plan"]["ours"] = lambda: counted_agent.update(batch), planner(counted_agent)
    lines: list[list[str]] = []
    spent: list[list[str]] = []
    for what, calls in counted.items():
        for who, call in calls.items():
            if call is not None:
                work = flops(call) / 1e9
                spent.append([what, who, *(f"{share:.0%}" for share in time_shares(call).values())])
                lines.append([what, who, f"{work:.2f}", *(f"{1e3 * work / rate:.1f}" for rate in rates.values())])
    print(table(["", "", "GFLOP of products", *(f"floor ms, {name}" for name in rates)], lines))
    print(f"\n### where the time of an eager fp32 call goes\n{table(['', '', *KINDS], spent)}")


if __name__ == "__main__":
    main()
