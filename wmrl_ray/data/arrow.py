"""The only place that opens Arrow and Parquet files: first takes away what could run code while a schema is read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wmrl_ray.data.readers.values import reading

# Ray before 2.55 unpickles the metadata of these types whenever a schema with one of them is read (CVE-2026-41486).
RAY_EXTENSION_TYPES = (
    "ray.data.arrow_tensor",
    "ray.data.arrow_tensor_v2",
    "ray.data.arrow_variable_shaped_tensor",
    "ray.data.arrow_pickled_object",
)


_LARGE = pa.ipc.IpcWriteOptions(allow_64bit=True)  # a batch of images has more than 2^31 numbers


def unregister_ray_extension_types() -> None:
    """Makes this process read Ray's extension types as their plain storage. `import ray.data` registers them, at any time."""
    for name in RAY_EXTENSION_TYPES:
        with contextlib.suppress(KeyError):  # not registered: nothing to take away
            pa.unregister_extension_type(name)


def read_table(path: Path) -> pa.Table:
    """A whole Parquet, Arrow IPC (file or stream) or Feather file.

    Raises:
        DataError: truncated, damaged, or another format.
    """
    unregister_ray_extension_types()
    with reading(str(path)):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # here, because mapping the cache does not need it

            table = pq.ParquetFile(path, memory_map=True).read()
        else:
            with pa.memory_map(str(path)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                table = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
        table.validate(full=True)  # Why: offsets that lead out of a damaged file's buffers end the process when followed
        return table


def write_ipc(path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes equally long arrays ([N] or [N, ...]) as one record batch, so that each is one contiguous piece of the file."""
    table = table_of(columns, metadata)
    batch = pa.RecordBatch.from_arrays([column.chunk(0) for column in table.columns], schema=table.schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=_LARGE) as writer:
        writer.write_batch(batch)


def locate(path: Path) -> dict[str, dict[str, Any]]:
    """Where `write_ipc` put each array in the file: its offset in bytes, shape and type, enough to map it without pyarrow."""
    unregister_ray_extension_types()
    with pa.memory_map(str(path)) as source:
        start = source.read_buffer(source.size()).address
        source.seek(0)
        batch = pa.ipc.open_file(source).get_batch(0)
        views = {name: _view(batch.column(i)) for i, name in enumerate(batch.schema.names)}
        return {
            name: {"file": path.name, "offset": view.ctypes.data - start, "shape": list(view.shape), "dtype": view.dtype.str}
            for name, view in views.items()
        }


def table_of(columns: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> pa.Table:
    """[N] arrays become plain columns, [N, ...] arrays fixed-size flat lists; no copy."""
    arrays = [
        pa.array(values)
        if values.ndim == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
        for values in columns.values()
    ]
    return pa.table(arrays, names=list(columns), metadata=dict(metadata) if metadata else None)


def _view(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=True)
