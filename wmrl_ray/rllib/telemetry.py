"""A run's numbers as metrics of its Ray cluster: each node's metrics port shows them to Prometheus as `ray_wmrl_*`.

Labels are few, so that series do not multiply: algorithm, run (`study/algorithm-seed0`) and role.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ray.util.metrics import Gauge

from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event, OnEvent
from wmrl_ray.trackers import run_name

TAGS = ("algorithm", "run", "role")
_ASCII = bytes(range(32, 127)).decode()  # Ray takes no other letter in a label: an umlaut becomes %C3%BC


@dataclass(frozen=True)
class Metric:
    """source: the first of these paths of an event's metrics that is there; role: whose number it is."""

    name: str
    role: str
    sources: tuple[str, ...]
    description: str


METRICS = (
    Metric("wmrl_updates", "learner", (), "Gradient steps so far."),
    Metric("wmrl_updates_goal", "learner", (), "Gradient steps at which the run ends."),
    Metric("wmrl_updates_per_second", "learner", ("time/updates_per_s",), "Gradient steps per second, since the last log."),
    Metric("wmrl_loss_critic", "learner", ("loss/critic", "loss/value"), "Loss of the critic or of the value."),
    Metric("wmrl_loss_actor", "learner", ("loss/actor", "loss/cloning"), "Loss of the actor."),
    Metric("wmrl_loss_model", "learner", ("loss/model", "loss/consistency"), "Loss of the world model."),
    Metric("wmrl_replay_steps", "learner", ("online/replay_steps",), "Environment steps of its own in the replay."),
    Metric("wmrl_learner_wait_share", "learner", ("time/learner_wait_share",), "Share of time in which the learner waits."),
    Metric("wmrl_env_steps", "runner", ("online/steps",), "Environment steps so far."),
    Metric("wmrl_env_steps_per_second", "runner", ("online/steps_per_s",), "Environment steps per second, since the last log."),
    Metric(
        "wmrl_episode_return", "runner", ("online/return_mean",), "Mean return of the exploring episodes since the last log."
    ),
    Metric("wmrl_policy_lag_updates", "runner", ("online/policy_lag_mean",), "Age of the weights that runners act with."),
    Metric("wmrl_queued_episodes", "runner", ("online/queue_mean",), "Ended episodes that wait for the learner."),
    Metric("wmrl_runner_restarts", "runner", ("online/lost_runners",), "Runners that died and were replaced."),
    Metric(
        "wmrl_recoveries", "learner", (), "Times that the run went back to its newest checkpoint because an actor was lost."
    ),
    Metric("wmrl_lost_steps", "runner", ("online/lost_steps",), "Environment steps that were lost with their runner."),
    Metric("wmrl_runner_wait_share", "runner", ("time/runner_wait_share",), "Share of time in which runners wait."),
    Metric("wmrl_evaluation_return", "evaluation", ("eval/return_mean",), "Mean return of the last evaluation."),
    Metric("wmrl_evaluation_score", "evaluation", ("eval/score_mean",), "Normalised score of the last evaluation."),
    Metric("wmrl_checkpoint_update", "learner", (), "Gradient steps in the newest checkpoint."),
)


def exported_names() -> set[str]:
    """As Prometheus sees them."""
    return {f"ray_{metric.name}" for metric in METRICS}


class Telemetry:
    """Listens to a loop's events, in any process of a Ray cluster."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._labels = {"algorithm": config.algorithm, "run": quote(run_name(run_dir), safe=_ASCII)}
        self._recoveries = 0
        self._gauges = {metric.name: Gauge(metric.name, metric.description, TAGS) for metric in METRICS}

    def beside(self, listener: OnEvent | None) -> OnEvent:
        """Both."""

        def on_event(event: Event) -> None:
            if listener is not None:
                listener(event)
            self.on_event(event)

        return on_event

    def on_event(self, event: Event) -> None:
        self._recoveries += event.kind == "recovery"
        for metric, value in readings(event, self._recoveries):
            self._gauges[metric.name].set(value, {**self._labels, "role": metric.role})


def readings(event: Event, recoveries: int = 0) -> list[tuple[Metric, float]]:
    """What an event says. Numbers that are not finite are left out: Prometheus would keep them."""
    own: Mapping[str, float] = {}
    if event.kind in ("start", "update", "recovery"):
        own = {
            "wmrl_updates": float(event.update),
            "wmrl_updates_goal": float(event.total),
            "wmrl_recoveries": float(recoveries),
        }
    elif event.kind == "checkpoint":
        own = {"wmrl_checkpoint_update": float(event.update)}
    found = []
    for metric in METRICS:
        sources = [source for source in metric.sources if source in event.metrics]
        value = event.metrics[sources[0]] if sources else own.get(metric.name)
        if value is not None and math.isfinite(value):
            found.append((metric, value))
    return found
