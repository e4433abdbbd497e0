"""The mapped copy: read once, shared, complete or absent, and checked."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.data.fakes import assert_holds, small_episode, transitions, write_hdf5
from wmrl_ray.data import cache as cache_module
from wmrl_ray.data.cache import Cache
from wmrl_ray.data.catalog import verify
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.replay import Replay
from wmrl_ray.data.source import Source


@pytest.fixture
def source(home: Path, episodes: list[Episode]) -> Path:
    return write_hdf5(home / "d.hdf5", transitions(episodes))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to sources while the test ran: "read" or "hash"."""
    seen: list[str] = []
    for method, word in (("read", "read"), ("sha256", "hash")):
        real = getattr(Source, method)
        monkeypatch.setattr(Source, method, lambda self, *args, real=real, word=word: (seen.append(word), real(self, *args))[1])
    return seen


def flip(path: Path, where: float = 0.5) -> None:
    """Flips one byte and restores the times, as a bad disk would."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0x20
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def copy_of(source: Path) -> Path:
    return Path(open_dataset(source).card.cache_path)


def test_a_source_is_read_and_hashed_once(source: Path, reads: list[str]) -> None:
    first = open_dataset(source)
    assert reads == ["hash", "read"]
    assert open_dataset(source).card == first.card
    assert reads == ["hash", "read"]


def test_the_same_content_elsewhere_shares_the_copy_under_its_own_name(source: Path, reads: list[str]) -> None:
    first = open_dataset(source)
    other = Path(shutil.copy(source, source.with_name("other.hdf5")))
    second = open_dataset(other)
    assert reads == ["hash", "read", "hash"]
    assert second.card.cache_path == first.card.cache_path
    assert (second.card.name, second.card.uri) == ("other", str(other))


def test_a_source_written_anew_is_read_anew(source: Path, reads: list[str]) -> None:
    open_dataset(source)
    other = [small_episode(9, 3)]
    write_hdf5(source, transitions(other))
    assert_holds(open_dataset(source), other)
    os.utime(source)  # touched, but the same content: hashed, not read
    open_dataset(source)
    assert reads == ["hash", "read", "hash", "read", "hash"]


def test_the_arrays_are_read_only_views_of_the_file(source: Path) -> None:
    dataset = open_dataset(source)
    mapped = Path("/proc/self/maps").read_text()
    assert f"{dataset.card.cache_path}/data.arrow" in mapped
    for name in ("obs", "action", "reward", "terminated", "episode_starts"):
        array = getattr(dataset, name)
        assert not array.flags.writeable and not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert Replay(dataset).sample(4, 1).obs.shape == (4, 2, 5)


def test_a_cached_dataset_travels_by_path_and_one_in_memory_by_value(source: Path, episodes: list[Episode]) -> None:
    dataset = open_dataset(source)
    message = pickle.dumps(dataset)
    assert len(message) < 1000
    again = pickle.loads(message)
    assert again.card == dataset.card and not again.obs.flags.owndata
    assert_holds(again, episodes)


def test_the_cache_folder_is_chosen_by_argument_then_variable(
    source: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copy_of(source).is_relative_to(home / "cache")
    assert Path(open_dataset(source, cache_dir=home / "mine").card.cache_path).is_relative_to(home / "mine")
    monkeypatch.delenv("WMRL_CACHE_DIR")
    assert cache_module.default_cache_dir() == Path.home() / ".cache" / "wmrl_ray"


@pytest.mark.parametrize("name", ["data.arrow", "episodes.arrow", "layout.json", "card.json"])
def test_a_flipped_byte_in_the_copy_is_found_by_verify(source: Path, name: str) -> None:
    path = copy_of(source) / name
    flip(path)
    with pytest.raises(DataError, match=f"{name} has sha256 .*it is damaged; delete the folder .*rebuilt"):
        verify(source)


@pytest.mark.parametrize("name", ["data.arrow", "episodes.arrow", "layout.json", "card.json", "manifest.json"])
def test_a_flipped_byte_in_a_new_copy_is_found_when_first_loaded(source: Path, home: Path, name: str) -> None:
    path = copy_of(source)
    moved = home / "elsewhere"  # a copy brought from another machine: never checked here
    shutil.copytree(path, Cache(moved).path(path.name.split("-")[0]))
    flip(moved / "datasets" / path.name / name)
    with pytest.raises(DataError, match="(it is damaged|cannot be read).*delete the folder"):
        open_dataset(source, cache_dir=moved)


def test_a_copy_that_was_written_to_is_checked_again_at_the_next_load(source: Path) -> None:
    path = copy_of(source) / "data.arrow"
    time.sleep(0.01)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is damaged"):
        open_dataset(source)


@pytest.mark.parametrize("name", ["data.arrow", "manifest.json"])
def test_a_missing_file_of_the_copy_is_named_and_deleting_the_folder_helps(
    source: Path, episodes: list[Episode], name: str
) -> None:
    path = copy_of(source)
    (path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing from the cache; delete the folder {path}"):
        open_dataset(source)
    shutil.rmtree(path)
    assert_holds(open_dataset(source), episodes)


def test_a_flipped_byte_in_the_source_is_found_by_verify_after_it_was_cached(source: Path) -> None:
    assert verify(source).card.num_steps == 17
    flip(source, 0.9)
    with pytest.raises(DataError, match="has changed since it was read: its content has sha256"):
        verify(source)


def test_verify_tells_what_it_compared(source: Path) -> None:
    report = verify(source)  # not read before: reads it
    assert report.card == open_dataset(source).card
    assert report.card.uri == str(source)
    assert set(report.files) == {"data.arrow", "episodes.arrow", "layout.json", "card.json"}
    assert all(len(sha256) == 64 for sha256 in report.files.values())
    if shutil.which("sha256sum"):
        output = subprocess.run(["sha256sum", str(source)], capture_output=True, text=True, check=True).stdout
        assert output.split()[0] == report.card.source_sha256


def test_a_damaged_index_only_costs_hashing_again(source: Path, home: Path, reads: list[str]) -> None:
    open_dataset(source)
    for entry in (home / "cache/index").iterdir():
        entry.write_text("{broken")
    open_dataset(source)
    assert reads == ["hash", "read", "hash"]


def test_processes_that_build_the_same_copy_at_once_all_get_it(home: Path) -> None:
    path, start = home / "d.npz", home / "start"
    np.savez(path, **transitions([small_episode(i, 50) for i in range(40)]))
    code = f"""
import pathlib, time, wmrl_ray.data.cache
from wmrl_ray.data import open_dataset
print("ready", flush=True)
while not pathlib.Path({str(start)!r}).exists():
    time.sleep(0.002)
print(float(open_dataset({str(path)!r}).obs.sum()))
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start.touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert {float(out) for out, _ in outputs} == {float(open_dataset(path).obs.sum())}
    assert len(list((home / "cache/datasets").iterdir())) == 1, "temporary folders are left"


def test_what_a_killed_process_left_is_cleared_after_a_while(source: Path, episodes: list[Episode]) -> None:
    path = copy_of(source)
    shutil.rmtree(path)
    old, new = path.with_name(f".{path.name}.dead"), path.with_name(f".{path.name}.busy")
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    assert_holds(open_dataset(source), episodes)
    assert not old.exists() and new.exists()


def test_prune_deletes_the_copies_of_older_versions_and_nothing_else(source: Path, episodes: list[Episode]) -> None:
    path = copy_of(source)
    assert Cache().prune() == []
    key, version = path.name.split("-v")
    older, newer, other = (path.with_name(f"{name}-v{n}") for name, n in [(key, 1), (key, int(version) + 1), ("mine", 1)])
    for folder in (older, newer, other):
        shutil.copytree(path, folder)
    checked = [Cache().folder / "index" / f"{folder.name}.checked" for folder in (path, older)]
    checked[1].write_text("[]")
    mapped = np.memmap(older / "data.arrow", mode="r")
    content = bytes(mapped)
    assert Cache().prune() == [(older.name, sum(file.stat().st_size for file in path.iterdir()))]
    assert sorted(path.parent.iterdir()) == sorted([path, newer, other])
    assert [file.exists() for file in checked] == [True, False]
    assert bytes(mapped) == content  # a process that has it mapped does not notice
    assert_holds(open_dataset(source), episodes)


def test_opening_reads_no_module_of_the_heavy_kind(source: Path) -> None:
    code = (
        "import sys, wmrl_ray.data; assert not {'torch', 'pyarrow', 'minari', 'numpy'} & set(sys.modules), 'import';"
        f"wmrl_ray.data.open_dataset({str(source)!r});"
        "print(sorted({'torch', 'minari', 'matplotlib', 'ray', 'gymnasium', 'pyarrow', 'h5py'} & set(sys.modules)))"
    )
    for expected in ("['h5py', 'pyarrow']", "[]"):  # the first time it is read, then it is only mapped
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert output.returncode == 0, output.stderr
        assert output.stdout.strip() == expected


def test_pyarrow_reads_the_copy_as_the_table_it_is(source: Path) -> None:
    dataset = open_dataset(source)
    with pa.memory_map(f"{dataset.card.cache_path}/data.arrow") as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.column_names == ["obs", "action", "reward", "terminated"]
    np.testing.assert_array_equal(np.array(table["obs"].to_pylist(), np.float32), dataset.obs)
    np.testing.assert_array_equal(table["reward"].to_numpy(), dataset.reward)
