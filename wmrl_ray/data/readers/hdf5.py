"""HDF5 can name other files of this machine in the place of its own content; a dataset from elsewhere must not."""

from __future__ import annotations

from typing import Any

from h5py import h5d, h5f  # pyright: ignore[reportAttributeAccessIssue]

from wmrl_ray.data.episode import DataError


def check_own_content(source: Any, file: Any, where: str) -> Any:
    """`source` (h5d.DatasetID), whose values lie in `file` (h5f.FileID): no external link, external storage or virtual dataset.

    Raises:
        DataError: they lie in another file, which would be read with the user's rights.
    """
    plist = source.get_create_plist()
    if h5f.get_name(source) != file.name or plist.get_external_count() or plist.get_layout() == h5d.VIRTUAL:
        raise DataError(f"{where}: values that lie in another file are not read; copy them into this one")
    return source
