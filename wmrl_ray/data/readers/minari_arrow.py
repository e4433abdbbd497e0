"""Minari's arrow and parquet layouts: one folder per episode, data/<number>/part-0.<format>, one row per observation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wmrl_ray.data.arrow import read_table
from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.columns import combined, lists, plain, present
from wmrl_ray.data.readers.images import decoded
from wmrl_ray.data.readers.minari_files import (
    EPISODE_KEYS,
    Leaf,
    allocate,
    check_episodes,
    check_lengths,
    ends_terminated,
)
from wmrl_ray.data.readers.raw import Progress, RawDataset
from wmrl_ray.data.readers.values import column_of, reading, rows_of, unread_note


def read_episodes(
    folder: Path, metadata: Mapping[str, Any], leaves: list[Leaf], action_dim: int, progress: Progress | None
) -> RawDataset:
    layout, where = metadata["data_format"], str(metadata.get("dataset_id", folder.parent))
    num_episodes, notes = int(metadata["total_episodes"]), {}
    check_episodes(where, sum(path.name.isdigit() for path in folder.iterdir()), num_episodes)
    episodes: list[tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]] = []
    for number in range(num_episodes):
        files = sorted(folder.joinpath(str(number)).glob(f"*.{layout}"))
        if not files:
            raise DataError(
                f"{where}: episode {number} of {num_episodes} has no {layout} file in {folder / str(number)}; restore it"
            )
        with reading(f"{files[0]} as a Minari {layout} episode"):
            table, place = pa.concat_tables([read_table(path) for path in files]), f"{where}: episode {number}"
            notes |= dict.fromkeys(unread_note(table.column_names, EPISODE_KEYS, place))
            steps = slice(0, len(table) - 1)  # the last row holds the last observation
            parts = []
            for leaf in leaves:
                column = _column(table, ("observations", *leaf.keys), place)
                if leaf.channels is not None and not pa.types.is_nested(column.type):
                    frames = present(column, "observations", place).to_pylist()
                    parts.append(decoded(frames, leaf.shape, place).reshape(len(frames), -1))
                    notes["images decoded from JPEG, as Minari stored them"] = None
                else:
                    parts.append(_values(column, "observations", leaf.size, place, leaf.channels is not None))
            action = _values(_column(table, ("actions",), place)[steps], "actions", action_dim, place)
            reward = column_of(plain(_column(table, ("rewards",), place)[steps], "rewards", place), "rewards", place)
            flags = [
                plain(_column(table, (key,), place)[steps], key, place) if key in table.column_names else None
                for key in ("terminations", "truncations")
            ]
            if flags[0] is None:
                raise DataError(f"{place} has no 'terminations'; restore it")
            check_lengths(where, number, len(parts[0]), len(action), len(reward))
            episodes.append((parts, action, reward, ends_terminated(where, number, flags[0], flags[1], len(action))))
        if progress is not None and (number % 256 == 255 or number == num_episodes - 1):
            progress(number + 1, num_episodes)
    raw = allocate(np.asarray([len(reward) for _, _, reward, _ in episodes]), leaves, action_dim)
    for first, (parts, action, reward, terminated) in zip(raw.episode_starts, episodes, strict=False):
        last = first + len(reward)
        for leaf, part in zip(leaves, parts, strict=True):
            raw.obs[first : last + 1, leaf.column : leaf.column + leaf.size] = part
        raw.action[first:last], raw.reward[first:last], raw.terminated[last - 1] = action, reward, terminated
    raw.origin = Origin(notes=tuple(notes))
    return raw


def _column(table: pa.Table, keys: tuple[str, ...], place: str) -> pa.Array:
    if table.column_names.count(keys[0]) != 1:
        raise DataError(f"{place} has no {keys[0]!r}, or two of them; it has {', '.join(table.column_names)}")
    array = combined(table.column(keys[0]))
    for key in keys[1:]:
        array = present(array, keys[0], place).field(key)
    return array


def _values(array: pa.Array, name: str, size: int, place: str, is_image: bool = False) -> np.ndarray:
    """[T, size] f32, or u8 of images, from a column of lists of `size` numbers."""
    values = lists(array, name, place)
    if values.shape[1] != size and len(values):
        raise DataError(f"{place}: {name} has {values.shape[1]} numbers in a row; by its space {size} are needed")
    if is_image and values.dtype != np.uint8:
        raise DataError(f"{place}: {name} holds {values.dtype}, its space says uint8; store the images as their space says")
    return values if is_image else rows_of(values, name, place)
