"""Throughput of online learning on Ray, and where runners, learner and driver spend their time.

python -m tests.benchmarks.bench_online --runners 0 1 2

TD-MPC2, one learner actor. Every figure is the median over calls of `updates_per_call` updates after the
seed phase. Planning is `act`; the rest of a runner's time is environment, taking weights and waiting; so is the learner's:
updates, taking episodes, publishing weights and waiting. The driver's share is its CPU time over the time on the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.harness import machine, table

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

SIZES: dict[str, dict[str, Any]] = {
    "small": {"model": {"latent_dim": 64, "encoder_dim": 64, "mlp_dim": 64, "num_critics": 2}},
    "5m": {},
}
COLUMNS = ("act", "env", "weights", "waits")
LEARNER = ("updates", "episodes", "weights", "waits")


def measure(settings: argparse.Namespace, num_runners: int, schedule: str) -> list[str]:
    """One line of the table."""
    from wmrl_ray.rllib import compat
    from wmrl_ray.rllib.config import TDMPC2Config
    from wmrl_ray.rllib.online import OnlineAlgorithm

    # an episode of every environment
    seed = settings.seed * max(1, num_runners) * settings.envs
    online: dict[str, Any] = {
        "num_runners": num_runners,
        "num_envs": settings.envs,
        "seed_steps": seed,
        "schedule": schedule,
    }
    if schedule == "asynchronous":
        online |= {"steps_per_turn": settings.request, "max_updates_ahead": 1, "max_steps_ahead": 200}
    else:
        online["steps_per_turn"] = settings.turn
    online["updates_per_step"] = settings.rate
    config = TDMPC2Config().environment(settings.env).learners(num_learners=1)
    config.training(agent=SIZES[settings.size], online=online, batch_size=settings.batch, updates_per_call=settings.updates)
    config.evaluation(evaluation_duration=1).env_runners(num_envs_per_env_runner=1)
    algorithm = compat.build(config, settings.folder)
    assert isinstance(algorithm, OnlineAlgorithm)
    lines: list[dict[str, float]] = []
    try:
        while algorithm.num_updates < seed * settings.rate:  # the seed's updates
            algorithm.train()
        algorithm.take_metrics()
        stop = time.monotonic() + settings.seconds
        while time.monotonic() < stop or len(lines) < 5:
            before = (time.monotonic(), time.process_time(), algorithm.num_steps, algorithm.num_updates)
            algorithm.training_step()
            wall = time.monotonic() - before[0]
            found = algorithm.take_metrics()
            found |= {"wall": wall, "driver": (time.process_time() - before[1]) / wall}
            found["steps"] = (algorithm.num_steps - before[2]) / wall
            found["updates"] = (algorithm.num_updates - before[3]) / wall
            lines.append(found)
    finally:
        algorithm.stop()

    def middle(name: str) -> float:
        return statistics.median(line.get(name, 0.0) for line in lines)

    def total(name: str) -> float:
        return sum(line.get(name, 0.0) for line in lines)

    wall = total("wall")
    working = max(1, num_runners)
    act, env = total("time/act_s") / working / wall, total("time/env_s") / working / wall
    update = total("time/update_s") / wall
    shares = [act, env, total("time/runner_load_s") / working / wall]
    runner = [f"{share:.0%}" for share in [*shares, max(0.0, 1 - sum(shares))]]
    parts = [update, total("time/ingest_s") / wall, total("time/publish_s") / wall]
    if num_runners == 0:  # the learner does the runner's work too
        learner = [f"{update:.0%}", "-", "-", f"{max(0.0, 1 - update - act - env):.0%}"]
        runner = [f"{act:.0%}", f"{env:.0%}", "-", "-"]
    else:
        learner = [f"{share:.0%}" for share in [*parts, max(0.0, 1 - sum(parts))]]
    name = f"{num_runners} x {settings.envs}" + (f", {schedule}" if num_runners else "")
    figures = [f"{middle('steps'):.1f}", f"{middle('updates'):.1f}"]
    return [name, *figures, *runner, *learner, f"{middle('driver'):.1%}", f"{middle('online/policy_lag_mean'):.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="*", default=["synchronous", "asynchronous"])
    parser.add_argument("--env", default="dmc/cartpole-swingup")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--envs", type=int, default=1, help="of each runner")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.0, help="updates per step, U")
    parser.add_argument("--updates", type=int, default=24, help="per call")
    parser.add_argument("--turn", type=int, default=1, help="steps of a synchronous turn")
    parser.add_argument("--request", type=int, default=12, help="steps of an asynchronous request")
    parser.add_argument("--seed", type=int, default=600, help="random steps at first of each environment: an episode must end")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each line, after the seed phase")
    arguments = parser.parse_args()
    arguments.folder = Path(tempfile.mkdtemp(prefix="wmrl-bench-"))
    torch.set_num_threads(1)
    from wmrl_ray.rllib import compat

    compat.init(num_cpus=2 + max(arguments.runners), logging_level="ERROR", log_to_driver=False)
    print(f"{machine()}\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs before it began; {vars(arguments)}\n")
    lines = []
    for runners in arguments.runners:
        for schedule in arguments.schedules if runners else ["synchronous"]:
            lines.append(measure(arguments, runners, schedule))
            print(" | ".join(lines[-1]), flush=True)
    sides = [*(f"runner: {name}" for name in COLUMNS), *(f"learner: {name}" for name in LEARNER)]
    print("\n" + table(["runners", "steps/s", "updates/s", *sides, "driver", "lag"], lines))


if __name__ == "__main__":
    main()
