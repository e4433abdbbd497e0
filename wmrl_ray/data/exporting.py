"""A dataset out into another format. Reading an export back gives the same arrays: the same `card.sha256`, which it carries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import did_you_mean
from wmrl_ray.data.datasets import Dataset, open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import atomic_path, check_free
from wmrl_ray.data.minari_writer import write_minari
from wmrl_ray.data.readers.origin import origin_json


def export(
    uri: str | Path, path: str | Path, format: str, *, overwrite: bool = False, cache_dir: Path | str | None = None
) -> Path:
    """Writes the dataset at `uri` to `path`, complete or not at all, and returns the path.

    Args:
        uri: of the dataset, as `open_dataset` takes it.
        path: a file; for "minari" a folder, whose name is the dataset's (`name-v0`).
        format: "minari", "parquet", "arrow", "npz" or "hdf5" (D4RL style).
        overwrite: replace what is at `path`.
        cache_dir: see `open_dataset`.

    Raises:
        DataError: unknown format, `path` exists or does not fit the format, no space.
    """
    writers = {"npz": _write_npz, "hdf5": _write_hdf5, "parquet": _write_parquet, "arrow": _write_arrow}
    path = Path(path).expanduser()
    if format not in (*writers, "minari"):
        allowed = sorted((*writers, "minari"))
        raise DataError(f"format = {format!r}{did_you_mean(format, allowed)}; allowed: {', '.join(allowed)}")
    if format in writers and path.suffix not in (endings := (f".{format}", ".h5") if format == "hdf5" else (f".{format}",)):
        raise DataError(
            f"path = {str(path)!r} does not end in {' or '.join(endings)}, so it could not be opened again; rename it"
        )
    check_free(path, overwrite)
    dataset = open_dataset(uri, cache_dir=cache_dir)
    if format not in ("minari", "npz") and not isinstance(dataset.card.obs_dim, int):
        raise DataError(f"{dataset.card.name!r} holds images, which format = {format!r} cannot; export it as minari or npz")
    if format == "minari":
        write_minari(dataset, path, path.name, overwrite=overwrite)
    else:
        with atomic_path(path) as temporary:
            writers[format](dataset, temporary)
    return path


def _write_npz(dataset: Dataset, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            obs=dataset.obs,
            action=dataset.action,
            reward=dataset.reward,
            terminated=dataset.terminated,
            episode_starts=dataset.episode_starts,
            wmrl_origin=np.array(origin_json(dataset.card)),
        )


def _write_hdf5(dataset: Dataset, path: Path) -> None:
    import h5py

    is_step = np.ones(len(dataset.obs), np.bool_)
    is_step[dataset.episode_starts[1:] - 1] = False
    steps = np.flatnonzero(is_step)
    timeout = np.zeros(len(dataset.obs), np.bool_)
    timeout[dataset.episode_starts[1:] - 2] = True
    terminal = dataset.terminated[steps].astype(np.bool_)
    with h5py.File(path, "w") as file:
        file["observations"] = dataset.obs[steps]
        file["next_observations"] = dataset.obs[steps + 1]
        file["actions"], file["rewards"] = dataset.action[steps], dataset.reward[steps]
        file["terminals"], file["timeouts"] = terminal, timeout[steps] & ~terminal
        file.attrs["wmrl_origin"] = origin_json(dataset.card)


def _write_parquet(dataset: Dataset, path: Path) -> None:
    import pyarrow.parquet as pq

    _write_table(dataset, lambda table: pq.write_table(table, path, compression="zstd"))


def _write_arrow(dataset: Dataset, path: Path) -> None:
    import pyarrow as pa

    def write(table: Any) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    _write_table(dataset, write)


def _write_table(dataset: Dataset, write: Callable[[Any], None]) -> None:
    from wmrl_ray.data.arrow import table_of

    columns = {
        "episode": np.repeat(np.arange(len(dataset)), np.diff(dataset.episode_starts)),
        "obs": dataset.obs,
        "action": dataset.action,
        "reward": dataset.reward,
        "terminated": dataset.terminated.view(np.bool_),
    }
    write(table_of(columns, {"wmrl_origin": origin_json(dataset.card)}))
