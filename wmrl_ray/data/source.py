"""A URI -> the files behind it and the reader for them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wmrl_ray.config import did_you_mean, from_dict
from wmrl_ray.data.buckets import SCHEMES, fetch
from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import TABLE_SUFFIXES, default_cache_dir, file_sha256, table_files
from wmrl_ray.data.readers.raw import Progress
from wmrl_ray.data.readers.values import reading

Kind = Literal["minari", "hdf5", "table", "npz"]
FORMATS = (
    "minari://ID, a Minari id or folder, hdf5://PATH, *.hdf5, *.h5, *.npz, *.parquet, *.arrow, *.feather, a folder of tables, "
    "or one of these in a bucket, s3://BUCKET/PATH or gs://BUCKET/PATH"
)
_WHAT = {"minari": "a Minari dataset", "hdf5": "D4RL-style HDF5", "table": "a table of episodes", "npz": "npz"}
MINARI_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")  # as Minari's own, with a version


@dataclass(frozen=True)
class Source:
    """A dataset on disk, before reading. uri is canonical: the same for every way to name the source."""

    kind: Kind
    path: Path
    uri: str
    name: str

    def read(self, progress: Progress | None = None) -> tuple[dict[str, np.ndarray], Origin]:
        """All of it, checked: the arrays in the layout of `Dataset`, and what the source says about itself.

        Raises:
            DataError: it cannot be read, or `RawDataset.checked` refuses it.
        """
        if self.kind == "minari":
            from wmrl_ray.data.readers.minari_files import read_minari as read
        elif self.kind == "hdf5":
            from wmrl_ray.data.readers.d4rl import read_d4rl_hdf5 as read
        elif self.kind == "table":
            from wmrl_ray.data.readers.tables import read_tables as read
        else:
            from wmrl_ray.data.readers.npz import read_npz as read
        with reading(f"{self.path} as {_WHAT[self.kind]}"):
            raw = read(self.path, progress)
            return raw.checked(self.name), from_dict(Origin, vars(raw.origin))  # for its check of the types

    def signature(self) -> str:
        """A hash of the names, sizes and modification times of the files: changes when they are written, costs no reading."""
        stats = ((name, os.stat(path)) for name, path in self.files())
        facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def sha256(self) -> str:
        """Of the content: of the file if it is one, else over the names and hashes of the files."""
        if self.path.is_file():
            return file_sha256(self.path)
        facts = [(name, file_sha256(path)) for name, path in self.files()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def files(self) -> Iterator[tuple[str, Path]]:
        """(name inside the source, path) of each file that the reader may read, in a fixed order."""
        if self.path.is_file() or self.kind == "table":
            yield from ((path.name, path) for path in table_files(self.path))
        else:
            for folder, folders, names in os.walk(self.path / "data"):
                folders.sort()
                for name in sorted(names):
                    path = Path(folder, name)
                    yield str(path.relative_to(self.path)), path


def resolve(uri: str | Path, cache: Path | None = None) -> Source:
    """Finds the source; a Minari id that is not on this machine is downloaded, what is in a bucket is copied into `cache`
    (None: `default_cache_dir`).

    Raises:
        DataError: nothing there, or an unknown format.
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "minari":
        return _minari_id(rest)
    if separator and scheme in SCHEMES:
        found = _on_disk(fetch(text, cache or default_cache_dir()), None)
        return replace(found, uri=text.partition("?")[0])
    if separator and scheme not in ("hdf5", "file"):
        raise DataError(f"dataset {text!r}: unknown scheme {scheme!r}; allowed: {FORMATS}")
    path = Path(rest if separator else text).expanduser()
    if path.exists():
        return _on_disk(path, "hdf5" if scheme == "hdf5" and separator else None)
    if not separator and not path.is_absolute() and MINARI_ID.fullmatch(text):
        return _minari_id(text)
    raise DataError(
        f"dataset {text!r} does not exist; give an existing file or folder, or a Minari id such as 'wmrl/pointmaze/umaze-v0'"
    )


def is_local(uri: str | Path) -> bool:
    """Whether there is something at the URI on this machine, so that opening it needs no download."""
    text = str(uri)
    rest = text.partition("://")[2] or text
    return Path(rest).expanduser().exists() or (minari_root() / rest / "data" / "metadata.json").is_file()


def absolute(uri: str) -> str:
    """The URI, from whatever folder it is read: a path to something on this machine as an absolute one."""
    scheme, separator, rest = uri.rpartition("://")
    path = Path(rest).expanduser()
    return f"{scheme}{separator}{os.path.abspath(path)}" if scheme != "minari" and path.exists() else uri


def check_minari_id(dataset_id: str) -> None:
    """Raises DataError unless Minari can find a dataset by this id."""
    if not MINARI_ID.fullmatch(dataset_id):
        raise DataError(f"{dataset_id!r} is not a Minari id; it looks like 'name-v0' or 'group/name-v0'")


def minari_root() -> Path:
    """Minari's folder of local datasets: MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    root = os.environ.get("MINARI_DATASETS_PATH")
    return Path(root) if root else Path.home() / ".minari" / "datasets"


def local_minari_ids() -> list[str]:
    """The ids of the Minari datasets on this machine, sorted."""
    found: list[str] = []
    for folder, folders, _ in os.walk(minari_root()):
        if Path(folder, "data", "metadata.json").is_file():
            found.append(Path(folder).relative_to(minari_root()).as_posix())
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".") and name != "data"]
    return sorted(found)


def _minari_id(dataset_id: str) -> Source:
    check_minari_id(dataset_id)
    folder = minari_root() / dataset_id
    if not (folder / "data" / "metadata.json").is_file():
        if dataset_id.startswith("wmrl/"):
            ids = local_minari_ids()
            command = "wmrl data make" + " expert:TASK --checkpoint RUN" * dataset_id.startswith("wmrl/expert/")
            raise DataError(
                f"dataset {dataset_id!r} is not on this machine{did_you_mean(dataset_id, ids)}; make it with `{command}`, "
                f"or set MINARI_DATASETS_PATH (here: {', '.join(ids) or 'none'})"
            )
        from wmrl_ray.data.remote import download

        download(dataset_id, minari_root())
    return Source("minari", folder, f"minari://{dataset_id}", dataset_id)


def _on_disk(path: Path, kind: Kind | None) -> Source:
    path = path.resolve()
    if path.is_dir():
        if (path / "data" / "metadata.json").is_file():
            try:
                dataset_id = path.relative_to(minari_root().resolve()).as_posix()
                return Source("minari", path, f"minari://{dataset_id}", dataset_id)
            except ValueError:
                return Source("minari", path, str(path), path.name)
        if table_files(path):
            return Source("table", path, str(path), path.name)
        raise DataError(f"folder {str(path)!r} holds no dataset (no data/metadata.json, no table); allowed: {FORMATS}")
    if kind == "hdf5" or path.suffix in (".hdf5", ".h5"):
        return Source("hdf5", path, str(path), path.stem)
    if path.suffix == ".npz":
        return Source("npz", path, str(path), path.stem)
    if path.suffix in TABLE_SUFFIXES:
        return Source("table", path, str(path), path.stem)
    raise DataError(f"file {str(path)!r} has an unknown format {path.suffix!r}; allowed: {FORMATS}")
