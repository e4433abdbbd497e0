"""Several nodes on one machine: learners and runners are where their resources are, and a run is what it is on one node."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.nodes import SMALL, cluster_of_nodes
from tests.rllib.online_fakes import run_config
from wmrl_ray.config import ConfigError
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.events import Event

pytestmark = pytest.mark.ray


def placed(schedule: Any = "synchronous", **changes: Any) -> RunConfig:
    """A learner and two runners, each where its resource is, and a runner for evaluations."""
    settings: dict[str, Any] = {
        "num_updates": 96,
        "num_learners": 1,
        "num_eval_runners": 1,
        "learner_resources": {"learner": 1},
        "runner_resources": {"runner": 1},
        "online": OnlineConfig(num_runners=2, num_envs=2, schedule=schedule, seed_steps=48, capacity=200),
    }
    return run_config(**{**settings, **changes})


def test_a_run_keeps_its_resources_through_rllibs_configuration() -> None:
    from wmrl_ray.rllib.config import CONFIGS

    run = placed()
    config = CONFIGS[run.algorithm].from_run(run)
    assert (config.learner_resources, config.custom_resources_per_env_runner) == ({"learner": 1}, {"runner": 1})
    live = config.copy(copy_frozen=False).run_config()
    assert (live.learner_resources, live.runner_resources) == ({"learner": 1.0}, {"runner": 1.0})


def test_learners_ask_for_what_was_named_and_rllib_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.rllib.core.learner import learner_group

    asked: list[Any] = []
    monkeypatch.setattr(learner_group, "RLlibBackendExecutor", lambda **kwargs: asked.append(kwargs))
    before = learner_group.RLlibBackendExecutor
    with compat.learner_resources({"learner": 1}):
        learner_group.RLlibBackendExecutor(resources_per_worker={"CPU": 1, "GPU": 0}, num_workers=2)
    assert asked == [{"resources_per_worker": {"CPU": 1, "GPU": 0, "learner": 1}, "num_workers": 2}]
    assert learner_group.RLlibBackendExecutor is before


def test_inside_a_tune_trial_a_learners_resources_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.rllib.core.learner import learner_group

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: object())
    with compat.learner_resources({"learner": 1}), pytest.raises(ConfigError, match="no effect in a Tune trial"):
        learner_group.RLlibBackendExecutor(resources_per_worker={"CPU": 1})


def test_learner_actors_may_have_gpus_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from wmrl_ray.rllib import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(train.ray, "is_initialized", lambda: True)
    cluster: dict[str, float] = {}
    monkeypatch.setattr(train.ray, "cluster_resources", lambda: cluster)
    assert train._settings(placed(device="cuda"), debug=False).num_gpus_per_learner == 1
    assert train._settings(placed(device="auto"), debug=False).num_gpus_per_learner == 0
    cluster["GPU"] = 1.0
    assert train._settings(placed(device="auto"), debug=False).num_gpus_per_learner == 1
    assert train._settings(placed(device="cpu"), debug=False).num_gpus_per_learner == 0
    for here in (placed(device="cuda", num_learners=0), placed(device="cuda")):
        with pytest.raises(ConfigError, match="torch sees 0 GPUs"):
            train._settings(here, debug=True)


def test_gpus_that_a_run_began_with_are_asked_for_again_when_they_are_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from wmrl_ray.rllib import train

    cluster, ran = {"GPU": 1.0}, []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(train.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(train.ray, "cluster_resources", lambda: cluster)
    monkeypatch.setattr(train, "Telemetry", lambda *given: SimpleNamespace(beside=lambda listener: listener))
    monkeypatch.setattr(train, "_survive", lambda config, *rest: ran.append(config) or {})
    for name, gpus, device in (("run", 1.0, "cuda"), ("run", 0.0, "cuda"), ("other", 0.0, "cpu"), ("other", 1.0, "cpu")):
        cluster["GPU"] = gpus
        train_on_ray(placed(device="auto"), tmp_path / name, resume=True)
        assert ran[-1].device == train.RunDir(tmp_path / name).config().device == device
        assert train._settings(ran[-1], debug=False).num_gpus_per_learner == (device == "cuda")


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("which", ["sweep", "search"])
def test_gpus_that_an_autoscaler_may_bring_are_waited_for_and_those_of_this_machine_are_not(
    is_ours: bool, which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import worker

    from wmrl_ray.rllib import search, trials

    class PassedError(Exception):
        """The check let it through."""

    def passed() -> None:
        raise PassedError

    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(is_head=lambda: is_ours))
    dead = {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}
    monkeypatch.setattr(trials.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2 + [dead])
    for module in (trials, search):
        monkeypatch.setattr(module, "quiet_tune", passed)

    def run(gpus: float) -> None:
        if which == "sweep":
            trials.run_trials(lambda spec, report: {}, {"a": 1}, folder=tmp_path, gpus_per_trial=gpus)
        else:
            spec = SimpleNamespace(cpus_per_run=1.0, gpus_per_run=gpus)
            search.run_search(SimpleNamespace(tune=spec), tmp_path)  # type: ignore[arg-type]

    with warnings.catch_warnings(), pytest.raises(PassedError):
        warnings.simplefilter("error")
        run(0.0)
    message = "0.5 GPUs for each run, but the cluster's largest node has 0"
    if is_ours:
        with pytest.raises(ConfigError, match=message):
            run(0.5)
    else:
        with (
            pytest.warns(UserWarning, match=f"{message} now: waiting for its autoscaler to bring") as warned,
            pytest.raises(PassedError),
        ):
            run(0.5)
        assert len(warned) == 1


def test_without_a_ray_or_through_rays_client_nothing_was_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "_global_node", None)
    assert not compat.started_ray()


@pytest.fixture
def one_node() -> Iterator[None]:
    """A node of its own with the resources of both roles."""
    import ray

    folder = tempfile.mkdtemp(prefix="wmrl-place-")
    settings: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20, "_temp_dir": folder}
    ray.init(address="local", num_cpus=5, resources={"runner": 3, "learner": 1}, log_to_driver=False, **settings)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def test_every_learner_and_runner_takes_its_resource(one_node: None, tmp_path: Path) -> None:
    import ray

    left: dict[str, float] = {}

    def look(event: Event) -> None:
        if event.kind == "update":
            deadline = time.monotonic() + 10  # what Ray says about it is late
            while {"runner", "learner"} & set(ray.available_resources()) and time.monotonic() < deadline:
                time.sleep(0.1)
            left.update({role: ray.available_resources().get(role, 0.0) for role in ("runner", "learner")})

    config = placed(num_updates=24)
    assert train_on_ray(config, tmp_path / "run", on_event=look)["finished"]
    assert left == {"runner": 0.0, "learner": 0.0}  # 2 runners and that of evaluations; 1 learner


@pytest.fixture
def nodes() -> Iterator[dict[str, str]]:
    """A head without CPUs, a node for runners and one for learners; role -> node id."""
    import ray

    with cluster_of_nodes() as cluster:
        for role, cpus in (("runner", 3), ("learner", 1)):
            cluster.add_node(num_cpus=cpus, resources={role: cpus}, **SMALL)
        cluster.wait_for_nodes()
        found = {"head": ray.get_runtime_context().get_node_id()}
        yield found | {role: n["NodeID"] for n in ray.nodes() for role in ("runner", "learner") if role in n["Resources"]}


def actors() -> dict[str, list[str]]:
    """Class of an actor that lives -> the nodes of its actors."""
    from ray._private import state

    found: dict[str, list[str]] = {}
    for actor in state.actors().values():
        if actor["State"] == "ALIVE":
            found.setdefault(actor["ActorClassName"], []).append(actor["Address"]["NodeID"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_learners_and_runners_are_where_their_resources_are(nodes: dict[str, str], schedule: str, tmp_path: Path) -> None:
    assert len(set(nodes.values())) == 3
    seen: dict[str, list[str]] = {}

    def look(event: Event) -> None:
        if event.kind == "update":
            seen.update(actors())

    config = placed(schedule)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no node of the cluster has the resource")
        result = train_on_ray(config, tmp_path / "run", on_event=look)
    assert result["finished"]
    assert result["updates"] == config.num_updates
    assert seen["PlannerEnvRunner"] == [nodes["runner"]] * 3
    learners = {name: places for name, places in seen.items() if name != "PlannerEnvRunner"}
    assert list(learners.values()) == [[nodes["learner"]]], (learners, nodes)  # RLlib's name for it is RLlib's
    assert not any(nodes["head"] in places for places in seen.values())
    if schedule == "synchronous":  # in turns, the numbers of a run do not depend on where its parts are
        train_on_ray(placed(learner_resources={}, runner_resources={}, num_learners=0, num_eval_runners=0), tmp_path / "here")
        assert losses(tmp_path / "run") == losses(tmp_path / "here")


def losses(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines if "loss/actor" in line]
