"""IQ-MPC at its paper's sizes beside the public code: plan and update, one thread, same process, interleaved.

python -m tests.benchmarks.bench_iq_mpc --peer PATH     # PATH: a checkout of TobyLeelsz/iqmpc, or its git folder
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.calls import VARIANTS, planner, random_batch
from tests.benchmarks.harness import flops, gemm_rates, interleaved, machine, ratio_table, table
from tests.benchmarks.peer import checkout
from tests.benchmarks.peer_iqmpc import PeerIQMPC
from wmrl_ray.core.agents import make_agent

OBS, ACTION, BATCH, HORIZON = 91, 39, 256, 3  # object-hold's dimensions; the batch is of each kind of rows
THEIRS = "public code"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of TobyLeelsz/iqmpc or its git folder; else only ours is timed")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--what", nargs="*", default=["plan", "update"], choices=["plan", "update"])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--gradient-penalty", action="store_true", help="updates with the gradient penalty")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(checkout(arguments.peer, "tdmpc2")) if arguments.peer else None
        report(root, arguments)


def report(root: Path | None, arguments: argparse.Namespace) -> None:
    """Prints every table."""
    batch, penalty = random_batch(2 * BATCH, HORIZON, OBS, ACTION, num_experts=BATCH), arguments.gradient_penalty
    plans: dict[str, Callable[[], object]] = {}
    updates: dict[str, Callable[[], object]] = {}
    if root is not None:
        peer, obs = PeerIQMPC(root, OBS, ACTION, gradient_penalty=penalty), torch.randn(OBS)
        peer.set_batch(batch)
        plans[THEIRS], updates[THEIRS] = lambda: peer.plan(obs), peer.update
    for variant in arguments.variants:
        agent = make_agent("iq_mpc", {**VARIANTS[variant], "episode_len": 100, "gradient_penalty": penalty}, OBS, ACTION)
        plans[f"ours, {variant}"], updates[f"ours, {variant}"] = planner(agent), lambda agent=agent: agent.update(batch)
    print(f"{machine()}\n{arguments.repetitions} interleaved repetitions, medians; ms per call on the clock and of CPU time")
    for what, calls in {"plan": plans, "update": updates}.items():
        if what in arguments.what:
            timed = interleaved(calls, arguments.repetitions, warmup=2)
            print(f"\n### {what} ({OBS}/{ACTION}, H {HORIZON}, {BATCH} + {BATCH} rows)")
            print(ratio_table(timed, [THEIRS]), flush=True)
    rates = gemm_rates()
    print(f"\n### the floor\n{table(['512 x 512 x 512', 'GFLOP/s'], [[name, f'{rate:.0f}'] for name, rate in rates.items()])}")
    agent = make_agent("iq_mpc", {"episode_len": 100, "gradient_penalty": penalty}, OBS, ACTION)
    counted: dict[str, Callable[[], object]] = {"ours, plan": planner(agent), "ours, update": lambda: agent.update(batch)}
    print("\n" + table(["products in", "GFLOP"], [[name, f"{flops(call) / 1e9:.1f}"] for name, call in counted.items()]))


if __name__ == "__main__":
    main()
