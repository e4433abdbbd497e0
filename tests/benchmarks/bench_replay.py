"""Times of the data path on 1e6 steps in 15,000 episodes (obs 29, action 8), one thread, medians.

    python -m tests.benchmarks.bench_replay [--steps 1000000]

Sampling is 256 windows of 6 steps, against RLlib's EpisodeReplayBuffer holding the same episodes in the same process; opening
is measured in fresh processes, with a cache that is there already.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.harness import interleaved, machine, table
from wmrl_ray.data.datasets import Dataset, dataset_from_episodes, open_dataset
from wmrl_ray.data.replay import Replay

OBS_DIM, ACTION_DIM, EPISODE_STEPS, WINDOWS, HORIZON = 29, 8, 67, 256, 6


def make_source(path: Path, steps: int) -> None:
    """An npz of random episodes in our flat layout."""
    rng = np.random.default_rng(0)
    num_episodes = max(steps // EPISODE_STEPS, 1)
    starts = np.arange(num_episodes + 1) * (EPISODE_STEPS + 1)
    rows = int(starts[-1])
    action = rng.uniform(-1, 1, (rows, ACTION_DIM)).astype(np.float32)
    action[starts[1:] - 1] = 0
    np.savez(
        path,
        obs=rng.standard_normal((rows, OBS_DIM), dtype=np.float32),
        action=action,
        reward=rng.standard_normal(rows, dtype=np.float32),
        terminated=np.zeros(rows, np.uint8),
        episode_starts=starts,
    )


def open_again_ms(path: Path, repeats: int = 5) -> tuple[float, float]:
    """(open_dataset, the same with the imports it needs), each in a fresh process."""
    code = (
        "import time; t = time.perf_counter(); from wmrl_ray.data.datasets import open_dataset; i = time.perf_counter();"
        f"d = open_dataset({str(path)!r}); e = time.perf_counter(); print(e - i, e - t)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(repeats)]
    values = np.array([[float(word) for word in run.stdout.split()] for run in runs])
    alone, with_imports = np.median(values, axis=0) * 1e3
    return float(alone), float(with_imports)


def fill(replay: Replay, dataset: Dataset) -> Replay:
    for episode in dataset:
        replay.add(episode)
    return replay


def rllib_buffer(dataset: Dataset, num_episodes: int) -> object:
    """RLlib's buffer with the first episodes of the dataset."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    buffer = EpisodeReplayBuffer(capacity=10**7, batch_size_B=WINDOWS, batch_length_T=HORIZON)
    for number in range(num_episodes):
        episode = dataset.episode(number)
        buffer.add(
            SingleAgentEpisode(
                observations=list(episode.obs),
                actions=list(episode.action),
                rewards=episode.reward.tolist(),
                terminated=episode.terminated,
                truncated=not episode.terminated,
                len_lookback_buffer=0,
            )
        )
    return buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WMRL_CACHE_DIR"] = str(Path(folder) / "cache")
        path = Path(folder) / "bench.npz"
        make_source(path, steps)
        start = time.perf_counter()
        dataset = open_dataset(path)
        first = 1e3 * (time.perf_counter() - start)
        alone, with_imports = open_again_ms(path)
        start = time.perf_counter()
        open_dataset(path)
        same_process = 1e3 * (time.perf_counter() - start)
        mapped, online = Replay(dataset), fill(Replay(obs_dim=OBS_DIM, action_dim=ACTION_DIM), dataset)
        both = fill(Replay(dataset), dataset_part(dataset, len(dataset) // 10))
        rllib = rllib_buffer(dataset, len(dataset))
        samplers = {
            "sample 256 x 6, dataset (mapped)": lambda: mapped.sample(WINDOWS, HORIZON),
            "sample 256 x 6, online": lambda: online.sample(WINDOWS, HORIZON),
            "sample 256 x 6, dataset + 10% online": lambda: both.sample(WINDOWS, HORIZON),
            "sample 256 x 6, RLlib EpisodeReplayBuffer": lambda: rllib.sample(),  # type: ignore[attr-defined]
        }
        timings = interleaved(samplers, repetitions=100)
    rows = [
        ("open, first time (read npz, check, write cache)", f"{first:.0f}"),
        ("open again, this process", f"{same_process:.1f}"),
        ("open again, fresh process", f"{alone:.0f}"),
        ("open again, fresh process, with all imports", f"{with_imports:.0f}"),
        *((name, f"{timing.wall_ms:.3f}") for name, timing in timings.items()),
    ]
    print(f"{dataset.card.num_steps:,} steps in {len(dataset):,} episodes; {machine()}\n")
    print(table(("what", "median ms"), rows))


def dataset_part(dataset: Dataset, num_episodes: int) -> Dataset:
    """The first episodes of a dataset, in memory."""
    return dataset_from_episodes([dataset.episode(i) for i in range(num_episodes)])


if __name__ == "__main__":
    main()
