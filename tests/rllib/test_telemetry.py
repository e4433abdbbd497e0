"""What a run tells its cluster's metrics, and that a node's metrics port shows it."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rllib.online_fakes import run_config
from tests.studies import tiny_plan, tiny_values
from wmrl_ray.rllib import search as module
from wmrl_ray.rllib.telemetry import METRICS, Telemetry, exported_names, readings
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.events import Event


def numbers(event: Event) -> dict[str, float]:
    return {metric.name: value for metric, value in readings(event)}


def test_an_update_gives_counts_speed_and_losses_and_leaves_out_what_is_not_a_number() -> None:
    metrics = {"time/updates_per_s": 7.0, "loss/value": 2.0, "loss/actor": math.nan, "plan/nan_frac": 0.0}
    assert numbers(Event("update", 40, 100, metrics)) == {
        "wmrl_updates": 40.0,
        "wmrl_updates_goal": 100.0,
        "wmrl_recoveries": 0.0,
        "wmrl_updates_per_second": 7.0,
        "wmrl_loss_critic": 2.0,
    }


def test_an_evaluation_and_a_checkpoint_give_theirs_alone() -> None:
    evaluation = {"eval/return_mean": 3.0, "eval/return_std": 1.0}
    assert numbers(Event("eval", 40, 100, evaluation)) == {"wmrl_evaluation_return": 3.0}
    assert numbers(Event("checkpoint", 40, 100, {})) == {"wmrl_checkpoint_update": 40.0}
    assert numbers(Event("end", 40, 100, {})) == {}


def test_names_are_prometheus_names_and_used_once() -> None:
    assert len(exported_names()) == len(METRICS)
    assert all(re.fullmatch(r"ray_wmrl_[a-z_]+[a-z]", name) and not name.endswith("_total") for name in exported_names())


def test_a_runs_name_is_a_label_that_ray_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmrl_ray.rllib.telemetry.Gauge", lambda *given: SimpleNamespace())

    def label(folder: str) -> str:
        return Telemetry(RunConfig("bc", dataset="x"), Path("/runs") / folder)._labels["run"]

    assert label("study/bc-seed0") == "study/bc-seed0" and label("run #1 %20 a=b") == "runs/run #1 %20 a=b"
    assert label("r\u00fcn") == "runs/r%C3%BCn" and label("a\nb") == "runs/a%0Ab"


def test_a_trials_runs_are_exported_to_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cells of a grid are; here in this process."""
    told = []

    class Told:
        def __init__(self, config: RunConfig, folder: Path) -> None:
            self.run = (config.algorithm, folder)

        def on_event(self, event: Event) -> None:
            told.append((*self.run, event.kind))

    monkeypatch.setattr(module, "Telemetry", Told)
    monkeypatch.setattr(module.tune, "get_context", lambda: SimpleNamespace(get_trial_dir=lambda: "trials/t0"))
    monkeypatch.setattr(module.tune, "get_checkpoint", lambda: None)
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(module.tune, "report", reports.append)
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2, "num_updates": 8}
    space, about = (
        {"agent.lr": {"loguniform": [1e-4, 1e-1]}},
        {"variants": {"baseline": {}}, "columns": ["bc"], "seeds": [0, 1]},
    )
    search = tiny_plan(tmp_path, run=run, search=space, tune={"scheduler": "asha"}, **about).searches[0]
    out = tmp_path / "out"
    module._work({"trial": {"name": "t0", "point": search.trials[0]}}, search, out, {}, tmp_path / "stop")
    assert {(algorithm, folder) for algorithm, folder, _ in told} == {("bc", out / search.run("t0", seed)) for seed in (0, 1)}
    assert [kind for *_, kind in told].count("eval") == 8 and reports[-1]["result"]["state"] == "finished"


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_every_source_is_a_metric_of_a_real_run(schedule: Any, tmp_path: Path) -> None:
    """Of those that learn online; a normalised score needs a dataset."""
    from wmrl_ray.rllib.train import train_on_ray

    events: list[Event] = []
    config = run_config(num_updates=24, online=OnlineConfig(num_runners=1, num_envs=2, schedule=schedule, seed_steps=48))
    train_on_ray(config, tmp_path / "run", on_event=events.append)
    told = {metric.name for event in events for metric, _ in readings(event)}
    missing = {"wmrl_evaluation_score"} | (
        {"wmrl_policy_lag_updates", "wmrl_queued_episodes"} if schedule == "synchronous" else set()
    )
    assert {metric.name for metric in METRICS} - told == missing


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_nodes_metrics_port_shows_them_to_prometheus(tmp_path: Path) -> None:
    import ray

    telemetry = Telemetry(run_config(), tmp_path / "study" / "seed0")
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 120
    while True:
        telemetry.on_event(Event("update", 40, 100, {"loss/actor": 0.25}))
        page = urllib.request.urlopen(address, timeout=10).read().decode()
        if lines := [line for line in page.splitlines() if line.startswith("ray_wmrl_loss_actor{")]:
            break
        assert time.monotonic() < deadline, page[-2000:]
        time.sleep(1.0)
    assert lines[0].endswith(" 0.25")
    assert all(label in lines[0] for label in ('algorithm="own_tdmpc"', 'run="study/seed0"', 'role="learner"'))
