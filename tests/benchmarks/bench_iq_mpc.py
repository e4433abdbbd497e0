"""IQ-MPC at its paper's sizes beside the public code: plan and update, one thread, same process, interleaved.

python -m tests.benchmarks.bench_iq_mpc --peer PATH     # PATH: a checkout of TobyLeelsz/iqmpc, or its git folder
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.harness import Timing, flops, gemm_rates, interleaved, machine, table
from tests.benchmarks.peer_iqmpc import PeerIQMPC
from tests.benchmarks.peer_tdmpc2 import checkout
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import Agent
from wmrl_ray.core.batch import Batch

OBS, ACTION, BATCH, HORIZON = 91, 39, 256, 3  # object-hold's dimensions; the batch is of each kind of rows
THEIRS = "public code"
VARIANTS = {
    "fp32": {"precision": "float32", "compile": "off"},
    "bf16": {"precision": "bfloat16", "compile": "off"},
    "fp32 compiled": {"precision": "float32", "compile": "default"},
    "bf16 compiled": {"precision": "bfloat16", "compile": "default"},
}


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    full = torch.ones(2 * BATCH, HORIZON, dtype=torch.bool)
    return Batch(
        obs=normal(2 * BATCH, HORIZON + 1, OBS),
        action=normal(2 * BATCH, HORIZON, ACTION).clamp(-1, 1),
        reward=normal(2 * BATCH, HORIZON),
        terminated=~full,
        valid=full,
        is_expert=torch.arange(2 * BATCH) >= BATCH,
    )


def planner(agent: Agent) -> Callable[[], None]:
    """A call that plans once for one environment, with a warm start."""
    obs, is_first = torch.randn(1, OBS), torch.zeros(1, dtype=torch.bool)
    _, state, _ = agent.act(obs, None, ~is_first)

    def call() -> None:
        nonlocal state
        _, state, _ = agent.act(obs, state, is_first)

    return call


def rows(timings: dict[str, Timing]) -> list[list[str]]:
    base = timings.get(THEIRS)
    lines = []
    for name, timing in timings.items():
        ratios = ["-", "-"]
        if base:
            ratios = [f"{base.wall_ms / timing.wall_ms:.2f}x", f"{base.cpu_ms / timing.cpu_ms:.2f}x"]
        lines.append([name, f"{timing.wall_ms:.1f}", f"{timing.cpu_ms:.1f}", *ratios])
    return lines


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
        root = stack.enter_context(checkout(arguments.peer)) if arguments.peer else None
        report(root, arguments)


def report(root: Path | None, arguments: argparse.Namespace) -> None:
    """Prints every table."""
    batch, penalty = make_batch(), arguments.gradient_penalty
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
    header = ["", "ms", "CPU ms", "speed-up", "in CPU time"]
    for what, calls in {"plan": plans, "update": updates}.items():
        if what in arguments.what:
            timed = interleaved(calls, arguments.repetitions, warmup=2)
            print(
                f"\n### {what} ({OBS}/{ACTION}, H {HORIZON}, {BATCH} + {BATCH} rows)\n{table(header, rows(timed))}", flush=True
            )
    rates = gemm_rates()
    print(f"\n### the floor\n{table(['512 x 512 x 512', 'GFLOP/s'], [[name, f'{rate:.0f}'] for name, rate in rates.items()])}")
    agent = make_agent("iq_mpc", {"episode_len": 100, "gradient_penalty": penalty}, OBS, ACTION)
    counted: dict[str, Callable[[], object]] = {"ours, plan": planner(agent), "ours, update": lambda: agent.update(batch)}
    print("\n" + table(["products in", "GFLOP"], [[name, f"{flops(call) / 1e9:.1f}"] for name, call in counted.items()]))


if __name__ == "__main__":
    main()
