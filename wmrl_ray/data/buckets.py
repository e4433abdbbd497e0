"""Datasets in a bucket: `s3://BUCKET/PATH` or `gs://BUCKET/PATH`, a file or a folder of any format that is read from a disk.

Its files are copied into <cache>/downloads/ once for each state of the bucket (names, sizes, times), complete or not at all.
The credentials and the region are those that the cloud's own tools find: AWS_* variables, ~/.aws, the machine's role. An URI
may carry pyarrow's options, such as `?region=eu-west-1` or `?endpoint_override=HOST:PORT&scheme=http`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import atomic_folder
from wmrl_ray.data.remote import first_line, within

SCHEMES = ("s3", "gs")
ANSWER_SECONDS = 30.0  # for the list of files; copying them may take as long as it needs


def fetch(uri: str, cache: Path) -> Path:
    """A copy on this machine: a file, or a folder with the same files below it.

    Raises:
        DataError: nothing there, no answer, no right to read, no space, or a key in the URI.
    """
    from pyarrow.fs import FileSystem

    scheme, _, rest = uri.partition("://")
    if {"@", ":"} & set(rest.partition("/")[0]):
        raise DataError(
            f"dataset '{scheme}://...' carries a key, which cards and run folders would keep; leave it out of the URI, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        system, base = FileSystem.from_uri(uri)
        files = within(ANSWER_SECONDS, lambda: _files(system, base))
    except Exception as error:  # Why so wide: each cloud's library has its own errors
        raise DataError(
            f"dataset {uri!r} cannot be listed ({first_line(error)}); check the name, the network, and AWS_* or the "
            "machine's role"
        ) from error
    if not files:
        raise DataError(f"dataset {uri!r} does not exist: the bucket has no file of that name, nor below it")
    facts = [base, [(name, info.size, info.mtime_ns) for name, info in files]]
    folder = cache / "downloads" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    name = PurePosixPath(base).name
    if not folder.is_dir():
        with atomic_folder(folder) as building:
            for below, info in files:
                _copy(system, info.path, building / name / below, uri)
    return folder / name


def _files(system: Any, base: str) -> list[tuple[str, Any]]:
    """(name below `base`, what is known of it) of each file; the name of `base` itself, a file, is '.'."""
    from pyarrow.fs import FileSelector, FileType

    info = system.get_file_info(base)
    if info.type == FileType.File:
        return [(".", info)]
    below = system.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
    return sorted((f.path.removeprefix(base).strip("/"), f) for f in below if f.type == FileType.File)


def _copy(system: Any, source: str, target: Path, uri: str) -> None:
    if ".." in target.parts:
        raise DataError(f"dataset {uri!r} has a file {source!r}, whose name leads out of its folder; rename it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as into:
        try:
            with system.open_input_stream(source) as stream:
                while piece := stream.read(1 << 24):
                    into.write(piece)
        except OSError as error:
            if error.filename is not None:  # of this machine's disk, which `atomic_folder` explains
                raise
            raise DataError(f"the copy of {source} in {uri!r} broke off ({first_line(error)}); start it again") from error
