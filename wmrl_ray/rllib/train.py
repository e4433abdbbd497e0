"""One recorded run on Ray: the contract, the run folder and the events of `wmrl_ray.train.train`."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS

from wmrl_ray.core.agents import agent_config
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.intents import intended_states
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.algorithm import AgentAlgorithm
from wmrl_ray.rllib.at_once import Kept
from wmrl_ray.rllib.config import CONFIGS, AgentAlgorithmConfig
from wmrl_ray.rllib.failures import STARTING_S, RemoteError, as_lost
from wmrl_ray.rllib.online import taking_over
from wmrl_ray.rllib.placement import Room, needs
from wmrl_ray.rllib.telemetry import Telemetry
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event, OnEvent
from wmrl_ray.run.folder import RunDir
from wmrl_ray.run.lock import alone_in_run_dir
from wmrl_ray.train import (
    Progress,
    build_replay,
    data_warning,
    evaluation_env,
    lacks_evaluation,
    open_run,
    recorded_device,
    resolve_device,
    with_episode_len,
    with_recorded_env,
)

STOPPING_S = 10.0  # that a run which is to stop waits for an evaluation
MOST_BACKOFF_S = 60.0  # between the loss of an actor and the next session


@alone_in_run_dir
def train_on_ray(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    debug: bool = False,
) -> dict[str, Any]:
    """Trains, evaluates and records one run with learners and runners on Ray, offline or online; starts a local Ray if none
    runs.

    Evaluations run beside training: their lines and events come when they finish, with the update whose weights were evaluated.

    Args:
        resume: continue from the newest complete checkpoint of `run_dir`; start at 0 if there is none.
        should_stop: asked between calls; True writes a checkpoint and returns.
        debug: everything in this process, whatever `num_learners` and `num_eval_runners` say.

    Returns:
        What `result.json` holds.

    A learner or a runner that dies or hangs does not end the run: all is built again from the newest complete checkpoint (from
    update 0 if there is none) and goes on as a resumed run does, `max_failures` times without a new checkpoint in between.
    Each time, and at first, it waits up to `placement_timeout_s` for room on the cluster.

    Raises:
        ConfigError, DataError: before anything is started or written.
        RemoteError: an actor failed; the message has its error and traceback. Or actors died too often, or there was no room
            for them.
    """
    agent_config(config.algorithm, config.agent)
    dataset = None if config.dataset is None else open_dataset(config.dataset)
    config = with_recorded_env(config, dataset)
    env_id = evaluation_env(config, dataset)
    config = with_episode_len(config, env_id)
    config = dataclasses.replace(config, device=recorded_device(config, run_dir, resume))
    _learns_on_gpu(config, debug)  # for its error
    build_replay(config, dataset)  # for its check of the window
    # Why quiet: this process's lines are the display's; an actor's error comes home with its traceback
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    _settings(config, debug).validate()  # on a copy: the algorithm does it again, with Ray
    run = open_run(run_dir, config, dataset, resume)
    starts_ray = not ray.is_initialized()
    actors = 0 if debug else config.num_learners + config.num_eval_runners + config.online.num_runners
    compat.init(debug=debug, num_cpus=max(os.cpu_count() or 1, 1 + actors), logging_level="ERROR", log_to_driver=False)
    try:
        if config.device == "auto":  # Why now: the cluster is known, and what sessions after a loss find does not count
            config = dataclasses.replace(config, device="cuda" if _learns_on_gpu(config, debug) else "cpu")
            run.write_config(config)
        on_event = Telemetry(config, run.path).beside(on_event)
        with Room() as room, _Held(room) as held:
            return _survive(config, run, held, env_id, on_event, should_stop or (lambda: False), debug)
    finally:
        if starts_ray:
            ray.shutdown()


def _survive(
    config: RunConfig,
    run: RunDir,
    held: _Held,
    env_id: str | None,
    tell: OnEvent,
    should_stop: Callable[[], bool],
    debug: bool,
) -> dict[str, Any]:
    """Sessions of the run, until one ends without having lost an actor."""
    failures, lost_at, has_begun = 0, None, False

    def tell_all(event: Event) -> None:
        nonlocal has_begun
        has_begun = has_begun or event.kind == "start"
        tell(event)

    def tell_here(kind: Any, message: str = "") -> None:
        tell_all(Event(kind, _update_of(run.newest_checkpoint()), config.num_updates, {}, message))

    def tell_wait(message: str) -> None:
        if has_begun:
            tell_here("warning", message)
        else:  # Why: a display shows a run from its start on, and a run that is replaced is deleted then
            warnings.warn(message, stacklevel=2)

    while True:
        asked = needs(_settings(config, debug))
        if not held.room.wait(asked, config.placement_timeout_s, run.path, tell_wait, should_stop):
            reached = _update_of(run.newest_checkpoint())
            return {"updates": reached, "seconds": run.seconds(), "finished": False, **run.last_evaluation()}
        try:
            return _Run(config, run, held, env_id, tell_all, debug, has_begun).train(should_stop)
        except Exception as error:
            lost = as_lost(error, "the run was built")
            if lost is None:
                raise
            cause = str(lost).splitlines()[0]
            reached = run.newest_checkpoint()
            failures = failures + 1 if reached == lost_at else 1
            lost_at = reached
            if failures > config.max_failures:
                more = f"; that was failure {failures} without a new checkpoint, max_failures = {config.max_failures}"
                raise RemoteError(f"{cause}{more}") from error
            del lost  # Why: its traceback holds the old algorithm, and so its actors and their CPUs
        if not has_begun:
            tell_here("start")
        # Why now: building may wait long, for a node in the place of one that is gone
        tell_here("recovery", f"{cause}; rebuilding from {_place_of(reached)}")
        gc.collect()
        _sleep(min(MOST_BACKOFF_S, 2.0 ** (failures - 1)), should_stop)


def _update_of(newest: Path | None) -> int:
    return 0 if newest is None else int(newest.name)


def _place_of(newest: Path | None) -> str:
    return "the start, before the first checkpoint" if newest is None else f"checkpoint {int(newest.name):,}"


def _sleep(seconds: float, should_stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not should_stop():
        time.sleep(0.1)


@dataclass
class _Held:
    """What a run holds on the cluster from one session to the next. kept: runners that outlive their learners."""

    room: Room
    kept: Kept | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.kept is not None:
            self.kept.runners.stop()


class _Run:
    """The state of one session of a run: the algorithm, the folder, and what is due next."""

    def __init__(
        self, config: RunConfig, run: RunDir, held: _Held, env_id: str | None, tell: OnEvent, debug: bool, has_begun: bool
    ) -> None:
        """has_begun: a session before this one told the run's start."""
        self.config, self.env_id, self.tell, self.has_begun = config, env_id, tell, has_begun
        settings = _settings(config, debug)
        torch.set_num_threads(1)  # Why: as the loop without Ray; actors have one CPU each too
        self.run = run
        self._held = held
        with held.room.used(STARTING_S + config.call_timeout_s), taking_over(held.kept):
            self.algorithm: AgentAlgorithm = compat.build(settings, self.run.path)
        held.kept = None  # they are the algorithm's now
        self.progress = Progress(config)
        if (newest := self.run.newest_checkpoint()) is not None:
            try:
                self.algorithm.restore_from_path(newest)
            except Exception as error:
                self._abandon(error)
                self.algorithm.stop()
                raise
            self.progress.update = self.algorithm.num_updates
        self.run.open_metrics(self.progress.update)
        self.last_eval = self.run.last_evaluation()

    def train(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        config, progress = self.config, self.progress
        try:
            if not self.has_begun:
                self._event("start", {})
                if warning := data_warning(self.run):
                    self._event("warning", {}, warning)
            if lacks_evaluation(self.run, progress):
                self.algorithm.start_evaluation()  # Why: the session that stopped here did not see the end of it
            since = (progress.update, time.monotonic())
            while not progress.finished:
                result = self.algorithm.train()
                progress.update = self.algorithm.num_updates
                if progress.due(config.log_every):
                    now = time.monotonic()
                    metrics = _path_metrics(result[LEARNER_RESULTS][DEFAULT_MODULE_ID])
                    metrics["time/updates_per_s"] = (progress.update - since[0]) / (now - since[1])
                    since = (progress.update, now)
                    metrics |= self.algorithm.take_metrics()
                    self._record("update", progress.update, metrics)
                paused = time.monotonic()
                if progress.evaluation_due:
                    self._collect_evaluation(None, should_stop)
                    if not self.algorithm.is_evaluating:
                        self.algorithm.start_evaluation()
                self._collect_evaluation(0.0)
                since = (since[0], since[1] + time.monotonic() - paused)
                stopping = should_stop()
                if progress.due(config.checkpoint_every) or stopping:
                    # Why wait: a run resumed from this checkpoint repeats that of its own update only
                    self._collect_evaluation(None, should_stop)
                    must = progress.finished or stopping
                    missed = self.run.save_checkpoint(progress.update, self.algorithm.save_to_path, must=must)
                    self._event("warning" if missed else "checkpoint", {}, missed or "")
                if stopping:
                    break
            if progress.finished:
                self._collect_evaluation(None, should_stop)
            finished = progress.finished and not lacks_evaluation(self.run, progress)
            summary = {"updates": progress.update, "seconds": self.run.seconds(), "finished": finished}
            summary |= {**self.algorithm.totals(), **self.last_eval}
            if finished:
                self.run.finish(summary)
            self._event("end", self.last_eval)
            return summary
        except Exception as error:
            self._abandon(error)
            raise
        finally:
            self.algorithm.stop()

    def _abandon(self, error: Exception) -> None:
        """Where an actor was lost: waits for none of the others, and keeps what the next session can go on with."""
        if as_lost(error, "") is not None:
            self.algorithm.abandon()
            self._held.kept = self.algorithm.hand_over()

    def _collect_evaluation(self, timeout_s: float | None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Records the evaluation in progress, if there is one and it ends within `timeout_s`.

        None waits for it, but for STOPPING_S only once a stop is asked for: whoever asks may not wait for a checkpoint.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        update = None
        while self.algorithm.is_evaluating and update is None:
            if until is None and should_stop():
                until = time.monotonic() + STOPPING_S
            update = self.algorithm.finish_evaluation(1.0 if until is None else max(0.0, until - time.monotonic()))
            if update is None and until is not None and time.monotonic() >= until:
                return
        if update is None:
            return
        self.last_eval = self.algorithm.last_evaluation_metrics
        assert self.algorithm.last_evaluation is not None
        evaluation = self.algorithm.last_evaluation
        assert self.env_id is not None
        if evaluation.episodes[0].obs.ndim == 2:  # vectors, not images
            self.run.save_trajectories(evaluation, intended_states(evaluation.episodes, self.env_id))
        self._record("eval", update, self.last_eval)

    def _record(self, kind: Any, update: int, metrics: dict[str, float]) -> None:
        self.run.log(update, metrics)
        self.tell(Event(kind, update, self.config.num_updates, metrics))

    def _event(self, kind: Any, metrics: dict[str, float], message: str = "") -> None:
        self.tell(Event(kind, self.progress.update, self.config.num_updates, metrics, message))


def _settings(config: RunConfig, debug: bool) -> AgentAlgorithmConfig:
    settings = CONFIGS[config.algorithm].from_run(config)
    if _learns_on_gpu(config, debug):
        settings.learners(num_gpus_per_learner=1)
    if debug:
        compat.debug_config(settings)
    return settings


def _learns_on_gpu(config: RunConfig, debug: bool) -> bool:
    """Of learner actors the cluster's GPUs count, not this machine's. Raises ConfigError for a device that is not here."""
    if debug or config.num_learners == 0 or not config.device.startswith(("cuda", "auto")):
        return resolve_device(config.device).startswith("cuda")
    if config.device == "auto" and ray.is_initialized():
        return ray.cluster_resources().get("GPU", 0) >= config.num_learners
    return config.device != "auto" or resolve_device("auto") == "cuda"


def _path_metrics(results: dict[str, Any]) -> dict[str, float]:
    """The agent's own metrics, whose names are paths (`loss/critic`), without RLlib's."""
    return {name: float(value) for name, value in results.items() if "/" in name}
