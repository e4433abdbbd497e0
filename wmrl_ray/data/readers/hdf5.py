"""HDF5 can name other files of this machine in the place of its own content; a dataset from elsewhere must not."""

from __future__ import annotations

from typing import Any

import h5py
from h5py import h5d, h5f  # pyright: ignore[reportAttributeAccessIssue]

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.values import reading


def read_array(file: h5py.File, name: str, where: str) -> Any:
    """All of the array `name`.

    Raises:
        DataError: it is a group, lies in another file, or cannot be read.
    """
    with reading(f"{where}: {name}"):
        found = file[name]
        if not isinstance(found, h5py.Dataset):
            raise DataError(f"{where}: {name} is a {type(found).__name__.lower()}, not an array; store one array of numbers")
        check_own_content(found.id, file.id, f"{where}: {name}")
        return found[()]


def check_own_content(source: Any, file: Any, where: str) -> Any:
    """`source` (h5d.DatasetID), whose values lie in `file` (h5f.FileID): no external link, external storage or virtual dataset.

    Raises:
        DataError: they lie in another file, which would be read with the user's rights.
    """
    plist = source.get_create_plist()
    if h5f.get_name(source) != file.name or plist.get_external_count() or plist.get_layout() == h5d.VIRTUAL:
        raise DataError(f"{where}: values that lie in another file are not read; copy them into this one")
    return source
