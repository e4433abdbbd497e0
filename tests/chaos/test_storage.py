"""A full disk and damaged checkpoints."""

from __future__ import annotations

import errno
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.runs import check_same, check_whole, config_of
from wmrl_ray.online import train_online
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.chaos, pytest.mark.ray]
SIZE, LEFT = 4 * 2**20, 48 * 2**10  # bytes of the disk, and those that a full one still has: enough for lines of the log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int = LEFT) -> None:
    import os

    free = os.statvfs(folder)
    (folder / "ballast").write_bytes(b"0" * max(0, free.f_bavail * free.f_bsize - left))


LOOPS = [pytest.param(train_online, id="without Ray"), pytest.param(train_on_ray, id="on Ray")]


@pytest.fixture
def ray_if_needed(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["loop"] is train_on_ray:
        request.getfixturevalue("local_ray")


@pytest.mark.usefixtures("ray_if_needed")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_disk_that_is_full_for_a_while(loop: Any, small_disk: Path, plain: Path, row: Callable[..., Any]) -> None:
    line = row(f"disk, {'on Ray' if loop is train_on_ray else 'without Ray'}", "full for one checkpoint")

    def on_event(event: Any) -> None:
        line.on_event(event)
        if event.kind == "checkpoint" and event.update == 24:
            fill(small_disk)
        if event.kind == "warning":
            (small_disk / "ballast").unlink()

    result = loop(config_of(num_runners=0), small_disk / "run", on_event=on_event)
    check_whole(small_disk / "run", result, plain)
    check_same(small_disk / "run", plain)
    ((_, warning),) = [(when, event) for when, event in line.events if event.kind == "warning"]
    assert warning.message.startswith("no checkpoint at update 48: No space left on device: ")
    assert [event.update for _, event in line.events if event.kind == "checkpoint"] == [24, 72, 96, 120]
    line.write("told on one line; training went on, the next checkpoint was written", None, "one checkpoint")


@pytest.mark.usefixtures("ray_if_needed")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_disk_that_stays_full(loop: Any, small_disk: Path, plain: Path, row: Callable[..., Any]) -> None:
    line = row(f"disk, {'on Ray' if loop is train_on_ray else 'without Ray'}", "full to the end")

    def on_event(event: Any) -> None:
        if event.kind == "checkpoint" and event.update == 72:
            fill(small_disk)

    with pytest.raises(OSError) as full:
        loop(config_of(num_runners=0), small_disk / "run", on_event=on_event)
    assert full.value.errno == errno.ENOSPC and str(small_disk) in full.value.filename
    newest = RunDir(small_disk / "run").newest_checkpoint()
    assert newest is not None and newest.name == "00000072"
    (small_disk / "ballast").unlink()
    started = time.time()
    result = loop(config_of(num_runners=0), small_disk / "run", resume=True, on_event=line.on_event)
    check_whole(small_disk / "run", result, plain)
    check_same(small_disk / "run", plain)
    first = next(when for when, event in line.events if event.kind == "update")
    line.write("ended with one line; resumed from update 72, same result to the bit", first - started, "48 updates made again")


@pytest.mark.usefixtures("ray_if_needed")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_newest_checkpoint_damaged(loop: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row(f"checkpoint, {'on Ray' if loop is train_on_ray else 'without Ray'}", "a byte of the newest flipped")
    calls = iter(range(1, 100))
    stopped = loop(config_of(num_runners=0), tmp_path / "run", should_stop=lambda: next(calls) == 6)
    assert stopped["updates"] == 72
    (file,) = (tmp_path / "run" / "checkpoints" / "00000072").rglob("tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    started = time.time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        result = loop(config_of(num_runners=0), tmp_path / "run", resume=True, on_event=line.on_event)
    passed = {str(warning.message) for warning in told if "passing over" in str(warning.message)}
    assert len(passed) == 1 and "tensors.safetensors is corrupt" in passed.pop()
    assert line.events[0][1].update == 48
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    first = next(when for when, event in line.events if event.kind == "update" and event.update > 72)
    line.write("one line names it; the older one was used, same result to the bit", first - started, "24 updates made again")
