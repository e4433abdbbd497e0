"""What a run tells its cluster's metrics, and that a node's metrics port shows it."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.rllib.online_fakes import run_config
from wmrl_ray.rllib.telemetry import METRICS, Telemetry, exported_names, readings
from wmrl_ray.run.config import OnlineConfig
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
