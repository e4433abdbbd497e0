"""Small episodes whose numbers say where they came from, written in the formats of others without the package's exporters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from minari.data_collector.episode_buffer import EpisodeBuffer

from wmrl_ray.data.datasets import Dataset
from wmrl_ray.data.episode import Episode

OBS_DIM, ACTION_DIM = 5, 3


def small_episode(number: int, steps: int, terminated: bool = False) -> Episode:
    rng = np.random.default_rng(number)
    obs = rng.normal(size=(steps + 1, OBS_DIM)).astype(np.float32)
    obs[:, 0], obs[:, 1] = number, np.arange(steps + 1)
    action = rng.uniform(-1, 1, (steps, ACTION_DIM)).astype(np.float32)
    return Episode(obs, action, rng.normal(size=steps).astype(np.float32), terminated)


def assert_holds(dataset: Dataset, episodes: list[Episode]) -> None:
    """The dataset is exactly these episodes."""
    assert len(dataset) == len(episodes)
    for found, expected in zip(dataset, episodes, strict=True):
        np.testing.assert_array_equal(found.obs, expected.obs)
        np.testing.assert_array_equal(found.action, expected.action)
        np.testing.assert_array_equal(found.reward, expected.reward)
        assert found.terminated == expected.terminated


def names_under(folder: Path) -> set[str]:
    """Relative paths of everything under a folder: to see that nothing was left half-written."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write_minari(
    dataset_id: str,
    episodes: Sequence[Episode],
    *,
    data_format: str = "hdf5",
    action_space: gym.Space | None = None,
    **more: Any,
) -> None:
    """With Minari itself."""
    obs_dim, action_dim = episodes[0].obs.shape[1], episodes[0].action.shape[1]
    minari.create_dataset_from_buffers(
        dataset_id,
        [minari_buffer(number, episode) for number, episode in enumerate(episodes)],
        observation_space=more.pop("observation_space", gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)),
        action_space=action_space or gym.spaces.Box(-1, 1, (action_dim,), np.float32),
        data_format=data_format,
        **more,
    )


def minari_buffer(number: int, episode: Episode, obs: Any = None) -> EpisodeBuffer:
    is_last = np.arange(len(episode)) == len(episode) - 1
    return EpisodeBuffer(
        id=number,
        observations=episode.obs if obs is None else obs,
        actions=episode.action,  # type: ignore[arg-type]
        rewards=episode.reward,  # type: ignore[arg-type]
        terminations=is_last & episode.terminated,  # type: ignore[arg-type]
        truncations=is_last & (not episode.terminated),  # type: ignore[arg-type]
    )


def transitions(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """D4RL's keys: one row per transition."""
    terminals = [np.arange(len(e)) == (len(e) - 1 if e.terminated else -1) for e in episodes]
    timeouts = [np.arange(len(e)) == (-1 if e.terminated else len(e) - 1) for e in episodes]
    return {
        "observations": np.concatenate([e.obs[:-1] for e in episodes]),
        "next_observations": np.concatenate([e.obs[1:] for e in episodes]),
        "actions": np.concatenate([e.action for e in episodes]),
        "rewards": np.concatenate([e.reward for e in episodes]),
        "terminals": np.concatenate(terminals),
        "timeouts": np.concatenate(timeouts),
    }


def flat_arrays(episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
    """The keys of our own npz: one row per observation."""
    return {
        "obs": np.concatenate([e.obs for e in episodes]),
        "action": np.concatenate([np.append(e.action, np.zeros_like(e.action[:1]), 0) for e in episodes]),
        "reward": np.concatenate([np.append(e.reward, 0) for e in episodes]),
        "terminated": np.concatenate([np.arange(len(e) + 1) == (len(e) - 1 if e.terminated else -1) for e in episodes]),
        "episode_starts": np.cumsum([0] + [len(e) + 1 for e in episodes]),
    }


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def step_table(episodes: Sequence[Episode], labels: Sequence[Any] | None = None) -> pa.Table:
    """One row per step, with next_obs."""
    labels = labels or range(len(episodes))
    return pa.table(
        {
            "episode": [label for label, e in zip(labels, episodes, strict=True) for _ in range(len(e))],
            "obs": [row.tolist() for e in episodes for row in e.obs[:-1]],
            "next_obs": [row.tolist() for e in episodes for row in e.obs[1:]],
            "action": [row.tolist() for e in episodes for row in e.action],
            "reward": [float(r) for e in episodes for r in e.reward],
            "terminated": [e.terminated and t == len(e) - 1 for e in episodes for t in range(len(e))],
        }
    )


def row_table(episodes: Sequence[Episode]) -> pa.Table:
    """One row per observation; action, reward and terminated are null in an episode's last row."""
    return pa.table(
        {
            "episode": [i for i, e in enumerate(episodes) for _ in range(len(e) + 1)],
            "obs": [row.tolist() for e in episodes for row in e.obs],
            "action": [row for e in episodes for row in [*e.action.tolist(), None]],
            "reward": [r for e in episodes for r in [*map(float, e.reward), None]],
            "terminated": [t for e in episodes for t in [*([False] * (len(e) - 1)), e.terminated, None]],
        }
    )


def write_parquet(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_arrow(path: Path, table: pa.Table, *, stream: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink:
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return path
