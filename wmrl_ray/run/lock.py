"""One writer in the folder of a run or of a sweep: who holds it stands in its `.lock`.

The kernel's lock on that file ends with the process, however that ends. What the file says is for other hosts, whose kernels do
not know of it on every network file system, and for file systems without such locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import inspect
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from wmrl_ray.config import ConfigError
from wmrl_ray.data.files import explained_os_errors

FILE = ".lock"
Owner = dict[str, Any]  # host; pid; started: when its process did, as the kernel of `boot` counts; since: in words
F = TypeVar("F", bound=Callable[..., Any])

_held: dict[Path, IO[str]] = {}  # by this process


@contextlib.contextmanager
def only_writer(folder: Path, *, take_over: bool = False, patience_s: float = 0.0) -> Iterator[None]:
    """Nobody else writes in `folder` until the block ends. Inside itself, in one process, it does nothing.

    A process that has died, or whose number another one has now, holds nothing.

    Args:
        take_over: from a process on another host, of which nobody here can know whether it has died.
        patience_s: how long to wait for a process on this host that is about to end.

    Raises:
        ConfigError: another process writes there; the message names it.
    """
    if (folder := Path(folder).resolve()) in _held:
        yield
        return
    with explained_os_errors(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = _held[folder] = _acquired(folder / FILE, take_over, patience_s)
    try:
        yield
    finally:
        _held.pop(folder, None)
        with file, contextlib.suppress(OSError):  # Why: the folder may have been deleted meanwhile
            file.truncate(0)
            if made and [path.name for path in folder.iterdir()] == [FILE]:
                (folder / FILE).unlink()
                folder.rmdir()


def alone_in_run_dir(loop: F) -> F:
    """Of a training loop: the only writer in its `run_dir` while it runs."""

    @functools.wraps(loop)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with only_writer(inspect.signature(loop).bind(*args, **kwargs).arguments["run_dir"]):
            return loop(*args, **kwargs)

    return locked  # type: ignore[return-value]


def _acquired(path: Path, take_over: bool, patience_s: float) -> IO[str]:
    """The open file, locked, with this process in it."""
    until = time.monotonic() + patience_s
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            is_free, owner = _locked(file), _read(file)
            if is_free and (owner is None or not _may_live(owner) or (take_over and owner["host"] != socket.gethostname())):
                if _is_at(file, path):
                    file.truncate(0)
                    file.write(json.dumps(_owner_of(os.getpid()), allow_nan=False))
                    file.flush()
                    os.fsync(file.fileno())
                    return file
            elif time.monotonic() >= until:
                raise ConfigError(_refusal(path, owner))
        except BaseException:
            file.close()
            raise
        file.close()
        time.sleep(0.05)


def _forget() -> None:
    """In a child that was forked: the parent's locks must not live as long as it does."""
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Why: a file system without locks; then what the file says has to do
        return True
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether it is still the file at `path`: its last owner may have deleted it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: IO[str]) -> Owner | None:
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return owner if {"host", "pid", "started", "boot", "since"} <= owner.keys() else None
    except (ValueError, AttributeError):  # empty: let go; half-written: by one that died while it took it
        return None


def _owner_of(pid: int) -> Owner:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "boot": _boot(), "since": since}


def _may_live(owner: Owner) -> bool:
    """False if it certainly does not: of another host nobody knows, and this process is no other."""
    if owner["host"] != socket.gethostname():
        return True
    if owner["pid"] == os.getpid() or owner["boot"] != _boot():
        return False
    return _started(owner["pid"]) == owner["started"] is not None


def _started(pid: int) -> str | None:
    """When the process did, in the kernel's own count, which no clock changes; None if there is none, or if it is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    except (OSError, IndexError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _refusal(path: Path, owner: Owner | None) -> str:
    if owner is None:  # it has locked the file and not written yet, or this is not Linux
        return f"another process is at work in {path.parent}; wait for it, or choose another folder"
    line = f"process {owner['pid']} on {owner['host']} is at work in {path.parent} since {owner['since']}"
    if owner["host"] == socket.gethostname():
        return f"{line}; wait for it, end it, or choose another folder"
    return f"{line}; wait for it, or choose another folder; if it is gone, take the folder over: --take-over"
