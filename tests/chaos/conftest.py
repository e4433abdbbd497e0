"""What every row of the table shares: traps of its own, and the table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from tests.chaos import traps
from tests.chaos.runs import config_of
from tests.rllib.conftest import rllib_folder  # noqa: F401
from wmrl_ray.online import train_online

TABLE = "WMRL_CHAOS_TABLE"  # environment variable: the Markdown file to write
COLUMNS = ("who", "moment", "what happened", "recovery s", "lost")


@pytest.fixture(scope="session", autouse=True)
def traps_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Known to every process of a Ray that is started afterwards."""
    home = tmp_path_factory.mktemp("traps")
    (home / "pids").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(traps.FOLDER, str(home))
        yield home


@pytest.fixture(scope="module")
def local_ray(traps_folder: Path, local_ray: None) -> None:
    """After the traps."""


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, traps_folder: Path) -> Path:
    """The run in one process, in which nothing dies."""
    path = tmp_path_factory.mktemp("plain") / "run"
    train_online(config_of(num_runners=0), path)
    return path


@pytest.fixture(autouse=True)
def trapped_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmrl_ray.rllib.config import CONFIGS

    monkeypatch.setitem(CONFIGS, "own_tdmpc", traps.TrappedConfig)


@dataclass
class Row:
    """One line of the table. events: (time, event) as the run told them."""

    who: str
    moment: str
    events: list[tuple[float, Any]] = field(default_factory=list)

    def on_event(self, event: Any) -> None:
        self.events.append((time.time(), event))

    def recovery_s(self) -> float:
        """From the hit to the first update that was made after it."""
        hit = traps.fired()
        assert hit is not None, "the trap was not sprung"
        reached = max([e.update for when, e in self.events if when < hit["time"] and e.kind == "update"], default=0)
        later = [when for when, e in self.events if when > hit["time"] and e.kind == "update" and e.update > reached]
        return later[0] - hit["time"]

    def write(self, result: str, recovery_s: float | None, lost: str) -> None:
        """Into the table at once: a row that fails later says nothing, and those before it stay."""
        if file := os.environ.get(TABLE):
            cells = (self.who, self.moment, result, "" if recovery_s is None else f"{recovery_s:.1f}", lost)
            heading = [] if Path(file).exists() else [COLUMNS, ("---",) * len(COLUMNS)]
            with open(file, "a") as f:
                f.writelines(f"| {' | '.join(line)} |\n" for line in [*heading, cells])


@pytest.fixture
def row() -> Callable[[str, str], Row]:
    return Row


@pytest.fixture(autouse=True)
def no_process_stays_behind(traps_folder: Path) -> Iterator[None]:
    """Whoever worked for the row has ended, the one that was hit too."""
    for file in (traps_folder / "pids").iterdir():
        file.unlink()
    for name in ("trap.json", "fired.json"):
        (traps_folder / name).unlink(missing_ok=True)
    yield
    hit = traps.fired()
    left = (traps.pids() | ({hit["pid"]} if hit else set())) - {os.getpid()}
    until = time.monotonic() + 60
    while (alive := {pid for pid in left if _is_alive(pid)}) and time.monotonic() < until:
        time.sleep(0.2)
    assert not alive, f"processes stay behind: {alive}"
    import ray

    while ray.is_initialized() and _free_cpus() < ray.cluster_resources().get("CPU", 0) and time.monotonic() < until + 30:
        time.sleep(0.5)
    assert not ray.is_initialized() or _free_cpus() == ray.cluster_resources().get("CPU", 0), "CPUs are still taken"


def _free_cpus() -> float:
    import ray

    return ray.available_resources().get("CPU", 0)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
