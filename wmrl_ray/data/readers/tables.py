"""Parquet and Arrow: one file, or a folder of files read in the order of their names; an episode lies within one file.

Columns: episode (any integer or string; the rows of an episode are together and in order of time), obs (list of O floats),
action (list of A floats), reward, terminated; optionally next_obs (list of O floats) and truncated. Others that may say where
episodes end are refused, the rest is noted as not read.
With next_obs there is one row per step, and an episode's last observation is the next_obs of its last row; the others are the
obs of the following row. Without it there is one row per observation: an episode's last row holds its last observation, and
null or zero for action, reward and terminated. No other null is taken for a value.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa

from wmrl_ray.data.arrow import read_table
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import table_files
from wmrl_ray.data.readers.columns import combined, lists, plain, present
from wmrl_ray.data.readers.d4rl import differ
from wmrl_ray.data.readers.images import SMALLEST
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import Progress, RawDataset
from wmrl_ray.data.readers.values import actions_of, column_of, flags_of, reading, rows_of, unread_note

COLUMNS = ("episode", "obs", "action", "reward", "terminated")
OPTIONAL = ("next_obs", "truncated")


def read_tables(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads a Parquet or Arrow file or folder with pyarrow.

    Raises:
        DataError: truncated or damaged, a column missing or of another shape, a null, an episode in two pieces.
    """
    files = table_files(path)
    parts: list[RawDataset] = []
    first_file = path
    for number, file in enumerate(files, start=1):
        with reading(str(file)):
            table = read_table(file)
            for name in COLUMNS:
                if name not in table.column_names:
                    raise DataError(
                        f"{file}: has no column {name!r}; needed: {', '.join(COLUMNS)}, and next_obs for one row per step"
                    )
            if len(set(table.column_names)) < len(table.column_names):
                raise DataError(f"{file}: two columns have the same name; keep one of each: {', '.join(COLUMNS)}")
            if len(table):
                part = _read_part(table, file)
                first_file, first = (first_file, parts[0]) if parts else (file, part)
                if part.obs.shape[1] != first.obs.shape[1] or part.action.shape[1] != first.action.shape[1]:
                    raise DataError(
                        f"{file}: obs has {part.obs.shape[1]} and action {part.action.shape[1]} dimensions, but "
                        f"{first_file.name} has {first.obs.shape[1]} and {first.action.shape[1]}; keep one environment per "
                        "folder"
                    )
                parts.append(part)
        if progress is not None:
            progress(number, len(files))
    if not parts:
        raise DataError(f"{path}: the dataset is empty; it needs at least one episode")
    offsets = np.cumsum([0] + [len(part.obs) for part in parts])
    notes = dict.fromkeys(note for part in parts for note in part.origin.notes)
    return RawDataset(
        obs=np.concatenate([part.obs for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        reward=np.concatenate([part.reward for part in parts]),
        terminated=np.concatenate([part.terminated for part in parts]),
        episode_starts=np.concatenate([[0], *(p.episode_starts[1:] + o for p, o in zip(parts, offsets, strict=False))]),
        origin=dataclasses.replace(parts[0].origin, notes=tuple(notes)),
        sha256=parts[0].sha256 if len(parts) == 1 else None,
    )


def _read_part(table: pa.Table, file: Path) -> RawDataset:
    origin, sha256 = origin_from_json((table.schema.metadata or {}).get(b"wmrl_origin"), file)
    notes = unread_note(table.column_names, (*COLUMNS, *OPTIONAL), str(file))
    origin = dataclasses.replace(origin, notes=(*origin.notes, *notes))
    firsts = _episode_firsts(present(table["episode"], "episode", str(file)), file)
    ends = np.append(firsts[1:], len(table)) - 1
    by_step = "next_obs" in table.column_names
    # Without next_obs an episode's last row has an observation only.
    steps = np.ones(len(table), np.bool_)
    steps[ends] = by_step
    obs = _matrix(table["obs"], "obs", file)
    action, reward, terminated = (_of_steps(table[name], name, steps, file) for name in ("action", "reward", "terminated"))
    if "truncated" in table.column_names:
        _check_truncated(_of_steps(table["truncated"], "truncated", steps, file), ends if by_step else ends - 1, file)
    if not by_step:
        return RawDataset(obs, action, reward, terminated, np.append(firsts, len(table)), origin, sha256)
    next_obs = _matrix(table["next_obs"], "next_obs", file)
    if next_obs.shape != obs.shape:
        raise DataError(f"{file}: next_obs has {next_obs.shape[1]} numbers and obs {obs.shape[1]}; write all of it")
    apart = differ(next_obs[:-1], obs[1:])
    apart[ends[:-1]] = False
    if apart.any():
        row = int(np.argmax(apart))
        raise DataError(
            f"{file}: next_obs in row {row} is not the obs of row {row + 1}, and both are of one episode; sort the rows by "
            "time, or give each piece an episode of its own"
        )
    # An extra row behind each episode for its last observation.
    obs = np.insert(obs, ends + 1, next_obs[ends], axis=0)
    action, reward, terminated = (np.insert(values, ends + 1, 0, axis=0) for values in (action, reward, terminated))
    starts = np.append(firsts, len(table)) + np.arange(len(firsts) + 1)
    return RawDataset(obs, action, reward, terminated, starts.astype(np.int64), origin, sha256)


def _episode_firsts(column: pa.Array, file: Path) -> np.ndarray:
    """The first row of each episode."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{file}: column 'episode' is {kind}; it must hold integers or strings")
    labels = column.to_numpy(zero_copy_only=False)
    firsts = np.append(0, np.flatnonzero(labels[1:] != labels[:-1]) + 1)
    unique, counts = np.unique(labels[firsts], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{file}: episode {unique[np.argmax(counts)]} is in pieces; sort the rows by episode and time")
    return firsts


def _of_steps(column: pa.ChunkedArray, name: str, steps: np.ndarray, file: Path) -> np.ndarray:
    """action [N, A], reward [N] or flags [N]: of the rows that are steps [N] bool as they are, 0 in the others.

    Raises:
        DataError: a null in a step, or something else than null and 0 in a row that is none.
    """
    array = combined(column)
    last_rows = array.filter(pa.array(~steps))
    convert = {"action": _matrix, "reward": _numbers}.get(name, _flags)
    values = convert(array.filter(pa.array(steps)), name, file, np.flatnonzero(steps))
    spread = np.zeros((len(steps), *values.shape[1:]), values.dtype)
    spread[steps] = values
    present = np.flatnonzero(~steps)[last_rows.is_valid().to_numpy(zero_copy_only=False)]
    if len(present):
        held = convert(last_rows.drop_null(), name, file, present)
        if held.shape[1:] != values.shape[1:]:
            raise DataError(f"{file}: the lists in column {name!r} differ in length; give every row the same number")
        if (used := held.reshape(len(held), -1) != 0).any():
            row = int(present[np.argmax(used.any(axis=1))])
            raise DataError(
                f"{file}: {name} in row {row}, the last row of its episode, is not 0, but that row holds only the last "
                "observation; add such a row, or a column next_obs for one row per step"
            )
    return spread


def _check_truncated(truncated: np.ndarray, last_steps: np.ndarray, file: Path) -> None:
    early = np.setdiff1d(np.flatnonzero(truncated), last_steps)
    if len(early):
        raise DataError(f"{file}: row {early[0]} is truncated but its episode goes on; give what follows a label of its own")


def _matrix(column: pa.ChunkedArray | pa.Array, name: str, file: Path, rows: np.ndarray | None = None) -> np.ndarray:
    """[N, D] f32 from a column of equally long lists. rows: of the table, for errors; None: all."""
    values = lists(column, name, str(file), rows)
    if name.endswith("obs") and values.dtype == np.uint8 and values.shape[1] >= SMALLEST * SMALLEST:
        raise DataError(f"{file}: {name} is {values.shape[1]} numbers of uint8, as images; tables hold vectors, store an npz")
    return (actions_of if name == "action" else rows_of)(values, name, str(file))


def _numbers(column: pa.ChunkedArray | pa.Array, name: str, file: Path, rows: np.ndarray | None = None) -> np.ndarray:
    """[N] f32 from a column of numbers."""
    return column_of(plain(column, name, str(file), rows), name, str(file))


def _flags(column: pa.ChunkedArray | pa.Array, name: str, file: Path, rows: np.ndarray | None = None) -> np.ndarray:
    """[N] bool from a column of flags."""
    return flags_of(plain(column, name, str(file), rows), name, str(file), rows)
