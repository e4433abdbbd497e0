"""The flat memory-mapped copy of a source, keyed by the hash of the source's content.

    <cache>/datasets/<key>/  data.arrow      one row per observation: obs, action, reward, terminated
                             episodes.arrow  episode_starts: the first row of each episode, and the number of rows
                             layout.json     file, offset, shape and type of each array: to map them without pyarrow
                             card.json       the dataset's card
                             manifest.json   sha256 of the files above
    <cache>/index/           source path -> (signature, content hash); copies that were checked

A folder is written under another name and renamed when complete, so it is complete or absent, also with several processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.data.card import card_from_dict, make_card
from wmrl_ray.data.datasets import Dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import atomic_folder, default_cache_dir, explained_os_errors, file_sha256, write_json
from wmrl_ray.data.readers.raw import Progress
from wmrl_ray.data.source import Source

VERSION = 7  # of the layout and of the readers: raise it when either changes what is read
FILES = ("data.arrow", "episodes.arrow", "layout.json", "card.json")
ARRAYS = ("obs", "action", "reward", "terminated", "episode_starts")  # the last one in episodes.arrow


class Cache:
    """The cache in one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_dir()

    def open(self, source: Source, progress: Progress | None = None) -> Dataset:
        """Maps the copy of `source`, reading the source first when its content is new.

        Raises:
            DataError: the source cannot be read, the copy is damaged, or no space.
        """
        signature = source.signature()
        known = self.known(source)
        if known is not None and known["signature"] == signature and self.path(known["sha256"]).is_dir():
            return self.load(source, known["sha256"])
        sha256 = source.sha256()
        if not self.path(sha256).is_dir():
            self._build(source, sha256, progress)
        dataset = self.load(source, sha256)
        with explained_os_errors(self.folder):
            write_json(self._index(source), {"source": str(source.path), "signature": signature, "sha256": sha256})
        return dataset

    def known(self, source: Source) -> dict[str, str] | None:
        """What the index says about the source: the content hash when it was last read."""
        entry = _read_json(self._index(source))
        return entry if isinstance(entry, dict) and {"signature", "sha256"} <= set(entry) else None

    def path(self, source_sha256: str) -> Path:
        return self.folder / "datasets" / f"{source_sha256[:24]}-v{VERSION}"

    def load(self, source: Source, source_sha256: str) -> Dataset:
        """Maps a copy; its sha256 are checked the first time that these very files are seen."""
        path = self.path(source_sha256)
        stamp = _stamp(path)
        checked = self.folder / "index" / f"{path.name}.checked"
        if _read_json(checked) != stamp:
            self.verify(source_sha256)
            with contextlib.suppress(OSError):  # a read-only cache: then it is checked each time
                write_json(checked, stamp)
        return _map(path, source.uri, source.name)

    def verify(self, source_sha256: str) -> dict[str, str]:
        """Compares the copy's files with its manifest; returns file name -> sha256.

        Raises:
            DataError: naming the file that differs.
        """
        path = self.path(source_sha256)
        fix = f"delete the folder {path}, it is rebuilt from the source"
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            expected = {name: str(manifest["files"][name]) for name in FILES}
            if manifest["source_sha256"] != source_sha256:
                raise ValueError(f"it is of a source with sha256 {manifest['source_sha256']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the cache's manifest {path / 'manifest.json'} cannot be read ({error}); {fix}") from error
        for name, sha256 in expected.items():
            file = path / name
            if not file.is_file():
                raise DataError(f"{file} is missing from the cache; {fix}")
            if (found := file_sha256(file)) != sha256:
                raise DataError(f"{file} has sha256 {found[:12]}..., its manifest says {sha256[:12]}...: it is damaged; {fix}")
        return expected

    def prune(self) -> list[tuple[str, int]]:
        """Deletes the copies of older versions, which nothing here reads; returns (folder name, bytes) of each.

        Why only when asked: a process of an older version of this package may be using them. One that has a copy mapped keeps
        its pages; one that opens it again reads its source again.
        """
        pruned = []
        for path in sorted((self.folder / "datasets").glob("*-v*")):
            version = re.fullmatch(r"[0-9a-f]{24}-v(\d+)", path.name)
            if version is None or int(version[1]) >= VERSION:
                continue
            size = sum(file.stat().st_size for file in path.iterdir())
            with explained_os_errors(path):
                # Why renamed first: a copy is complete or absent
                os.rename(path, old := path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}"))
                shutil.rmtree(old)
                (self.folder / "index" / f"{path.name}.checked").unlink(missing_ok=True)
            pruned.append((path.name, size))
        return pruned

    def _build(self, source: Source, sha256: str, progress: Progress | None) -> None:
        from wmrl_ray.data import arrow

        arrays, origin = source.read(progress)
        path = self.path(sha256)
        card = make_card(arrays, origin, uri=source.uri, name=source.name, source_sha256=sha256)
        _remove_stale(path)
        with atomic_folder(path) as folder:
            arrow.write_ipc(folder / "data.arrow", {name: arrays[name] for name in ARRAYS[:-1]})
            arrow.write_ipc(folder / "episodes.arrow", {name: arrays[name] for name in ARRAYS[-1:]})
            layout = arrow.locate(folder / "data.arrow") | arrow.locate(folder / "episodes.arrow")
            layout["obs"]["shape"] = list(arrays["obs"].shape)  # Why: a column holds images as flat lists
            write_json(folder / "layout.json", layout)
            write_json(folder / "card.json", to_dict(card))
            files = {name: file_sha256(folder / name) for name in FILES}
            write_json(folder / "manifest.json", {"version": VERSION, "source_sha256": sha256, "files": files})

    def _index(self, source: Source) -> Path:
        return self.folder / "index" / f"{hashlib.sha256(str(source.path).encode()).hexdigest()[:24]}.json"


def reopen(path: str, uri: str, name: str) -> Dataset:
    """Maps a copy again in another process: what unpickling a cached dataset does."""
    return _map(Path(path), uri, name)


def _map(path: Path, uri: str, name: str) -> Dataset:
    try:
        card = card_from_dict(json.loads((path / "card.json").read_text()))
        layout = json.loads((path / "layout.json").read_text())
        arrays = {array: _array(path, **layout[array]) for array in ARRAYS}
    except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        raise DataError(f"the copy in {path} cannot be read ({error}); delete that folder, it is rebuilt") from error
    return Dataset(card=dataclasses.replace(card, uri=uri, name=name, cache_path=str(path)), **arrays)


def _array(path: Path, file: str, offset: int, shape: list[int], dtype: str) -> np.ndarray:
    """A read-only view of one array in the file: no copy, the pages are shared between processes."""
    # Why not pyarrow: importing it takes a hundred times longer than this.
    return np.memmap(path / file, np.dtype(dtype), mode="r", offset=offset, shape=tuple(shape)).view(np.ndarray)


def _stamp(path: Path) -> list[list[int]]:
    """Names, sizes and times of the copy's files: another stamp means other files."""
    try:
        stats = [(path / name).stat() for name in (*FILES, "manifest.json")]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing from the cache; delete the folder {path}, it is rebuilt") from None
    return [[stat.st_size, stat.st_mtime_ns, stat.st_ino] for stat in stats]


def _read_json(path: Path) -> Any:
    """An entry of the index, or None: never written, or damaged, which only costs a check."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text())
    return None


def _remove_stale(path: Path, seconds: float = 3600.0) -> None:
    """Removes what a killed process left of this copy."""
    for folder in path.parent.glob(f".{path.name}.*"):
        if time.time() - folder.stat().st_mtime > seconds:
            shutil.rmtree(folder, ignore_errors=True)
