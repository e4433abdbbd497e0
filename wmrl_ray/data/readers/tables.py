"""Parquet and Arrow: one file, or a folder of files read in the order of their names; an episode lies within one file.

Columns: episode (any integer or string; the rows of an episode are together and in order of time), obs (list of O floats),
action (list of A floats), reward, terminated; optionally next_obs (list of O floats).
With next_obs there is one row per step, and an episode's last observation is the next_obs of its last row. Without it there is
one row per observation: an episode's last row holds its last observation, and null or zero for action, reward and terminated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wmrl_ray.data.arrow import read_table
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import table_files
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import Progress, RawDataset, damaged_as_data_error

COLUMNS = ("episode", "obs", "action", "reward", "terminated")


def read_tables(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads a Parquet or Arrow file or folder with pyarrow.

    Raises:
        DataError: truncated or damaged, a column missing or of another shape, an episode in two pieces.
    """
    files = table_files(path)
    parts: list[RawDataset] = []
    first_file = path
    for number, file in enumerate(files, start=1):
        table = read_table(file)
        for name in COLUMNS:
            if name not in table.column_names:
                raise DataError(
                    f"{file}: has no column {name!r}; needed: {', '.join(COLUMNS)}, and next_obs for one row per step"
                )
        if len(table):
            with damaged_as_data_error(file, "a table of episodes"):
                part = _read_part(table, file)
            first_file, first = (first_file, parts[0]) if parts else (file, part)
            if part.obs.shape[1] != first.obs.shape[1] or part.action.shape[1] != first.action.shape[1]:
                raise DataError(
                    f"{file}: obs has {part.obs.shape[1]} and action {part.action.shape[1]} dimensions, but {first_file.name} "
                    f"has {first.obs.shape[1]} and {first.action.shape[1]}; keep one environment per folder"
                )
            parts.append(part)
        if progress is not None:
            progress(number, len(files))
    if not parts:
        raise DataError(f"{path}: the dataset is empty; it needs at least one episode")
    offsets = np.cumsum([0] + [len(part.obs) for part in parts])
    return RawDataset(
        obs=np.concatenate([part.obs for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        reward=np.concatenate([part.reward for part in parts]),
        terminated=np.concatenate([part.terminated for part in parts]),
        episode_starts=np.concatenate([[0], *(p.episode_starts[1:] + o for p, o in zip(parts, offsets, strict=False))]),
        origin=parts[0].origin,
        sha256=parts[0].sha256 if len(parts) == 1 else None,
    )


def _read_part(table: pa.Table, file: Path) -> RawDataset:
    origin, sha256 = origin_from_json((table.schema.metadata or {}).get(b"wmrl_origin"), file)
    firsts = _episode_firsts(table["episode"].to_numpy(), file)
    ends = np.append(firsts[1:], len(table)) - 1
    obs, action = _matrix(table["obs"], "obs", file), _matrix(table["action"], "action", file)
    reward = table["reward"].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False).astype(np.float32)
    terminated = table["terminated"].combine_chunks().cast(pa.float32()).fill_null(0).to_numpy(zero_copy_only=False)
    if "next_obs" in table.column_names:
        next_obs = _matrix(table["next_obs"], "next_obs", file)
        # An extra row behind each episode for its last observation.
        obs = np.insert(obs, ends + 1, next_obs[ends], axis=0)
        action, reward, terminated = (np.insert(values, ends + 1, 0, axis=0) for values in (action, reward, terminated))
        starts = np.append(firsts, len(table)) + np.arange(len(firsts) + 1)
    else:
        if (used := action[ends].any(axis=1) | (terminated[ends] != 0) | (reward[ends] != 0)).any():
            raise DataError(
                f"{file}: the last row of episode number {int(np.argmax(used))} has an action, reward or termination, but "
                "holds only the episode's last observation; add such a row, or a column next_obs for one row per step"
            )
        starts = np.append(firsts, len(table))
    return RawDataset(obs, action, reward, terminated, starts.astype(np.int64), origin, sha256)


def _episode_firsts(labels: np.ndarray, file: Path) -> np.ndarray:
    """The first row of each episode."""
    firsts = np.append(0, np.flatnonzero(labels[1:] != labels[:-1]) + 1)
    unique, counts = np.unique(labels[firsts], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{file}: episode {unique[np.argmax(counts)]} is in pieces; sort the rows by episode and time")
    return firsts


def _matrix(column: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    """[N, D] f32 from a column of equally long lists; a null list becomes zeros."""
    array = column.combine_chunks()
    if not (pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise DataError(f"{file}: column {name!r} is {array.type}; it must be a list of floats")
    present = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
    values = array.flatten().to_numpy(zero_copy_only=False)  # skips the null lists
    size, rest = divmod(len(values), max(len(present), 1))
    lengths = (
        pc.call_function("list_value_length", [array]).drop_null() if not pa.types.is_fixed_size_list(array.type) else None
    )
    if size == 0 or rest or (lengths is not None and len(lengths.unique()) > 1):
        raise DataError(f"{file}: the lists in column {name!r} differ in length or are empty; give every row the same number")
    if len(present) == len(array):
        return values.reshape(-1, size).astype(np.float32)
    matrix = np.zeros((len(array), size), np.float32)
    matrix[present] = values.reshape(-1, size)
    return matrix
