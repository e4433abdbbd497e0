"""A node of a cluster is lost, with a runner, and with episodes that the learner had not fetched."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import services

from tests.chaos import traps
from tests.chaos.runs import check_whole, config_of
from tests.rllib.test_nodes import patient
from wmrl_ray.rllib.online import OnlineAlgorithm
from wmrl_ray.rllib.train import train_on_ray

pytestmark = [pytest.mark.chaos, pytest.mark.ray]


class Nodes:
    """A head without CPUs, and what is added to it."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, **SMALL})
        ray.init(address=self.cluster.address, logging_level="ERROR", log_to_driver=False)

    def fill_up(self) -> None:
        """Two nodes with room for one runner each: adds what the row before has killed."""
        while sum(node["Alive"] for node in ray.nodes()) < 3:
            self.cluster.add_node(num_cpus=1, **SMALL)


SMALL = {"include_dashboard": False, "object_store_memory": 100 * 2**20}


@contextlib.contextmanager
def cluster_of() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="wmrl-nodes-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", patient(services.get_node))
        patch.setenv("RAY_max_direct_call_object_size", "0")  # every answer lies on its node, however small
        found = Nodes(folder)
        yield found
        ray.shutdown()
        with contextlib.suppress(Exception):  # it would end processes that are gone already
            found.cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(traps_folder: Path) -> Iterator[Nodes]:
    with cluster_of() as found:
        yield found


MOMENTS = {"sampling": ("step", 75), "update": ("sample", 50), "saving": ("get_state", 2)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_node_killed(moment: str, nodes: Nodes, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("worker node with the runner", moment)
    nodes.fill_up()
    point, count = MOMENTS[moment]
    traps.arm(point, count=count, target="node")
    result = train_on_ray(config_of(), tmp_path / "run", on_event=line.on_event)
    last = check_whole(tmp_path / "run", result, plain)
    _write(line, last)


def test_a_node_killed_with_episodes_that_nobody_had_fetched(
    nodes: Nodes, plain: Path, tmp_path: Path, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = row("worker node with the runner", "between sampling and update")
    nodes.fill_up()
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
