"""One writer in a folder: a second one is named the first; what is dead holds nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.holders import held_elsewhere
from wmrl_ray.config import ConfigError
from wmrl_ray.run import lock
from wmrl_ray.run.lock import FILE, only_writer


def owner(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(lock._owner_of(os.getpid()) | {"pid": os.getppid(), "started": "1"} | changes))


def test_a_second_process_is_refused_with_the_first_ones_name_until_it_dies(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "run") as other:
        refusal = rf"process {other.pid} on {socket.gethostname()} is at work in {tmp_path}/run since 20\d\d-.* UTC; wait"
        with pytest.raises(ConfigError, match=refusal), only_writer(tmp_path / "run", take_over=True):
            pytest.fail("two writers")
        began = [lock._started(pid) for pid in (os.getpid(), other.pid)]
        assert int(str(began[0])) < int(str(began[1]))
        other.kill()
        with only_writer(tmp_path / "run", patience_s=30):
            found = json.loads((tmp_path / "run" / FILE).read_text())
            assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())


def test_it_is_let_go_with_the_block_and_the_inner_one_does_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "run"), only_writer(tmp_path / "run" / ".." / "run"):
        (tmp_path / "run" / "config.json").touch()
        raise ZeroDivisionError
    assert (tmp_path / "run" / FILE).read_text() == ""
    with held_elsewhere(tmp_path / "run"):
        pass


def test_a_folder_that_came_with_the_lock_and_stayed_empty_goes_with_it(tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"):
        pass
    (tmp_path / "mine").mkdir()
    with only_writer(tmp_path / "mine"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 1},  # no process has it
        {},  # the pid is there, but of a process that began at another time
        {"started": None},
        {"pid": 2**22 + 1, "started": None},  # of a system that does not say when it began
        {"pid": os.getpid(), "started": lock._started(os.getpid())},  # this one, which could not say that it let go
        {"pid": os.getppid(), "started": lock._started(os.getppid()), "boot": "of another day"},
    ],
)
def test_a_dead_owner_and_a_number_used_again_hold_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    owner(tmp_path, **changes)
    with only_writer(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_live_owner_holds_without_the_kernels_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has none."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError(95, "not supported")))
    owner(tmp_path, started=lock._started(os.getppid()))
    with pytest.raises(ConfigError, match=f"process {os.getppid()} on"), only_writer(tmp_path, take_over=True):
        pytest.fail("two writers")


def test_the_kernels_lock_holds_without_a_record_too(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path):
        (tmp_path / FILE).write_text("")
        with pytest.raises(ConfigError, match=f"^another process is at work in {tmp_path}; wait"), only_writer(tmp_path):
            pytest.fail("two writers")


def test_of_another_host_nobody_knows_and_the_line_says_how_to_take_it_over(tmp_path: Path) -> None:
    owner(tmp_path, host="node-7", started=None)
    with pytest.raises(ConfigError, match=r"on node-7 is at work in .*if it is gone, take the folder over: --take-over$"):
        with only_writer(tmp_path):
            pytest.fail("two writers")
    with only_writer(tmp_path, take_over=True):
        assert json.loads((tmp_path / FILE).read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"host": "x"}', "\0\0\0"])
def test_a_damaged_record_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with only_writer(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


def test_a_child_that_was_forked_does_not_keep_it(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        (child := multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))).start()
    try:
        with held_elsewhere(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_it_waits_for_one_that_is_about_to_end(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as other:
        assert other.stdin is not None
        other.stdin.close()
        with only_writer(tmp_path, patience_s=30):
            pass
