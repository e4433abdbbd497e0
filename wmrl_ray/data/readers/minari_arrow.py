"""Minari's arrow and parquet layouts: one folder per episode, data/<number>/part-0.<format>, one row per observation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wmrl_ray.data.arrow import read_table
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.minari_files import Leaf, allocate, check_lengths, check_terminations
from wmrl_ray.data.readers.raw import Progress, RawDataset, damaged_as_data_error


def read_episodes(
    folder: Path, metadata: Mapping[str, Any], leaves: list[Leaf], action_dim: int, progress: Progress | None
) -> RawDataset:
    layout, where = metadata["data_format"], str(metadata.get("dataset_id", folder.parent))
    num_episodes = int(metadata["total_episodes"])
    episodes: list[tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]] = []
    for number in range(num_episodes):
        files = sorted(folder.joinpath(str(number)).glob(f"*.{layout}"))
        if not files:
            raise DataError(
                f"{where}: episode {number} of {num_episodes} has no {layout} file in {folder / str(number)}; restore it"
            )
        table = pa.concat_tables([read_table(path) for path in files])
        with damaged_as_data_error(files[0], f"a Minari {layout} episode"):
            parts = [_values(_column(table, ("observations", *leaf.keys)), leaf.size) for leaf in leaves]
            action = _values(_column(table, ("actions",)), action_dim)[:-1]
            reward = _column(table, ("rewards",)).to_numpy(zero_copy_only=False)[:-1]
            terminations = _column(table, ("terminations",)).to_numpy(zero_copy_only=False)[:-1]
            check_lengths(where, number, len(parts[0]), len(action), len(reward))
            episodes.append((parts, action, reward, check_terminations(where, number, terminations)))
        if progress is not None and (number % 256 == 255 or number == num_episodes - 1):
            progress(number + 1, num_episodes)
    raw = allocate(np.asarray([len(reward) for _, _, reward, _ in episodes]), leaves, action_dim)
    for first, (parts, action, reward, terminated) in zip(raw.episode_starts, episodes, strict=False):
        last = first + len(reward)
        for leaf, part in zip(leaves, parts, strict=True):
            raw.obs[first : last + 1, leaf.column : leaf.column + leaf.size] = part
        raw.action[first:last], raw.reward[first:last], raw.terminated[last - 1] = action, reward, terminated
    return raw


def _column(table: pa.Table, keys: tuple[str, ...]) -> pa.Array:
    array = table.column(keys[0]).combine_chunks()
    for key in keys[1:]:
        array = array.field(key)
    return array


def _values(array: pa.Array, size: int) -> np.ndarray:
    """[T, size] from a column of lists of `size` numbers."""
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), size)
