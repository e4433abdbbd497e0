"""TD-MPC at its paper's sizes beside the public code: update and plan, one thread, same process, interleaved.

python -m tests.benchmarks.bench_tdmpc --peer PATH     # PATH: a checkout of nicklashansen/tdmpc, or its git folder
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.harness import KINDS, Timing, flops, gemm_rates, interleaved, machine, table, time_shares
from tests.benchmarks.peer_tdmpc import PeerTDMPC, checkout
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import Agent
from wmrl_ray.core.batch import Batch

OBS, ACTION, BATCH, HORIZON, ENVS = 17, 6, 512, 5, 8  # cheetah's dimensions, the paper's sizes
THEIRS = "public code"
AT_ONCE = f", {ENVS} environments at once"
VARIANTS = {
    "fp32": {"precision": "float32", "compile": "off"},
    "bf16": {"precision": "bfloat16", "compile": "off"},
    "fp32 compiled": {"precision": "float32", "compile": "default"},
    "bf16 compiled": {"precision": "bfloat16", "compile": "default"},
}


def make_batch(generator: torch.Generator) -> Batch:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Batch(
        obs=normal(BATCH, HORIZON + 1, OBS),
        action=normal(BATCH, HORIZON, ACTION).clamp(-1, 1),
        reward=normal(BATCH, HORIZON),
        terminated=torch.zeros(BATCH, HORIZON, dtype=torch.bool),
        valid=torch.ones(BATCH, HORIZON, dtype=torch.bool),
    )


def planner(agent: Agent, num_envs: int) -> Callable[[], None]:
    """A call that plans once for `num_envs` environments with a warm start."""
    obs, is_first = torch.randn(num_envs, OBS), torch.zeros(num_envs, dtype=torch.bool)
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
        peer = PeerTDMPC(stack.enter_context(checkout(arguments.peer)), OBS, ACTION) if arguments.peer else None
        report(peer, arguments.repetitions, arguments.variants)


def report(peer: PeerTDMPC | None, repetitions: int, variants: list[str]) -> None:
    """Prints every table."""
    batch = make_batch(torch.Generator().manual_seed(0))
    agents = {name: make_agent("tdmpc", VARIANTS[name], OBS, ACTION) for name in variants}
    observation = torch.randn(OBS).numpy()

    updates: dict[str, Callable[[], object]] = {}
    plans: dict[str, Callable[[], object]] = {}
    if peer:
        peer.set_batch(batch.obs, batch.action, batch.reward)
        updates[THEIRS], plans[THEIRS] = peer.update, lambda: peer.plan(observation)
    updates |= {f"ours, {name}": lambda agent=agent: agent.update(batch) for name, agent in agents.items()}
    plans |= {f"ours, {name}": planner(agent, 1) for name, agent in agents.items()}
    batched = {f"ours, {name}{AT_ONCE}": planner(agent, ENVS) for name, agent in agents.items()}

    print(f"{machine()}\n{repetitions} interleaved repetitions, medians; ms per call on the clock and of CPU time\n")
    header = ["", "ms", "CPU ms", "speed-up", "in CPU time"]
    print(f"### update (batch {BATCH}, H {HORIZON})\n{table(header, rows(interleaved(updates, repetitions)))}\n")
    timed = interleaved(plans | batched, repetitions)
    single = {name: timing for name, timing in timed.items() if name in plans}
    print(f"### plan (512 + 25 samples, H 5, 6 iterations)\n{table(header, rows(single))}\n")
    print(f"### plan, per environment, against one at a time\n{table(header, batched_rows(timed))}\n")

    rates = gemm_rates()
    print(f"### the floor\n{table(['512 x 512 x 512', 'GFLOP/s'], [[name, f'{rate:.0f}'] for name, rate in rates.items()])}\n")
    counted = {"update": {THEIRS: updates.get(THEIRS)}, "plan": {THEIRS: plans.get(THEIRS)}}
    counted_agent = make_agent("tdmpc", VARIANTS["fp32"], OBS, ACTION)
    counted["update"]["ours"], counted["plan"]["ours"] = lambda: counted_agent.update(batch), planner(counted_agent, 1)
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
