"""Where a run's numbers go beside its folder: TensorBoard, W&B, MLflow. Each listens to the loop's events, as the display does.

with Trackers.open(config, run_dir) as trackers: train(config, run_dir, on_event=trackers.on_event)
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from wmrl_ray.config import ConfigError, flatten, to_dict
from wmrl_ray.data.files import write_json
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event

PROJECT = "wmrl"  # of W&B and MLflow, where WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME do not say otherwise


class Tracker(Protocol):
    """Takes the numbers of one event; returns at once, whatever the network does."""

    def log(self, update: int, metrics: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files in `RUN/tensorboard`: tensorboard --logdir runs. A resumed run hides what its crash left behind."""

    def __init__(self, config: RunConfig, run_dir: Path, update: int) -> None:
        from tensorboardX import SummaryWriter

        # Why a suffix: two sessions that begin in one second would share a file
        suffix, purge_step = f".from-{update}", update + 1 if update else None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step, filename_suffix=suffix, flush_secs=10)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)  # a thread of the writer's own writes it

    def close(self, finished: bool) -> None:
        self._writer.close()


class Wandb:
    """One W&B run for one run folder, resumed with it. Its settings are W&B's own variables (WANDB_MODE=offline, ...).

    Updates that are done again after a crash are points again, at the same `update`.
    """

    def __init__(self, config: RunConfig, run_dir: Path, update: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name(run_dir),
            id=run_id(run_dir),
            resume="allow",
            dir=str(run_dir),
            config=to_dict(config.resolved()),
        )
        # Why an axis of our own: an evaluation ends later than the update that it is of, and W&B's steps only go up
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"update": update, **metrics})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """One MLflow run for one run folder, resumed with it; `RUN/mlflow.json` has its id. Without MLFLOW_TRACKING_URI it is kept
    in `RUN/mlruns`. Updates that are done again after a crash are points again, at the same step.
    """

    def __init__(self, config: RunConfig, run_dir: Path, update: int) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # Why: newer MLflows keep files only where they are told twice
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run_dir / "mlruns").resolve().as_uri()
        self._client = MlflowClient(uri, registry_uri=uri)  # else a database in the working directory
        self._sent: deque[Any] = deque(maxlen=100)  # they are written in order
        note = run_dir / "mlflow.json"
        if note.exists():
            self._id = json.loads(note.read_text())["run_id"]
            self._client.set_terminated(self._id, "RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = self._client.create_run(experiment_id, run_name=run_name(run_dir)).info.run_id
        for key, value in flatten(to_dict(config.resolved())):
            self._client.log_param(self._id, key, value)
        write_json(note, {"run_id": self._id, "tracking_uri": uri})

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, value, now, update) for name, value in metrics.items()]
        self._sent.append(self._client.log_batch(self._id, metrics=batch, synchronous=False))

    def close(self, finished: bool) -> None:
        for sent in self._sent:
            sent.wait()
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable[[RunConfig, Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Trackers:
    """Those that `config.track` names. One that fails is dropped with a warning: a run outlives its tracking server."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._config, self._run_dir = config, Path(run_dir)
        self._open: dict[str, Tracker] = {}
        self._finished = False

    @classmethod
    def open(cls, config: RunConfig, run_dir: Path) -> Trackers:
        """Nothing is written before the loop has begun. Raises ConfigError where a package is missing."""
        for name in config.track:
            try:
                importlib.import_module(PACKAGES[name])
            except ImportError:
                package = "tensorboardX" if name == "tensorboard" else f"'wmrl-ray[{name}]'"
                raise ConfigError(f"track = {name!r} needs a package that is missing: pip install {package}") from None
        return cls(config, run_dir)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close(self._finished)

    def _close(self, finished: bool) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close, finished)

    def on_event(self, event: Event) -> None:
        if event.kind in ("start", "recovery"):  # after a recovery the run goes on from an earlier update
            self._close(finished=True)  # Why: it has not failed
            for name in self._config.track if event.kind == "start" else list(self._open):
                self._try(name, self._begin, name, event.update)
        elif event.kind in ("update", "eval"):
            finite = {name: value for name, value in event.metrics.items() if math.isfinite(value)}
            for name, tracker in list(self._open.items()):
                self._try(name, tracker.log, event.update, finite)
        elif event.kind == "end":
            self._finished = event.update >= event.total

    def _begin(self, name: str, update: int) -> None:
        self._open[name] = TRACKERS[name](self._config, self._run_dir, update)

    def _try(self, name: str, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._open.pop(name, None)
            warnings.warn(f"tracking with {name} ends here, the run goes on: {type(error).__name__}: {error}", stacklevel=2)


def run_name(run_dir: Path) -> str:
    """`study/algorithm-seed0`."""
    return "/".join(Path(run_dir).resolve().parts[-2:])


def run_id(run_dir: Path) -> str:
    """The same for the same folder on the same storage."""
    return hashlib.sha256(str(Path(run_dir).resolve()).encode()).hexdigest()[:16]
