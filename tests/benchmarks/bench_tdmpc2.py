"""TD-MPC2 at its 5M sizes beside the public code: plan and update, one thread, same process, interleaved.

python -m tests.benchmarks.bench_tdmpc2 --peer PATH     # PATH: a checkout of nicklashansen/tdmpc2, or its git folder
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
from tests.benchmarks.peer_tdmpc2 import PeerTDMPC2
from wmrl_ray.core.agents import make_agent

BATCH, HORIZON, ENVS = 256, 3, 4
TASKS = {"walker": (24, 6), "humanoid": (67, 21)}  # observations, actions
THEIRS, COMPILED = "public code", "public code, compile=true"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of nicklashansen/tdmpc2 or its git folder; else only ours is timed")
    parser.add_argument("--peer-compiled", action="store_true", help="also time the public code with its compile=true")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--what", nargs="*", default=["plan", "update"], choices=["plan", "update"])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{machine()}\n{arguments.repetitions} interleaved repetitions, medians; ms per call on the clock and of CPU time")
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(checkout(arguments.peer, "tdmpc2")) if arguments.peer else None
        for task in arguments.tasks:
            report(task, root, arguments)
    rates = gemm_rates()
    print(f"\n### the floor\n{table(['512 x 512 x 512', 'GFLOP/s'], [[name, f'{rate:.0f}'] for name, rate in rates.items()])}")


def report(task: str, root: Path | None, arguments: argparse.Namespace) -> None:
    """Prints the tables of one task."""
    (obs_dim, action_dim), batch = TASKS[task], random_batch(BATCH, HORIZON, *TASKS[task])
    plans: dict[str, Callable[[], object]] = {}
    updates: dict[str, Callable[[], object]] = {}
    envs: dict[str, int] = {}
    if root is not None:
        obs = torch.randn(obs_dim)
        for name in (THEIRS, COMPILED) if arguments.peer_compiled else (THEIRS,):
            peer = PeerTDMPC2(root, (obs_dim,), action_dim, compile=name == COMPILED)
            peer.set_batch(batch)
            plans[name], updates[name] = lambda peer=peer: peer.plan(obs), peer.update
    for variant in arguments.variants:
        agent = make_agent("tdmpc2", {**VARIANTS[variant], "episode_len": 500}, obs_dim, action_dim)
        name = f"ours, {variant}"
        updates[name], plans[name] = lambda agent=agent: agent.update(batch), planner(agent)
        many = f"{name}, {ENVS} environments at once"
        plans[many], envs[many] = planner(agent, ENVS), ENVS
    for what, calls in {"plan": plans, "update": updates}.items():
        if what in arguments.what:
            timed = interleaved(calls, arguments.repetitions)
            print(f"\n### {what}, {task} ({obs_dim}/{action_dim}), per environment")
            print(ratio_table(timed, [THEIRS, COMPILED], envs), flush=True)
    agent = make_agent("tdmpc2", {**VARIANTS["fp32"], "episode_len": 500}, obs_dim, action_dim)
    work = {"plan": planner(agent), "update": lambda: agent.update(batch)}
    lines = [[f"ours, {what}", f"{flops(call) / 1e9:.1f}"] for what, call in work.items()]  # torch cannot count theirs
    print("\n" + table(["products in", "GFLOP"], lines))


if __name__ == "__main__":
    main()
