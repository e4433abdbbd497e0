"""A search on Tune: its ASHA, its population-based training, its Optuna; each trial trains all seeds of one point.

Tune decides which points are tried and how long; what was learned is in the runs' folders. So nothing is restored from Tune's
own records: a search that is started again tells Tune what the folders hold, and goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from wmrl_ray.config import ConfigError, check
from wmrl_ray.data.files import write_json
from wmrl_ray.rllib.telemetry import Telemetry
from wmrl_ray.rllib.trials import RESULT, Stopper, Values, Working, cause_of, check_share, life_of, quiet_tune
from wmrl_ray.rllib.watchdog import Life, Watchdog
from wmrl_ray.search import Search
from wmrl_ray.search_trial import Member, run_trial
from wmrl_ray.space import Distribution, Point, point_name

TRIAL, POINTER, LAST = "trial", "donor.json", "last"
OnReport = Callable[[str, Values], None]
OnEnd = Callable[[str, str, str | None], None]  # (name, state, why)


def run_search(
    search: Search,
    out: Path,
    *,
    known: Sequence[Point] = (),
    skipped: Sequence[str] = (),
    pruned: dict[str, int] | None = None,
    on_report: OnReport = lambda name, values: None,
    on_end: OnEnd = lambda name, state, why: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs the search's trials on the Ray that runs already.

    Args:
        known: points of earlier sessions, which come first: finished ones report what they have.
        skipped: names of trials that have failed and are not tried again.
        pruned: names of trials that a scheduler has stopped for good, and the update where; they are not trained any further.
        on_report: what `search_trial.run_trial` reports.
        on_end: once for each trial: "finished", "pruned" (stopped early by the scheduler), "failed" or "stopped".

    Raises:
        ConfigError: more CPUs or GPUs for a run than this machine has, where Ray was started on it, or Optuna is asked for and
            not installed.
    """
    spec = search.tune
    check_share(spec.cpus_per_run, spec.gpus_per_run)
    quiet_tune()
    out = out.resolve()  # Why: a worker may stand in another folder
    search = _on_device(search)
    folder = out / search.folder / ".tune"
    shutil.rmtree(folder, ignore_errors=True)
    stop_file = folder.with_name(f"{folder.name}.stop")
    stop_file.unlink(missing_ok=True)
    life = life_of(folder, spec.trial_timeout_s)
    watchdog, working = Watchdog(life), Working()
    listener = _Listener(search, on_report, on_end, should_stop, watchdog)
    work = tune.with_parameters(_in_trial, search=search, out=out, pruned=pruned or {}, stop_file=stop_file, life=life)
    trainable = tune.with_resources(work, {"cpu": spec.cpus_per_run, "gpu": spec.gpus_per_run})
    known = list({point_name(point): point for point in known}.values())
    points = [*known, *(p for p in search.trials if p not in known)]
    points = [point for point in points if point_name(point) not in skipped]
    num_samples = len(points) if spec.searcher == "random" else spec.num_samples - len(skipped)
    if num_samples < 1:
        return
    trials = [{"name": (name := point_name(point)), "point": _now(search, out, name, point)} for point in points]
    config: dict[str, Any] = {TRIAL: tune.grid_search(trials)} if spec.searcher == "random" else {}
    with _seeded(spec.seed):
        tuner = tune.Tuner(
            trainable,
            param_space=config,
            tune_config=tune.TuneConfig(
                num_samples=num_samples if spec.searcher != "random" else 1,
                max_concurrent_trials=spec.max_concurrent,
                search_alg=_optuna(search, known, skipped) if spec.searcher == "optuna" else None,
                scheduler=_scheduler(search),
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                callbacks=[watchdog, listener, working],
                failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                stop=Stopper(should_stop, stop_file, working),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            stop_file.unlink(missing_ok=True)
            shutil.rmtree(life.folder, ignore_errors=True)
    if not listener.has_failed:
        shutil.rmtree(folder, ignore_errors=True)


def _in_trial(config: Values, life: Life, **kwargs: Any) -> None:
    with life.shown():
        _work(config, **kwargs)


def _work(config: Values, search: Search, out: Path, pruned: dict[str, int], stop_file: Path) -> None:
    """In an actor of its own."""
    torch.set_num_threads(1)
    name = Path(tune.get_context().get_trial_dir()).name  # Why not from config: an exploit replaces that by the donor's
    point = dict(config[TRIAL]["point"] if TRIAL in config else config)
    adopted = _adopted(name, point)
    stop_at = pruned.get(name)
    is_population = search.tune.scheduler == "pbt"

    def report(values: Values) -> None:
        if stop_at is not None and values["update"] > stop_at:
            raise _PrunedBeforeError
        if not is_population:
            tune.report(values)
        elif values["update"] == search.rungs[-1]:  # Why hidden from the scheduler: nothing is left to learn after an exploit
            tune.report({LAST: values})
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_json(Path(folder) / POINTER, values)
                tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))

    from wmrl_ray.checkpoint import CheckpointError
    from wmrl_ray.data.episode import DataError
    from wmrl_ray.train import NonFiniteLossError

    def should_end(update: int | None) -> bool:
        return stop_file.exists() or (stop_at is not None and (update or 0) >= stop_at)

    last: Values = {}

    def keep_last(values: Values) -> None:
        nonlocal last
        last = values
        report(values)

    try:
        result = run_trial(
            search,
            out,
            name,
            point,
            keep_last,
            adopted=adopted,
            should_stop=lambda: should_end(last.get("update")),
            listener=lambda config, folder: Telemetry(config, folder).on_event,
        )
    except _PrunedBeforeError:
        result = {"state": "pruned", **last}
    except (ConfigError, DataError, CheckpointError, NonFiniteLossError, FloatingPointError) as error:  # would come again
        tune.report({RESULT: {"state": "failed", "why": str(error)}})
        return
    state = "pruned" if result["state"] == "stopped" and stop_at is not None else result["state"]
    tune.report({**({} if is_population else last), RESULT: {"state": state, "why": None}})


class _PrunedBeforeError(Exception):
    """A trial that an earlier session's scheduler stopped has reported all that it has."""


def _adopted(name: str, point: Point) -> Values | None:
    """What this member goes on from, when Tune gave it the checkpoint of another one."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        values = json.loads((Path(folder) / POINTER).read_text())
    if values["name"] == name:
        return None
    check("kept" in values, f"{values['name']} has not kept its state at update {values['update']}")
    return values


def _scheduler(search: Search) -> Any:
    spec, rungs = search.tune, search.rungs
    about: dict[str, Any] = {"time_attr": "update", "metric": spec.metric, "mode": spec.mode}
    if spec.scheduler == "asha":
        from ray.tune.schedulers import ASHAScheduler

        # Why one more: a trial that reaches max_t is stopped there, and its last report would not be its result
        grace = min(rungs[spec.grace_period - 1 :] or rungs[-1:])
        return ASHAScheduler(**about, max_t=rungs[-1] + 1, grace_period=grace, reduction_factor=spec.reduction_factor)
    if spec.scheduler == "pbt":
        from wmrl_ray.rllib.population import Population

        return Population(
            **about,
            perturbation_interval=spec.perturbation_interval * rungs[0],
            hyperparam_mutations={TRIAL: {"point": {key: _mutation(one) for key, one in search.space.items()}}},
            quantile_fraction=spec.quantile_fraction,
            resample_probability=spec.resample_probability,
            custom_explore_fn=functools.partial(_clipped, search=search),
            require_attrs=False,
            synch=True,  # Why: members are compared at the same update, and none waits for a donor that is ahead
            log_config=False,
        )
    return None


def _clipped(config: Values, search: Search) -> Values:
    """After Tune's factors 0.8 and 1.2: no setting leaves its distribution."""
    point = {key: search.space[key].clip(value) for key, value in config[TRIAL]["point"].items()}
    return {**config, TRIAL: {**config[TRIAL], "point": point}}


def _optuna(search: Search, known: Sequence[Point], skipped: Sequence[str] = ()) -> Any:
    """Optuna's TPE, which begins with what is known already."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tune.searcher = 'optuna' needs Optuna: pip install 'wmrl-ray[optuna]'")
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    from wmrl_ray.rllib.searcher import Distinct

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = search.tune
    return Distinct(
        OptunaSearch.convert_search_space({key: _domain(one) for key, one in search.space.items()}),
        metric=spec.metric,
        mode=spec.mode,
        first=known,
        seed=spec.seed + len(known),  # Why: what is known draws nothing, and the first seed would suggest it again
        skipped=skipped,
    )


def _domain(one: Distribution) -> Any:
    """As Tune's own."""
    if one.kind == "choice":
        return tune.choice(one.values)
    return getattr(tune, one.kind)(*one.values)


def _mutation(one: Distribution) -> Any:
    """As a population explores it: a choice goes to its neighbour in the list, which Tune would multiply as a domain."""
    return list(one.values) if one.kind == "choice" else _domain(one)


def _on_device(search: Search) -> Search:
    """Without GPUs of their own runs keep off those they may see, as a sweep's plain ones do."""
    device = "cuda" if search.tune.gpus_per_run > 0 else "cpu"
    configs = {seed: {**c, "device": device} if c["device"] == "auto" else c for seed, c in search.configs.items()}
    return dataclasses.replace(search, configs=configs)


def _now(search: Search, out: Path, name: str, point: Point) -> Point:
    """The trial's settings: a member of a population keeps the name of those that it began with, and goes on with others."""
    return Member(search, out, name, point).point if search.tune.scheduler == "pbt" else point


def _name(trial: Any) -> str:
    return trial.config[TRIAL]["name"] if TRIAL in trial.config else point_name(dict(trial.config))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Tune's schedulers draw from the process's streams."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Listener(tune.Callback):
    def __init__(
        self, search: Search, on_report: OnReport, on_end: OnEnd, should_stop: Callable[[], bool], watchdog: Watchdog
    ) -> None:
        self._search, self._on_report, self._on_end, self._should_stop = search, on_report, on_end, should_stop
        self._watchdog = watchdog
        self._ended: set[str] = set()
        self.has_failed = False

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Values, **info: Any) -> None:
        name = self._trial_name(trial)
        if RESULT in result:
            self._end(name, result[RESULT]["state"], result[RESULT]["why"])
        elif "values" in (values := result.get(LAST, result)):
            self._on_report(name, {key: value for key, value in values.items() if key in self._keys})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Also of a trial that the scheduler stopped."""
        self._end(self._trial_name(trial), "stopped" if self._should_stop() else "pruned", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._trial_name(trial), "failed", self._watchdog.cause(trial) or cause_of(trial))

    @property
    def _keys(self) -> set[str]:
        return {"update", "total", "values", "generation", "point", "runs", self._search.tune.metric}

    def _trial_name(self, trial: Any) -> str:
        return os.path.basename(trial.local_path or trial.path)

    def _end(self, name: str, state: str, why: str | None) -> None:
        if name in self._ended:
            return
        self._ended.add(name)
        self.has_failed |= state == "failed"
        self._on_end(name, state, why)

    def __getstate__(self) -> dict[str, Any]:
        return {}
