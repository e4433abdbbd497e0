"""An array of a source -> numbers of the type and shape that an episode needs, or one line that says which array is wrong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from wmrl_ray.data.episode import DataError

_ENDS = re.compile(
    r"(^|[\W_])(non|not|no|is)?"
    r"(mask|trunc|done|termin|timeout|discount|ends?\b|ends?_|first|last|episode|traj|valid|length|start|reset|absorb|step_?type)"
)


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """The boundary of every reader: whatever goes wrong while `place` (a file, an array in it) is read is one line about it."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or place} does not exist; check the path") from error
    except MemoryError as error:
        raise DataError(f"cannot read {place}: it needs more memory than there is; split it, or take a larger one") from error
    except Exception as error:  # Why so wide: each library has its own errors for what is damaged or was not foreseen
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"cannot read {place}: {reason}; it is damaged or another format, restore it from its source"
        ) from error


def unread_note(found: Iterable[str], known: Iterable[str], where: str) -> list[str]:
    """A note about the keys of a source that are not read, none if there are none.

    Raises:
        DataError: one of them is named like something that says where episodes end or which rows count.
    """
    others = sorted(set(found) - set(known))
    for name in others:
        if _ENDS.search(name.lower()):
            raise DataError(
                f"{where}: has {name!r}, which may say where episodes end and is not read; known: {', '.join(known)}. Rename "
                "it to the one that it is, or drop it"
            )
    return [f"not read: {', '.join(others)}"] if others else []


def numbers_of(values: Any, name: str, where: str) -> np.ndarray:
    """[N, ...] of bool, integers or floats, as the source has it.

    Raises:
        DataError: text, complex numbers, records, lists of different lengths, or a single value.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        kinds = {"c": "complex numbers", "S": "text", "U": "text", "O": "text or lists of different lengths", "V": "records"}
        raise DataError(
            f"{where}: {name} holds {kinds.get(values.dtype.kind, f'values of type {values.dtype}')}; an array of numbers is "
            "needed, rewrite it"
        )
    if values.ndim == 0:
        raise DataError(f"{where}: {name} is a single value; one row for each step is needed")
    return values


def rows_of(values: Any, name: str, where: str) -> np.ndarray:
    """[N, D] f32 from [N, ...]; N may be 0.

    Raises:
        DataError: no numbers, D = 0, or a number that float32 cannot hold.
    """
    values = numbers_of(values, name, where)
    if 0 in values.shape[1:]:
        raise DataError(f"{where}: {name} has the shape {list(values.shape)}, which holds nothing; at least 1 number is needed")
    with np.errstate(over="ignore"):
        rows = values.astype(np.float32, copy=False).reshape(len(values), -1) if len(values) else _empty(values)
    if values.dtype.itemsize > 4 and values.dtype.kind == "f":
        wide = values.reshape(rows.shape)
        if (beyond := np.isinf(rows) & np.isfinite(wide)).any():
            row, column = np.argwhere(beyond)[0]
            raise DataError(f"{where}: {name} is {wide[row, column]:.4g} in row {row}, which float32 cannot hold; rescale it")
    return rows


def actions_of(values: Any, name: str, where: str) -> np.ndarray:
    """`rows_of`, which refuses what can only be discrete: whole numbers beyond -1 and 1."""
    values = numbers_of(values, name, where)
    if values.dtype.kind in "iu" and values.size and max(-int(values.min()), int(values.max())) > 1:
        raise DataError(
            f"{where}: {name} holds whole numbers from {values.min()} to {values.max()} ({values.dtype}): discrete actions; "
            "only continuous ones in [-1, 1] can be learned from, store those as floats"
        )
    return rows_of(values, name, where)


def column_of(values: Any, name: str, where: str) -> np.ndarray:
    """[N] f32 from [N] or [N, 1]."""
    return rows_of(_one_per_row(values, name, where), name, where)[:, 0]


def flags_of(values: Any, name: str, where: str, rows: np.ndarray | None = None) -> np.ndarray:
    """[N] bool from [N] or [N, 1] of any type that holds 0 and 1 only. rows: what to call its rows; None: their numbers.

    Raises:
        DataError: another value, or another shape.
    """
    values = _one_per_row(values, name, where)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        place = row if rows is None else rows[row]
        raise DataError(f"{where}: {name} is {values[row]} in row {place}; it must be 0 or 1, rewrite the dataset")
    return values.astype(np.bool_)


def row_numbers_of(values: Any, name: str, where: str) -> np.ndarray:
    """[N] i64 from [N] whole numbers of any type."""
    values = _one_per_row(values, name, where)
    if not np.isfinite(values).all() or (values != np.floor(values)).any():
        raise DataError(f"{where}: {name} holds other than whole numbers; it counts rows, rewrite it")
    return values.astype(np.int64)


def same_rows(where: str, **arrays: np.ndarray) -> int:
    """The number of rows that all of the arrays have.

    Raises:
        DataError: they differ, or there are none.
    """
    (first, values), *others = arrays.items()
    for name, other in others:
        if len(other) != len(values):
            raise DataError(f"{where}: {len(values)} {first} but {len(other)} {name}; one row per transition is needed")
    if len(values) == 0:
        raise DataError(f"{where}: the dataset is empty; it needs at least one episode")
    return len(values)


def _one_per_row(values: Any, name: str, where: str) -> np.ndarray:
    values = numbers_of(values, name, where)
    if values.size != len(values):
        raise DataError(f"{where}: {name} has the shape {list(values.shape)}; one number per row is needed")
    return values.reshape(-1)


def _empty(values: np.ndarray) -> np.ndarray:
    return np.zeros((0, int(np.prod(values.shape[1:], dtype=np.int64))), np.float32)
