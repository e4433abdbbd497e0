"""A node of a cluster is lost, with a runner, and with episodes that the learner had not fetched."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.chaos import traps
from tests.chaos.runs import check_whole, config_of
from tests.nodes import SMALL, cluster_of_nodes
from wmrl_ray.rllib.online import OnlineAlgorithm
from wmrl_ray.rllib.train import train_on_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray]


@contextlib.contextmanager
def answers_on_their_nodes() -> Iterator[Any]:
    """A cluster in which every answer lies on its node, however small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_max_direct_call_object_size", "0")
        with cluster_of_nodes() as cluster:
            yield cluster


@pytest.fixture(scope="module")
def nodes(traps_folder: Path) -> Iterator[Any]:
    with answers_on_their_nodes() as cluster:
        yield cluster


def fill_up(nodes: Any) -> None:
    """Two nodes with room for one runner each: adds what the row before has killed."""
    while sum(node["Alive"] for node in ray.nodes()) < 3:
        nodes.add_node(num_cpus=1, **SMALL)


MOMENTS = {"sampling": ("step", 75), "update": ("sample", 50), "saving": ("get_state", 2)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_node_killed(moment: str, nodes: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("worker node with the runner", moment)
    fill_up(nodes)
    point, count = MOMENTS[moment]
    traps.arm(point, count=count, target="node")
    result = train_on_ray(config_of(), tmp_path / "run", on_event=line.on_event)
    last = check_whole(tmp_path / "run", result, plain)
    _write(line, last)


def test_a_node_killed_with_episodes_that_nobody_had_fetched(
    nodes: Any, plain: Path, tmp_path: Path, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = row("worker node with the runner", "between sampling and update")
    fill_up(nodes)
    original, left = OnlineAlgorithm._learn, [3]

    def learn(self: OnlineAlgorithm, packets: Any, *args: Any, **kwargs: Any) -> Any:
        left[0] -= bool(packets)
        if packets and left[0] == 0:
            raylet = traps.parent_of(traps.last("step"))
            (traps.folder() / "fired.json").write_text(f'{{"time": {time.time()}, "pid": {raylet}}}')  # type: ignore[operator]
            os.kill(raylet, signal.SIGKILL)
            while sum(node["Alive"] for node in ray.nodes()) == 3:
                time.sleep(0.1)
        return original(self, packets, *args, **kwargs)

    monkeypatch.setattr(OnlineAlgorithm, "_learn", learn)
    result = train_on_ray(config_of(), tmp_path / "run", on_event=line.on_event)
    last = check_whole(tmp_path / "run", result, plain)
    assert last["online/lost_steps"] > 0
    _write(line, last)


def _write(line: Any, last: dict[str, float]) -> None:
    """Every step is in the replay, in an unfinished episode, or counted as lost."""
    recoveries = [event for _, event in line.events if event.kind == "recovery"]
    how = f"built again from update {recoveries[-1].update}" if recoveries else "runner replaced on another node"
    line.write(f"{how}; the run went on", line.recovery_s(), f"{last['online/lost_steps']:.0f} steps counted as lost")
