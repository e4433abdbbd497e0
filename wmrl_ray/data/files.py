"""Files: atomic writes, hashes, and which of a folder are tables."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wmrl_ray.config import check, join
from wmrl_ray.data.episode import DataError


class NumberError(ValueError):
    """NaN or an infinity on its way into JSON, which has no word for it. The message names the file and the key."""


TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file name beside `path` (same ending) that becomes `path`, synced, when the block ends well and vanishes
    otherwise. Whoever reads `path`, and whatever happens meanwhile, finds the old file or the new one, whole.

    Raises:
        OSError: it cannot be written; its `filename` is `path`.
    """
    partial = partial_of(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """UTF-8, as `replacing` does it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any, *, indent: int | None = 1, default: Callable[[Any], Any] | None = None) -> None:
    """As `replacing` does it. Raises NumberError."""
    write_text(path, as_json(values, str(path), indent=indent, default=default) + "\n")


def as_json(values: Any, what: str, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """The JSON of `values`, of which `what` is the name. Raises NumberError."""
    try:
        return json.dumps(values, indent=indent, default=default, allow_nan=False)
    except ValueError as error:
        place = next(_not_finite(values), None)
        if place is None:
            raise
        raise NumberError(f"{what}: {place[0]} = {place[1]} is no number that JSON knows") from error


def _not_finite(values: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of each number in it that is not finite."""
    if isinstance(values, float) and not math.isfinite(values):
        yield path, values
    if isinstance(values, Mapping | list | tuple):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            yield from _not_finite(value, join(path, key))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """`replacing`, of a dataset's files. Raises DataError: no space left, or the folder cannot be written."""
    with explained_os_errors(path), replacing(path) as partial:
        yield partial


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well and vanishes otherwise.

    A folder that is at `path` by then stays and this one is dropped; with `overwrite` this one takes its place.

    Raises:
        DataError: no space left, or the folder cannot be written.
    """
    temporary = partial_of(path)
    try:
        with explained_os_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            if overwrite:
                replace_folder(temporary, path)
                return
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Puts the finished folder `partial` in place of `target`: nothing, or an older folder, which is deleted.

    Two renames, since no one call of every system does it. A kill between them leaves the older one beside `target`, where
    `recover` finds it.
    """
    while True:
        if target.exists():
            os.rename(target, target.with_name(f".{target.name}.{_token()}{_OLD}"))
        try:
            os.rename(partial, target)
            break
        except OSError as error:  # Why again: a reader has put the older one back in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                recover(target)
                raise
    sync(target.parent)
    for old in target.parent.glob(f".{glob.escape(target.name)}.*{_OLD}"):
        shutil.rmtree(old, ignore_errors=True)


def recover_all(folder: Path) -> None:
    """`recover`, of whatever was in `folder`."""
    for old in folder.glob(f".*{_OLD}"):
        recover(folder / old.name[1:].removesuffix(_OLD).rpartition(".")[0])


def recover(target: Path) -> None:
    """Before `target` is read: what a `replace_folder` that was killed between its two renames moved aside goes back."""
    if not target.exists():
        for old in target.parent.glob(f".{glob.escape(target.name)}.*{_OLD}"):
            with contextlib.suppress(OSError):  # Why: another reader was faster, or nobody may write here
                os.rename(old, target)


def partial_of(path: Path) -> Path:
    """Where what is to be `path` is written first: beside it, with its ending, and nobody else's on any host."""
    return path.with_name(f".{path.stem}.{_token()}{_PARTIAL}{path.suffix}")


def remove_partials(folder: Path) -> None:
    """Deletes what killed processes left half-written in `folder`; for whoever alone writes there."""
    for path in [*folder.glob(f".*{_PARTIAL}*"), *folder.glob(f".*{_OLD}")]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


_PARTIAL, _OLD = ".partial", ".old"


def _token() -> str:
    return uuid.uuid4().hex[:12]


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, onto the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # Why: not every file system can, of folders
            raise
    finally:
        os.close(number)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the file system inside names `path`, whichever library noticed it."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def despite_full_disk(cost: str) -> Iterator[None]:
    """A full disk inside ends the block with a warning that names the `cost`, since a later write makes up for it."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        warnings.warn(f"{error.strerror}: {cost}", stacklevel=4)


def is_full(error: OSError) -> bool:
    """Whether there was no room: other errors of a disk do not pass by themselves."""
    return error.errno in _FULL


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # Why: safetensors and pyarrow put it into the text of errors of their own
    return next((number for number in _FULL if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turns a full disk and a forbidden folder into one clear line."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DataError(f"no space left to write {path}; free some space or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(f"cannot write {path}: {error.strerror}; choose a folder that you may write") from error
        raise


def slug(text: str, limit: int = 80) -> str:
    """The part of a path that any text makes: ASCII letters, digits and ._+=-, at most `limit` of them. Where something had to
    give way, the hash of the whole text keeps it apart from others.
    """
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).lstrip(".")
    if name == text and 0 < len(name) <= limit:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{name[: limit - 9].lstrip('_.').rstrip('_')}-{digest}"


def below(folder: Path, name: str) -> Path:
    """`folder / name`. Raises ConfigError where that is not a place inside the folder, whatever links lead there."""
    path = folder / name
    inside = path.resolve() != folder.resolve() and path.resolve().is_relative_to(folder.resolve())
    check(inside, f"{name!r} leads out of {folder}; nothing is written there")
    return path


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free(path: Path, overwrite: bool) -> None:
    """Raises DataError if something is at `path` that may not be replaced."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; choose another place, or replace it: --overwrite (overwrite=True)")


def table_files(path: Path) -> list[Path]:
    """The files of a table dataset (a file or a folder) in reading order; empty when there are none."""
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in TABLE_SUFFIXES)


def default_cache_dir() -> Path:
    """WMRL_CACHE_DIR, or ~/.cache/wmrl_ray."""
    folder = os.environ.get("WMRL_CACHE_DIR")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "wmrl_ray"
