"""Minari's hdf5 layout: one group per episode in data/main_data.hdf5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5s  # pyright: ignore[reportAttributeAccessIssue]

from wmrl_ray.data.readers.hdf5 import check_own_content
from wmrl_ray.data.readers.minari_files import Leaf, allocate, check_lengths, check_terminations
from wmrl_ray.data.readers.raw import Progress, RawDataset, damaged_as_data_error


def read_episodes(
    folder: Path, metadata: Mapping[str, Any], leaves: list[Leaf], action_dim: int, progress: Progress | None
) -> RawDataset:
    """Reads straight into the flat arrays with h5py's low-level calls, several times faster than its high-level ones."""
    path, where = folder / "main_data.hdf5", str(metadata.get("dataset_id", folder.parent))
    num_episodes = int(metadata["total_episodes"])
    with damaged_as_data_error(path, "Minari hdf5"), h5py.File(path, "r") as file:

        def opened(name: bytes) -> Any:
            return check_own_content(h5d.open(file.id, name), file.id, where)

        lengths = np.empty(num_episodes, np.int64)
        for number in range(num_episodes):
            lengths[number] = opened(b"episode_%d/actions" % number).shape[0]
        raw = allocate(lengths, leaves, action_dim)
        for number in range(num_episodes):
            group, first, steps = b"episode_%d/" % number, int(raw.episode_starts[number]), int(lengths[number])
            for leaf in leaves:
                source = opened(group + "/".join(("observations", *leaf.keys)).encode())
                check_lengths(where, number, source.shape[0], steps, steps)
                into = raw.obs[first : first + steps + 1, leaf.column : leaf.column + leaf.size]
                _read(source, into)
            _read(opened(group + b"actions"), raw.action[first : first + steps])
            rewards = opened(group + b"rewards")
            check_lengths(where, number, steps + 1, steps, rewards.shape[0])
            _read(rewards, raw.reward[first : first + steps])
            terminations = np.empty(steps, np.bool_)
            _read(opened(group + b"terminations"), terminations)
            raw.terminated[first + steps - 1] = check_terminations(where, number, terminations)
            if progress is not None and (number % 256 == 255 or number == num_episodes - 1):
                progress(number + 1, num_episodes)
    return raw


def _read(source: Any, into: np.ndarray) -> None:
    """The whole of `source` into an array of as many elements; HDF5 converts the number type on the way."""
    if int(np.prod(source.shape)) != into.size:
        raise ValueError(f"{source.shape} values where {into.shape} are expected")
    if into.flags.c_contiguous:
        source.read(h5s.ALL, h5s.ALL, into)
    else:
        block = np.empty(into.shape, into.dtype)
        source.read(h5s.ALL, h5s.ALL, block)
        into[:] = block
