"""The node of the learner is lost, and with it the only place where its resource is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.chaos import traps
from tests.chaos.runs import check_same, check_whole, config_of
from tests.chaos.test_nodes import answers_on_their_nodes
from tests.nodes import SMALL
from wmrl_ray.rllib.failures import RemoteError
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

LIMIT_S = 45.0  # Why so long: Ray takes up to 30 s to see that a node is gone, and counts what it had until then
PLACES: dict[str, Any] = {"learner_resources": {"learner": 1}, "runner_resources": {"runner": 1}, "num_learners": 1}


@pytest.fixture(scope="module")
def nodes(traps_folder: Path) -> Iterator[Any]:
    with answers_on_their_nodes() as cluster:
        cluster.add_node(num_cpus=1, resources={"runner": 1}, **SMALL)
        yield cluster


def add_learner_node(nodes: Any) -> None:
    nodes.add_node(num_cpus=1, resources={"learner": 1}, **SMALL)


def learner_nodes() -> int:
    return sum(node["Alive"] and "learner" in node["Resources"] for node in ray.nodes())


MOMENTS = {"sampling": ("step", 75, 72), "update": ("sample", 55, 48), "saving": ("get_state", 3, 48)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_learners_node_killed_and_replaced(
    moment: str, nodes: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]
) -> None:
    line = row("worker node with the learner", moment)
    if learner_nodes() == 0:
        add_learner_node(nodes)
    point, count, kept = MOMENTS[moment]
    traps.arm(point, count=count, target="learner node")
    replaced: list[float] = []

    def on_event(event: Any) -> None:
        line.on_event(event)
        # Why not from a thread of its own: Ray starts nodes in the main one only
        if event.kind == "warning" and not replaced:
            replaced.append(time.time())
            add_learner_node(nodes)

    result = train_on_ray(config_of(**PLACES), tmp_path / "run", on_event=on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    ((told, recovery),) = [(when, event) for when, event in line.events if event.kind == "recovery"]
    hit = traps.fired()
    assert hit is not None
    assert recovery.message.endswith(f"; rebuilding from checkpoint {kept}") and recovery.update == kept
    assert hit["time"] < told < replaced[0] - 4  # not after building, which needs the new node
    waits = [event.message for _, event in line.events if event.kind == "warning"]
    assert 1 <= len(waits) <= 3 and all("needs {CPU: 2, learner: 1, runner: 1}" in message for message in waits), waits
    line.write(
        f"told after {told - hit['time']:.0f} s; node replaced {replaced[0] - told:.0f} s later; built again from update "
        f"{recovery.update}; same result to the bit",
        line.recovery_s(),
        f"nothing; {'24 to 36' if moment == 'saving' else '0 to 12'} updates made again",
    )


def test_the_learners_node_killed_for_good(nodes: Any, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line = row("worker node with the learner", "update; no node in its place")
    if learner_nodes() == 0:
        add_learner_node(nodes)
    traps.arm("sample", count=55, target="learner node")
    config = config_of(**PLACES, placement_timeout_s=LIMIT_S)
    with pytest.raises(RemoteError) as error:
        train_on_ray(config, tmp_path / "run", on_event=line.on_event)
    ended, text = time.time(), str(error.value)
    assert "no room on the cluster after placement_timeout_s = 45 s: needs {CPU: 2, learner: 1, runner: 1}" in text
    assert "{CPU: 1, learner: 1} too little" in text and f"wmrl train {tmp_path / 'run'} --resume" in text
    assert [event.kind for _, event in line.events if event.kind != "update"][-2:] == ["recovery", "warning"]
    (told,) = [when for when, event in line.events if event.kind == "recovery"]
    assert LIMIT_S <= ended - told < LIMIT_S + 40.0
    newest = RunDir(tmp_path / "run").newest_checkpoint()
    assert newest is not None and newest.name == "00000048"
    add_learner_node(nodes)
    started = time.time()
    again = row("worker node with the learner", "")
    result = train_on_ray(config, tmp_path / "run", resume=True, on_event=again.on_event)
    check_whole(tmp_path / "run", result, plain)
    check_same(tmp_path / "run", plain)
    first = next(when for when, event in again.events if event.kind == "update")
    line.write(
        f"ended with one line {ended - told:.0f} s after it was told (placement_timeout_s = 45); resumed from update 48 on a "
        "new node, same result to the bit",
        first - started,
        "nothing; 0 to 12 updates made again",
    )
