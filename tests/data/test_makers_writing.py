"""A made dataset is there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest

from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.makers.minari_writer import Origin, write

pytest.importorskip("gymnasium_robotics")
ORIGIN = Origin("wmrl/PointMaze-UMaze-v0", "none", "A test.", 0.0, 1.0, 1)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def episodes(value: float = 0.0) -> list[Episode]:
    return [
        Episode(np.full((n + 1, 4), value, np.float32), np.zeros((n, 2), np.float32), np.zeros(n, np.float32), n == 3)
        for n in (2, 3)
    ]


def first_obs(dataset_id: str) -> float:
    return float(minari.load_dataset(dataset_id)[0].observations[0, 0])


def test_what_is_written_comes_back() -> None:
    write("wmrl/test/a-v0", episodes(0.5), ORIGIN)
    dataset = minari.load_dataset("wmrl/test/a-v0")
    short, ended = dataset
    np.testing.assert_array_equal(short.observations, episodes(0.5)[0].obs)
    np.testing.assert_array_equal(np.stack((short.terminations, short.truncations)), [[0, 0], [0, 1]])
    np.testing.assert_array_equal(np.stack((ended.terminations, ended.truncations)), [[0, 0, 1], [0, 0, 0]])
    assert list(minari.list_local_datasets()) == ["wmrl/test/a-v0"]


def test_an_id_that_exists_is_refused_and_kept() -> None:
    write("test/a-v0", episodes(1.0), ORIGIN)
    with pytest.raises(DataError, match=r"'test/a-v0' exists already .* pass overwrite=True"):
        write("test/a-v0", episodes(2.0), ORIGIN)
    assert first_obs("test/a-v0") == 1.0


def test_overwriting_replaces_all_of_it(root: Path) -> None:
    write("test/a-v0", episodes(1.0), ORIGIN)
    write("test/a-v0", episodes(2.0), ORIGIN, overwrite=True)
    assert first_obs("test/a-v0") == 2.0
    assert [path.name for path in root.iterdir()] == ["test"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    if overwrite:
        write("test/a-v0", episodes(1.0), ORIGIN)
    create, calls = h5py.Group.create_dataset, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:  # in the second episode
            raise KeyboardInterrupt
        return create(*args, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("test/a-v0", episodes(2.0), ORIGIN, overwrite=overwrite)
    monkeypatch.undo()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert list(minari.list_local_datasets()) == (["test/a-v0"] if overwrite else [])
    assert not list(root.glob(".making-*"))
    if overwrite:
        assert first_obs("test/a-v0") == 1.0


def test_a_full_disk_gets_one_clear_line_and_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(DataError, match=r"dataset 'test/a-v0' could not be written under .*: .*No space left on device"):
        write("test/a-v0", episodes(), ORIGIN)
    assert list(root.iterdir()) == []


def test_a_bad_episode_is_refused_by_number(root: Path) -> None:
    bad = episodes()
    bad[1].reward[2] = np.nan
    with pytest.raises(DataError, match="episode 1: reward at step 2 is not finite"):
        write("test/a-v0", bad, ORIGIN)
    assert list(root.iterdir()) == []


def test_the_environment_variable_is_put_back(root: Path) -> None:
    write("test/a-v0", episodes(), ORIGIN)
    assert os.environ["MINARI_DATASETS_PATH"] == str(root)
