"""A local Minari dataset is there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from tests.data.fakes import names_under
from wmrl_ray.data.datasets import dataset_from_episodes, open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.minari_writer import write_local_minari


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    monkeypatch.setenv("WMRL_CACHE_DIR", str(tmp_path / "cache"))
    return root


def episodes(value: float = 0.0) -> list[Episode]:
    return [
        Episode(np.full((n + 1, 4), value, np.float32), np.zeros((n, 2), np.float32), np.zeros(n, np.float32), n == 3)
        for n in (2, 3)
    ]


def write(dataset_id: str, episodes: list[Episode], *, overwrite: bool = False) -> None:
    write_local_minari(dataset_from_episodes(episodes), dataset_id, overwrite=overwrite)


def first_obs(dataset_id: str) -> float:
    return float(minari.load_dataset(dataset_id)[0].observations[0, 0])


def test_what_is_written_comes_back() -> None:
    write("wmrl/test/a-v0", episodes(0.5))
    dataset = minari.load_dataset("wmrl/test/a-v0")
    short, ended = dataset
    np.testing.assert_array_equal(short.observations, episodes(0.5)[0].obs)
    np.testing.assert_array_equal(np.stack((short.terminations, short.truncations)), [[0, 0], [0, 1]])
    np.testing.assert_array_equal(np.stack((ended.terminations, ended.truncations)), [[0, 0, 1], [0, 0, 0]])
    assert list(minari.list_local_datasets()) == ["wmrl/test/a-v0"]


def test_a_byte_that_flips_before_the_first_read_is_found(root: Path) -> None:
    write("test/a-v0", episodes(0.5))
    path = root / "test/a-v0/data/main_data.hdf5"
    content = bytearray(path.read_bytes())
    content[content.index(np.full(12, 0.5, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="it was written with .*the file is damaged"):
        open_dataset("test/a-v0")


def test_an_id_that_leaves_the_folder_is_refused(root: Path) -> None:
    for dataset_id in ("../a-v0", "test/../../a-v0", "no version"):
        with pytest.raises(DataError, match="is not a Minari id"):
            write(dataset_id, episodes())
    assert not names_under(root)


def test_overwriting_replaces_all_of_it(root: Path) -> None:
    write("test/a-v0", episodes(1.0))
    write("test/a-v0", episodes(2.0), overwrite=True)
    assert first_obs("test/a-v0") == 2.0
    assert [path.name for path in root.iterdir()] == ["test"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    if overwrite:
        write("test/a-v0", episodes(1.0))
    create, calls = h5py.Group.create_dataset, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:  # in the second episode
            raise KeyboardInterrupt
        return create(*args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("test/a-v0", episodes(2.0), overwrite=overwrite)
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert list(minari.list_local_datasets()) == (["test/a-v0"] if overwrite else [])
    assert not list(root.rglob(".*"))
    if overwrite:
        assert first_obs("test/a-v0") == 1.0


def test_a_full_disk_gets_one_clear_line_and_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(DataError, match=r"no space left to write .*test/a-v0; free some space"):
        write("test/a-v0", episodes())
    assert names_under(root) == {"test"}
