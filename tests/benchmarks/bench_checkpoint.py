"""What a checkpoint of a large replay costs the driver: its memory and its time, with one learner actor.

python -m tests.benchmarks.bench_checkpoint --gb 5     (takes twice as much memory for a while: page cache, and the load)
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import machine
from tests.rllib import fakes
from tests.rllib.online_fakes import OwnTDMPCConfig
from wmrl_ray.data.episode import Episode
from wmrl_ray.rllib import compat


def own_bytes(pid: int | str = "self") -> int:
    """Of the process alone: neither pages of files, which the system takes back, nor shared memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


class Peak:
    """The most memory of this process and of another within the block, above what they had."""

    def __init__(self, other: int) -> None:
        self.pids, self._ended = {"driver": os.getpid(), "learner": other}, threading.Event()

    def __enter__(self) -> Peak:
        self.started = time.perf_counter(), time.process_time()
        self.before = {name: own_bytes(pid) for name, pid in self.pids.items()}
        self.most = dict(self.before)
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.most = {name: max(self.most[name], own_bytes(pid)) for name, pid in self.pids.items()}

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds, self.cpu_s = (
            b - a for a, b in zip(self.started, (time.perf_counter(), time.process_time()), strict=True)
        )

    def __str__(self) -> str:
        grown = ", ".join(f"{name} +{(self.most[name] - self.before[name]) / 2**20:.0f} MiB" for name in self.pids)
        return f"{self.seconds:.1f} s, {self.cpu_s:.1f} s of the driver's CPU; {grown}"


def fill(learner: Any, num_bytes: int) -> int:
    """A replay of images, for which the agent of this benchmark has no eyes, in the place of its own; returns the pid."""
    from wmrl_ray.data.replay import Replay

    learner.replay = replay = Replay(obs_dim=(3, 64, 64), action_dim=2, seed=0)
    if not num_bytes:
        return os.getpid()
    steps = 500
    images = np.random.default_rng(0).integers(0, 255, (steps + 1, 3, 64, 64), np.uint8)
    episode = Episode(images, np.zeros((steps, 2), np.float32), np.zeros(steps, np.float32), terminated=False)
    count = max(1, num_bytes // images.nbytes)
    replay._online._make_room(count * (steps + 1))  # Why: growing would need twice the memory
    for _ in range(count):
        replay.add(episode)
    return os.getpid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=0.5)
    arguments = parser.parse_args()
    compat.init(num_cpus=3, logging_level="ERROR", log_to_driver=False)
    folder = Path(tempfile.mkdtemp(prefix="wmrl-bench-"))
    try:
        config = OwnTDMPCConfig().environment(fakes.PLANE).training(agent=fakes.TINY_AGENT, batch_size=8, updates_per_call=12)
        config.training(online={"num_runners": 1, "num_envs": 2, "seed_steps": 48}).learners(num_learners=1)
        algorithm: Any = config.evaluation(evaluation_duration=4).build_algo()
        (learner,) = algorithm.on_learners(fill, num_bytes=int(arguments.gb * 1e9))
        with Peak(learner) as saving:
            path = algorithm.save_to_path(folder / "c")
        size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
        algorithm.on_learners(fill, num_bytes=0)  # as in a run that is resumed
        with Peak(learner) as loading:
            algorithm.restore_from_path(path)
        print(f"{machine()}\n{size / 1e9:.2f} GB saved: {saving}\nloaded: {loading}")
        assert saving.most["driver"] - saving.before["driver"] < 200 * 2**20
        algorithm.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
