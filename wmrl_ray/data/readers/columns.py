"""Columns of Arrow and Parquet tables -> numpy, without a null becoming a value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wmrl_ray.data.episode import DataError

NULL_FIX = "a value is needed there, fill it in or drop the episode"


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def present(column: pa.ChunkedArray | pa.Array, name: str, where: str, rows: np.ndarray | None = None) -> pa.Array:
    """The column in one piece.

    Args:
        rows: what to call its rows in an error; None: their numbers.

    Raises:
        DataError: for the first null.
    """
    array = combined(column)
    if array.null_count:
        row = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        fix = NULL_FIX
        if name == "next_obs":
            fix = "a shift within each episode leaves it so: write the observation that followed its last action there"
        raise DataError(f"{where}: {name} is null in row {row if rows is None else rows[row]}; {fix}")
    return array


def plain(column: pa.ChunkedArray | pa.Array, name: str, where: str, rows: np.ndarray | None = None) -> np.ndarray:
    """[N] of whatever type the column has. Raises DataError as `present`."""
    return present(column, name, where, rows).to_numpy(zero_copy_only=False)


def lists(column: pa.ChunkedArray | pa.Array, name: str, where: str, rows: np.ndarray | None = None) -> np.ndarray:
    """[N, D] of numbers from a column of equally long lists.

    Raises:
        DataError: as `present`, or another type, or lists of different lengths.
    """
    array = present(column, name, where, rows)
    kind = array.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        discrete = pa.types.is_integer(kind) and name.startswith("action")
        about = "discrete actions cannot be learned from, it" if discrete else "it"
        raise DataError(f"{where}: column {name!r} is {kind}; {about} must be a list of floats")
    items = array.flatten()
    if items.null_count:
        row = next(number for number, row in enumerate(array.to_pylist()) if None in row)
        raise DataError(f"{where}: a number of {name} is null in row {row if rows is None else rows[row]}; {NULL_FIX}")
    lengths = pc.call_function("list_value_length", [array]).unique()
    if len(lengths) > 1 or (len(array) and lengths[0].as_py() == 0):
        raise DataError(f"{where}: the lists in column {name!r} differ in length or are empty; give every row the same number")
    if not (pa.types.is_integer(items.type) or pa.types.is_floating(items.type) or pa.types.is_boolean(items.type)):
        raise DataError(f"{where}: column {name!r} is {kind}; it must be a list of floats")
    return items.to_numpy(zero_copy_only=False).reshape(len(array), -1 if len(array) else 0)
