"""Files: atomic writes, hashes, and which of a folder are tables."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmrl_ray.data.episode import DataError

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file name beside `path` (same ending) that becomes `path` when the block ends well and vanishes otherwise.

    Raises:
        DataError: no space left, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well and vanishes otherwise.

    A folder that is at `path` by then stays and this one is dropped; with `overwrite` this one takes its place.

    Raises:
        DataError: no space left, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with explained_os_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            if overwrite and path.exists():
                os.rename(path, old := temporary.with_name(f"{temporary.name}.old"))
                try:
                    os.rename(temporary, path)
                except OSError:
                    os.rename(old, path)
                    raise
                shutil.rmtree(old)
                return
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turns a full disk and a forbidden folder into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(f"no space left to write {path}; free some space or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(f"cannot write {path}: {error.strerror}; choose a folder that you may write") from error
        raise


def write_json(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


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
