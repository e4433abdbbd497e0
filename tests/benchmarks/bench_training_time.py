"""What a step of online training takes: acting, the environment, and one update, method by method (IQ-MPC's Fig. 16).

python -m tests.benchmarks.bench_training_time      # Humanoid Walk at the papers' sizes, one thread

The agents are untrained and their demonstrations random episodes: a step takes the same time with others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

from tests.benchmarks.calls import VARIANTS
from tests.benchmarks.harness import machine, table
from wmrl_ray.collect import Collector
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import Agent
from wmrl_ray.data.replay import DemonstrationReplay, Replay
from wmrl_ray.rollout import step_limit
from wmrl_ray.train import update_steps

os.environ.setdefault("MUJOCO_GL", "egl")

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "IQ-MPC": ("iq_mpc", {}),
    "IQ-MPC, policy prior alone": ("iq_mpc", {"use_planning": False}),
    "IQ-Learn+SAC": ("iq_sac", {}),
    "TD-MPC2, with rewards": ("tdmpc2", {}),
}
PAPER_STEPS = 2_000_000  # of Fig. 16's axis, as agent steps
WARMUP = 3  # steps: compilation, and the first plan
ENV_CONFIG = {"action_repeat": 2}


class Method:
    """An agent, its environment and its replay."""

    def __init__(self, env_id: str, algorithm: str, settings: dict[str, Any], batch_size: int) -> None:
        self.batch_size = batch_size
        self.collector = Collector(env_id, ENV_CONFIG, seed=0)
        episodes = self.collector.collect(None, 2 * (step_limit(env_id, ENV_CONFIG) or 1000))
        obs_dim, action_dim = episodes[0].obs.shape[1], episodes[0].action.shape[1]
        episode_len = {} if algorithm == "iq_sac" else {"episode_len": len(episodes[0].action)}
        self.agent: Agent = make_agent(algorithm, {**settings, **episode_len}, obs_dim, action_dim)
        own, demonstrations = (Replay(obs_dim=obs_dim, action_dim=action_dim) for _ in range(2))
        for episode in episodes:
            own.add(episode)
            demonstrations.add(episode)
        self.replay = own if algorithm == "tdmpc2" else DemonstrationReplay(demonstrations, own)

    def step(self) -> tuple[float, float, float]:
        """One of the agent, exploring, and the update that follows it. Returns: seconds of acting, environment and update."""
        self.collector.collect(self.agent, 1)
        spent, started = self.collector.take_statistics(), time.perf_counter()
        update_steps(self.agent, self.replay, 1, self.batch_size)
        return spent.act_s, spent.env_s, time.perf_counter() - started


def measure(env_id: str, batch_size: int, steps: int, variant: str) -> list[list[str]]:
    """For each method: ms of a step's parts and of the whole, and days for the paper's steps. Methods take turns."""
    methods = {
        name: Method(env_id, algorithm, {**settings, **VARIANTS[variant]}, batch_size)
        for name, (algorithm, settings) in METHODS.items()
    }
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for k in range(WARMUP + steps):
        for name, method in methods.items():
            spent = method.step()
            if k >= WARMUP:
                seconds[name].append(spent)
    lines = []
    for name, taken in seconds.items():
        methods[name].collector.close()
        parts = [1e3 * statistics.median(part) for part in zip(*taken, strict=True)]
        days = PAPER_STEPS * sum(parts) / 1e3 / 86400
        lines.append([name, variant, *(f"{ms:.1f}" for ms in (*parts, sum(parts))), f"{days:.1f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="dmc/humanoid-walk")
    parser.add_argument("--batch", type=int, default=256, help="of the agent's own steps, and as many demonstrations'")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--variants", nargs="*", default=["fp32 compiled", "bf16 compiled"], choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n{arguments.env}, batch {arguments.batch}; medians of {arguments.steps} steps, methods in turn")
    header = ["method", "", "acting, ms", "environment, ms", "update, ms", "a step, ms", f"{PAPER_STEPS:,} steps, days"]
    found = [measure(arguments.env, arguments.batch, arguments.steps, variant) for variant in arguments.variants]
    print(table(header, [line for lines in found for line in lines]))


if __name__ == "__main__":
    main()
