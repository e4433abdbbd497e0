"""Minari's hdf5 layout: one group per episode in data/main_data.hdf5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5g, h5s  # pyright: ignore[reportAttributeAccessIssue]

from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.hdf5 import check_own_content
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
from wmrl_ray.data.readers.values import numbers_of, reading, unread_note


def read_episodes(
    folder: Path, metadata: Mapping[str, Any], leaves: list[Leaf], action_dim: int, progress: Progress | None
) -> RawDataset:
    """Reads straight into the flat arrays with h5py's low-level calls, several times faster than its high-level ones."""
    path, where = folder / "main_data.hdf5", str(metadata.get("dataset_id", folder.parent))
    num_episodes, notes = int(metadata["total_episodes"]), {}
    with reading(f"{path} as Minari hdf5"), h5py.File(path, "r") as file:
        check_episodes(where, sum(str(name).startswith("episode_") for name in file), num_episodes)

        def opened(name: str) -> Any:
            return check_own_content(h5d.open(file.id, name.encode()), file.id, where)

        lengths = np.empty(num_episodes, np.int64)
        for number in range(num_episodes):
            lengths[number] = _rows(opened(f"episode_{number}/actions"))
        raw = allocate(lengths, leaves, action_dim)
        for number in range(num_episodes):
            name, first, steps = f"episode_{number}", int(raw.episode_starts[number]), int(lengths[number])
            with reading(f"{path}: {name}"):
                keys = list(h5py.Group(h5g.open(file.id, name.encode())))
                notes |= dict.fromkeys(unread_note(keys, EPISODE_KEYS, f"{where}: episode {number}"))
                rewards = opened(f"{name}/rewards")
                for leaf in leaves:
                    place = "/".join((name, "observations", *leaf.keys))
                    source, into = opened(place), raw.obs[first : first + steps + 1, leaf.column : leaf.column + leaf.size]
                    check_lengths(where, number, _rows(source), steps, _rows(rewards))
                    if leaf.channels is not None and len(source.shape) <= 2:
                        frames = h5py.Dataset(source)[()]
                        into[:] = decoded(frames, leaf.shape, f"{where}: {place}").reshape(into.shape)
                        notes["images decoded from JPEG, as Minari stored them"] = None
                    else:
                        _read(source, into, f"{where}: {place}", leaf.shape)
                _read(opened(f"{name}/actions"), raw.action[first : first + steps], f"{where}: {name}/actions")
                _read(rewards, raw.reward[first : first + steps], f"{where}: {name}/rewards")
                flags = [_native(opened(f"{name}/{key}")) if key in keys else None for key in ("terminations", "truncations")]
                if flags[0] is None:
                    raise DataError(f"{where}: episode {number} has no 'terminations'; restore it")
                raw.terminated[first + steps - 1] = ends_terminated(where, number, flags[0], flags[1], steps)
            if progress is not None and (number % 256 == 255 or number == num_episodes - 1):
                progress(number + 1, num_episodes)
    raw.origin = Origin(notes=tuple(notes))
    return raw


def _rows(source: Any) -> int:
    return source.shape[0] if source.shape else 0


def _native(source: Any) -> np.ndarray:
    """All of it, of the type that it has."""
    values = np.empty(source.shape, source.dtype)
    if values.dtype.kind in "biuf":  # others are refused by their type
        source.read(h5s.ALL, h5s.ALL, values)
    return values


def _read(source: Any, into: np.ndarray, place: str, shape: tuple[int, ...] = ()) -> None:
    """The whole of `source` into an array of as many elements; HDF5 converts the number type on the way.

    shape: of a row by its space. A row is of that shape or flat: the same numbers in another order are other values.
    """
    found, wide = ([size for size in sizes if size != 1] for sizes in (source.shape[1:], shape))
    if int(np.prod(source.shape)) != into.size or (len(found) > 1 and shape and found != wide):
        needed = [len(into), *(shape or into.shape[1:])]
        raise DataError(f"{place} has the shape {list(source.shape)}; by its space {needed} is needed, repair it or the space")
    numbers_of(np.empty(source.shape[:1] + (0,), source.dtype), "it", place)  # for its errors about the type
    if into.dtype == np.uint8 and source.dtype != np.uint8:  # Why: HDF5 would round and clip
        raise DataError(f"{place} holds {source.dtype}, its space says uint8; store the images as their space says")
    if into.flags.c_contiguous:
        source.read(h5s.ALL, h5s.ALL, into)
    else:
        block = np.empty(into.shape, into.dtype)
        source.read(h5s.ALL, h5s.ALL, block)
        into[:] = block
