"""The flat memory-mapped copy of a source, keyed by the hash of the source's content.

    <cache>/datasets/<key>/  data.arrow      one row per observation: obs, action, reward, terminated
                             episodes.arrow  first_row of each episode, and the number of rows at the end
                             card.json       the dataset's card
                             manifest.json   sha256 and size of the three files above
    <cache>/index/           source path -> (signature, content hash); copies that were checked

A folder is written under another name and renamed when complete, so it is complete or absent, also with several processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.data.arrow import map_ipc, write_ipc
from wmrl_ray.data.card import card_from_dict, make_card
from wmrl_ray.data.datasets import Dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import atomic_folder, file_sha256, write_json
from wmrl_ray.data.readers.raw import Progress
from wmrl_ray.data.source import Source

VERSION = 2  # of the layout and of the readers: raise it when either changes what is read
FILES = ("data.arrow", "episodes.arrow", "card.json")
ROW_COLUMNS = ("obs", "action", "reward", "terminated")


def default_cache_dir() -> Path:
    """WMRL_CACHE_DIR, or ~/.cache/wmrl_ray."""
    folder = os.environ.get("WMRL_CACHE_DIR")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "wmrl_ray"


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
            with contextlib.suppress(DataError):  # a read-only cache: then it is checked each time
                write_json(checked, stamp)
        return _map(path, source)

    def verify(self, source_sha256: str) -> dict[str, str]:
        """Compares the copy's files with its manifest; returns file name -> sha256.

        Raises:
            DataError: naming the file that differs.
        """
        path = self.path(source_sha256)
        fix = f"delete the folder {path}, it is rebuilt from the source"
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            expected = {name: str(manifest["files"][name]["sha256"]) for name in FILES}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the cache's manifest {path / 'manifest.json'} cannot be read ({error}); {fix}") from error
        for name, sha256 in expected.items():
            file = path / name
            if not file.is_file():
                raise DataError(f"{file} is missing from the cache; {fix}")
            if (found := file_sha256(file)) != sha256:
                raise DataError(f"{file} has sha256 {found[:12]}..., its manifest says {sha256[:12]}...: it is damaged; {fix}")
        return expected

    def _build(self, source: Source, sha256: str, progress: Progress | None) -> None:
        raw = source.read(progress)
        arrays = raw.checked(source.name)
        path = self.path(sha256)
        card = make_card(arrays, raw.origin, uri=source.uri, name=source.name, source_sha256=sha256)
        _remove_stale(path)
        with atomic_folder(path) as folder:
            write_ipc(folder / "data.arrow", {name: arrays[name] for name in ROW_COLUMNS})
            write_ipc(folder / "episodes.arrow", {"first_row": arrays["episode_starts"]})
            write_json(folder / "card.json", to_dict(card))
            files = {name: {"sha256": file_sha256(folder / name), "size": (folder / name).stat().st_size} for name in FILES}
            write_json(folder / "manifest.json", {"version": VERSION, "source_sha256": sha256, "files": files})

    def _index(self, source: Source) -> Path:
        return self.folder / "index" / f"{hashlib.sha256(str(source.path).encode()).hexdigest()[:24]}.json"


def reopen(path: str, uri: str, name: str) -> Dataset:
    """Maps a copy again in another process: what unpickling a cached dataset does."""
    return _map(Path(path), Source("npz", Path(path), uri, name))


def _map(path: Path, source: Source) -> Dataset:
    rows, episodes = map_ipc(path / "data.arrow"), map_ipc(path / "episodes.arrow")
    try:
        card = card_from_dict(json.loads((path / "card.json").read_text()))
    except (OSError, ValueError, ConfigError) as error:
        raise DataError(
            f"{path / 'card.json'} cannot be read ({error}); delete its folder, it is rebuilt from the source"
        ) from error
    card = dataclasses.replace(card, uri=source.uri, name=source.name, cache_path=str(path))
    return Dataset(card=card, **{name: rows[name] for name in ROW_COLUMNS}, episode_starts=episodes["first_row"])


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
