"""Trackers get what the display gets, once, also after a crash; one that fails does not stop a run."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.rllib.fakes import write_plane_dataset
from wmrl_ray.config import ConfigError
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event
from wmrl_ray.trackers import TRACKERS, Trackers, run_id, run_name

CONFIG = RunConfig("bc", dataset="x", num_updates=100, updates_per_call=10, checkpoint_every=10, log_every=10)


def config(*track: str) -> RunConfig:
    return RunConfig(**{**vars(CONFIG), "track": track})


def play(trackers: Trackers, *, start: int = 0, end: int = 100, metrics: dict[str, float] | None = None) -> None:
    """The events of a session from update `start` to `end`, the evaluation of `start` + 10 coming late."""
    trackers.on_event(Event("start", start, 100, {}))
    for update in range(start + 10, end + 1, 10):
        trackers.on_event(Event("update", update, 100, metrics or {"loss/actor": float(update)}))
    trackers.on_event(Event("eval", start + 10, 100, {"eval/return_mean": 5.0}))
    trackers.on_event(Event("checkpoint", end, 100, {}))
    trackers.on_event(Event("end", end, 100, {"eval/return_mean": 5.0}))


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """name -> step -> value, as TensorBoard shows them: what a restart has superseded is left out."""
    from tensorboardX.proto.event_pb2 import Event as Proto
    from tensorboardX.proto.event_pb2 import SessionLog

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = file.read_bytes(), 0
        while at < len(content):  # TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Proto.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return {name: steps for name, steps in found.items() if steps}


def test_tensorboard_has_every_number_at_its_update(tmp_path: Path) -> None:
    with Trackers.open(config("tensorboard"), tmp_path) as trackers:
        play(trackers, metrics={"loss/actor": 0.5, "loss/critic": float("nan")})
    shown = read_tensorboard(tmp_path / "tensorboard")
    assert shown == {"loss/actor": dict.fromkeys(range(10, 101, 10), 0.5), "eval/return_mean": {10: 5.0}}


def test_a_resumed_run_shows_nothing_of_what_its_crash_left_behind(tmp_path: Path) -> None:
    with Trackers.open(config("tensorboard"), tmp_path) as trackers:
        play(trackers, end=60, metrics={"loss/actor": 1.0})
    with Trackers.open(config("tensorboard"), tmp_path) as trackers:  # from the checkpoint of update 30
        play(trackers, start=30, end=50, metrics={"loss/actor": 2.0})
    shown = read_tensorboard(tmp_path / "tensorboard")
    assert shown["loss/actor"] == {10: 1.0, 20: 1.0, 30: 1.0, 40: 2.0, 50: 2.0}


def test_a_run_without_trackers_leaves_nothing(tmp_path: Path) -> None:
    with Trackers.open(config(), tmp_path) as trackers:
        play(trackers)
    assert list(tmp_path.iterdir()) == []


class FakeWandb(types.ModuleType):
    """Records what W&B would get."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.codes: list[int] = []

    def init(self, **settings: Any) -> FakeWandb:
        self.started.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_one_run_for_one_folder_with_updates_as_its_axis(wandb: FakeWandb, tmp_path: Path) -> None:
    for start, end in ((0, 40), (40, 100)):
        with Trackers.open(config("wandb"), tmp_path) as trackers:
            play(trackers, start=start, end=end)
    first, second = wandb.started
    assert first == second
    assert (first["id"], first["resume"], first["project"]) == (run_id(tmp_path), "allow", "wmrl")
    assert (first["name"], first["config"]["num_updates"]) == (run_name(tmp_path), 100)
    assert wandb.axes[:2] == [("update", None), ("*", "update")]
    assert wandb.logged[:2] == [{"update": 10, "loss/actor": 10.0}, {"update": 20, "loss/actor": 20.0}]
    assert {"update": 50, "eval/return_mean": 5.0} in wandb.logged
    assert wandb.codes == [1, 0]  # the first session was stopped


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_dropped_and_the_others_go_on(
    wandb: FakeWandb, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(wandb, method, fail)
    with pytest.warns(UserWarning, match="tracking with wandb ends here, the run goes on: OSError: no network") as warned:
        with Trackers.open(config("wandb", "tensorboard"), tmp_path) as trackers:
            play(trackers)
    assert len(warned) == 1
    assert len(read_tensorboard(tmp_path / "tensorboard")["loss/actor"]) == 10


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"track = '{name}' needs .*pip install 'wmrl-ray\[{name}\]'"):
        Trackers.open(config(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow")
def test_mlflow_keeps_one_run_in_its_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for start, end in ((0, 40), (40, 100)):
        with Trackers.open(config("mlflow"), tmp_path) as trackers:
            play(trackers, start=start, end=end)
    note = json.loads((tmp_path / "mlflow.json").read_text())
    client = MlflowClient(note["tracking_uri"], registry_uri=note["tracking_uri"])
    run = client.get_run(note["run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", run_name(tmp_path))
    assert run.data.params["num_updates"] == "100"
    history = client.get_metric_history(note["run_id"], "loss/actor")
    assert sorted((m.step, m.value) for m in history) == [(u, float(u)) for u in range(10, 101, 10)]
    experiments = client.search_experiments()
    assert [len(client.search_runs([e.experiment_id])) for e in experiments if e.name == "wmrl"] == [1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra wandb")
def test_wandb_itself_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Trackers.open(config("wandb"), tmp_path) as trackers:
        play(trackers)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_every_name_that_a_configuration_may_hold_is_a_tracker() -> None:
    from typing import get_args, get_type_hints

    (names, _) = get_args(get_type_hints(RunConfig)["track"])
    assert set(get_args(names)) == set(TRACKERS)


def test_a_run_of_the_loop_is_tracked_by_its_events(tmp_path: Path) -> None:
    from wmrl_ray.run.folder import RunDir
    from wmrl_ray.train import train

    dataset = str(write_plane_dataset(tmp_path / "plane.npz"))
    settings = {**vars(config("tensorboard")), "dataset": dataset, "env": "tests.rllib.fakes:test/Plane-v0"}
    run = RunConfig(**{**settings, "eval_every": 0, "eval_episodes": 1, "envs_per_runner": 1, "device": "cpu"})
    with Trackers.open(run, tmp_path / "run") as trackers:
        train(run, tmp_path / "run", on_event=trackers.on_event)
    shown = read_tensorboard(tmp_path / "run" / "tensorboard")
    for line in RunDir(tmp_path / "run").read_metrics():
        for name, value in line.items():
            if name not in ("update", "time_s"):
                assert shown[name][line["update"]] == pytest.approx(value, rel=1e-6)
