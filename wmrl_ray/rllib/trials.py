"""Independent pieces of work as Tune trials: Tune schedules them over the cluster, retries them, and reports what they say.

outcomes = run_trials(work, {"a": spec_a, "b": spec_b}, folder=Path("runs/x/.tune"))
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from wmrl_ray.config import check
from wmrl_ray.data.files import slug
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.watchdog import Life, Watchdog

Values = dict[str, Any]
STOP_S = 20.0  # from being asked to stop until trials that have not ended by then are ended
PROGRESS, RESULT = "progress", "result"


@dataclass(frozen=True)
class Report:
    """What a trial is given: call it with values for the display; `should_stop` says that all are to end, with a checkpoint."""

    stop_file: Path

    def __call__(self, values: Values) -> None:
        tune.report({PROGRESS: values})

    def should_stop(self) -> bool:
        return self.stop_file.exists()


@dataclass(frozen=True)
class Outcome:
    """result: what the work returned. error: one line, why there is none; both None: it was stopped."""

    result: Values | None = None
    error: str | None = None


def run_trials(
    work: Callable[[Any, Report], Values],
    specs: Mapping[str, Any],
    *,
    folder: Path,
    on_progress: Callable[[str, Values], None] = lambda name, values: None,
    on_end: Callable[[str, Outcome], None] = lambda name, outcome: None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    max_failures: int = 3,
    trial_timeout_s: float = 600.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Outcome]:
    """Runs `work(spec, report)` for each spec as a trial with one thread, on the Ray that runs already.

    The specs are started in their order, as many at a time as there are CPUs (and GPUs, if any are asked for). A process that
    has done one well takes the next; one whose trial failed does not.

    Args:
        work: importable by the workers. What it passes to `report` goes to `on_progress`. An exception or the death of its
            process is a failure, and it is called again; what should not be tried again belongs into its result.
        specs: by name.
        cpus_per_trial: as Tune counts them: how many trials share a node. 0.5: two on a core.
        folder: of Tune's own records; replaced, and deleted when all went well.
        on_end: called once for each trial, as it ends.
        trial_timeout_s: a process that shows no sign of life for so long is ended, which is a failure too; 0: never.
        should_stop: asked all the time. True tells the trials, and ends those that have not ended by themselves `STOP_S` later.

    Raises:
        ConfigError: more CPUs or GPUs per trial than this machine has, where Ray was started on it.
    """
    check_share(cpus_per_trial, gpus_per_trial)
    quiet_tune()
    shutil.rmtree(folder, ignore_errors=True)
    stop_file = folder.resolve().with_name(f"{folder.name}.stop")  # Why a file: the folder is shared by all nodes already
    stop_file.unlink(missing_ok=True)
    life = life_of(folder, trial_timeout_s)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, work=work, specs=dict(specs), report=Report(stop_file), life=life),
        {"cpu": cpus_per_trial, "gpu": gpus_per_trial},
    )
    watchdog, working = Watchdog(life), Working()
    listener = _Listener(on_progress, on_end, watchdog)
    tuner = tune.Tuner(
        trainable,
        param_space={"name": tune.grid_search(list(specs))},
        tune_config=tune.TuneConfig(
            trial_name_creator=_name,
            trial_dirname_creator=_name,
            reuse_actors=True,  # Why: a process of its own costs each trial seconds of start and imports
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.resolve()),
            callbacks=[watchdog, listener, working],
            failure_config=tune.FailureConfig(max_failures=max_failures),
            stop=Stopper(should_stop, stop_file, working),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        stop_file.unlink(missing_ok=True)
        shutil.rmtree(life.folder, ignore_errors=True)
    outcomes = {name: listener.outcomes.get(name, Outcome()) for name in specs}
    if not any(outcome.error for outcome in outcomes.values()):
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def check_share(cpus: float, gpus: float) -> None:
    """Raises ConfigError for more than the largest node has, or only warns where Ray was joined: an autoscaler may bring one.

    Why: a run is on one node, and Tune waits for room for ever without a word.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, asked in (("CPU", cpus), ("GPU", gpus)):
        has = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if asked <= has:
            continue
        said = f"{asked:g} {name}s for each run, but the cluster's largest node has {has:g}"
        check(
            not compat.started_ray(), f"{said}; --{name.lower()}s-per-run, or tune.{name.lower()}s_per_run, sets a run's share"
        )
        warnings.warn(f"{said} now: waiting for its autoscaler to bring a larger one", stacklevel=3)


def quiet_tune() -> None:
    """Tune's settings through the environment of this process."""
    # Why: datasets and modules may be named relative to where the user stands; and Ctrl-C is `should_stop`'s
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"], os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0", "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its header goes to stdout at any verbosity
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the runs record themselves
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that failed has no metric
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors come home in the outcomes


def life_of(folder: Path, limit_s: float) -> Life:
    """Of the trials whose records Tune keeps in `folder`; none has shown any yet."""
    life = Life(folder.resolve().with_name(f"{folder.name}.alive"), limit_s)
    shutil.rmtree(life.folder, ignore_errors=True)
    return life


def _trial(config: Values, work: Callable[[Any, Report], Values], specs: Mapping[str, Any], report: Report, life: Life) -> None:
    torch.set_num_threads(1)  # Why: Ray gives a process as many as it has CPUs; trials share cores, and each is one stream
    if report.should_stop():  # Why: while some write their checkpoints, Tune starts others in the place of those that have
        return
    with life.shown():
        tune.report({RESULT: work(specs[config["name"]], report)})


def _name(trial: Any) -> str:
    return slug(str(trial.config["name"]).replace("/", "__"), 200)


class Working(tune.Callback):
    """Which trials are at work."""

    def __init__(self) -> None:
        self._started: dict[str, Any] = {}

    @property
    def ids(self) -> set[str]:
        """Without those that a scheduler has paused: they have no process, and nothing will end them."""
        return {key for key, trial in self._started.items() if trial.status != Trial.PAUSED}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started[trial.trial_id] = trial

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started.pop(trial.trial_id, None)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Why: Tune writes it to disk for a restore, which is not done here


class Stopper(tune.Stopper):
    """Asked to stop, tells the trials by `stop_file`, and ends all when those at work have ended, or `STOP_S` later."""

    def __init__(self, should_stop: Callable[[], bool], stop_file: Path, working: Working):
        self._should_stop, self._stop_file, self._working = should_stop, stop_file, working
        self._awaited: set[str] | None = None  # those that were at work when all were asked to stop
        self._deadline = math.inf

    def __call__(self, trial_id: str, result: Values) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._awaited is None:
            if not self._should_stop():
                return False
            self._awaited, self._deadline = set(self._working.ids), time.monotonic() + STOP_S
            self._stop_file.touch()
        return not (self._awaited & self._working.ids) or time.monotonic() > self._deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Why: Tune writes it to disk for a restore, which is not done here


class _Listener(tune.Callback):
    def __init__(
        self, on_progress: Callable[[str, Values], None], on_end: Callable[[str, Outcome], None], watchdog: Watchdog
    ) -> None:
        self._on_progress, self._on_end, self._watchdog = on_progress, on_end, watchdog
        self.outcomes: dict[str, Outcome] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Values, **info: Any) -> None:
        name = trial.config["name"]
        if RESULT in result and name not in self.outcomes:
            self._end(name, Outcome(result=result[RESULT]))
        elif PROGRESS in result:
            self._on_progress(name, result[PROGRESS])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        if name not in self.outcomes:
            self._end(name, Outcome(error=self._watchdog.cause(trial) or cause_of(trial)))

    def _end(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self._on_end(name, outcome)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def cause_of(trial: Any) -> str:
    """One line: the error of the trial's last attempt."""
    # Why not trial.get_pickled_error(): it reads the storage's copy of this file, which may not be there yet
    if trial.pickled_error_file is None:
        return _last_line(Path(trial.error_file).read_text() if trial.error_file else "")
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    error = getattr(error, "cause", None) or error
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died (killed, or out of memory; see Ray's logs of the node)"
    return f"{type(error).__name__}: {_last_line(str(error))}"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
