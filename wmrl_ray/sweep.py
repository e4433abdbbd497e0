"""Runs a plan: Managers and plain runs first, then the Workers on the datasets that the Managers' intents went into.

    outcomes = sweep(expand(study), Path("runs/iql_td_mpc"), in_process)

Whatever is finished is not repeated and whatever was broken off goes on from its checkpoint, so that the same command is also
the one to resume with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.data.files import below
from wmrl_ray.results import Ledger
from wmrl_ray.run.lock import only_writer
from wmrl_ray.study import Cell, Plan, Settings
from wmrl_ray.sweep_folder import clear, set_aside, write_study
from wmrl_ray.sweep_search import RunSearch, carry_out, check_same

if TYPE_CHECKING:
    from wmrl_ray.rllib.trials import Outcome as TrialOutcome
    from wmrl_ray.rllib.trials import Report
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.run.events import OnEvent
    from wmrl_ray.run.folder import RunDir
    from wmrl_ray.search import Search

State = Literal["finished", "failed", "stopped", "waiting", "blocked", "pruned"]  # pruned: stopped early by a scheduler
Resume = Literal["auto", "errored", "fresh"]


@dataclass(frozen=True)
class Job:
    """What one process does: a run, or the intents of its Manager (random vectors) for a dataset, or one after the other.

    name: of the run's folder, relative to the sweep's. vectors: arguments of `intents.augmented`.
    """

    name: str
    folder: str
    config: Settings | None = None
    vectors: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """Of a job or a cell. waiting: what it needs has failed or was stopped. dataset: the one with intents that a job made."""

    state: State
    message: str | None = None
    updates: int = 0
    seconds: float = 0.0
    score: float | None = None
    episode_return: float | None = None
    dataset: str | None = None
    again: bool = False  # finished by an earlier sweep

    @property
    def is_bad(self) -> bool:
        return self.state in ("failed", "waiting")


class Listener(Protocol):
    """Sees a sweep as it goes."""

    def begin(self, num_jobs: int, num_finished: int) -> None: ...

    def progress(self, name: str, update: int, total: int) -> None: ...

    def end(self, job: Job, outcome: Outcome) -> None: ...


class Execute(Protocol):
    """Carries out jobs that do not need each other: in this process, or on Ray. Stops early when `should_stop` says so."""

    def __call__(self, jobs: Sequence[Job], listener: Listener, should_stop: Callable[[], bool]) -> dict[str, Outcome]: ...


def sweep(
    plan: Plan,
    out: Path,
    execute: Execute,
    listener: Listener,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    resume: Resume = "auto",
    take_over: bool = False,
    run_search: RunSearch | None = None,
) -> list[tuple[Cell, Outcome]]:
    """Runs what can run, and says of every cell what became of it.

    Args:
        resume: "auto" goes on with what is unfinished, "errored" also with what has failed, "fresh" sets the sweep in `out`
            aside and begins again.
        take_over: from a sweep on another host, which is gone.
        run_search: carries out the plan's searches; None where there is none.

    Raises:
        ConfigError: another process works in `out`, or it holds runs with other settings or on other intents; before anything
            is started.
    """
    if run_search is None and any(not search.blocked for search in plan.searches):
        raise ConfigError("tune.scheduler and tune.searcher are Ray Tune's: leave --no-ray out")
    if resume == "fresh":
        set_aside(out, take_over=take_over)
    with only_writer(out, take_over=take_over):
        for name in [*(cell.run for cell in plan.cells), *plan.managers, *(search.prefix for search in plan.searches)]:
            below(out, name)
        clear(plan, out)
        done = _finished(plan, out)
        _check_vectors(plan, out, done)
        for search in plan.searches:
            if not search.blocked:
                check_same(search, out)
        write_study(plan, out)
        ledger = Ledger(plan, out, listener)
        failed = {} if resume == "errored" else dict(ledger.failed)
        open_cells = [cell for cell in plan.cells if not cell.blocked and cell.run not in done and cell.run not in failed]
        first = {job.name: job for job in _first_jobs(plan, open_cells, out)}
        second = [cell for cell in open_cells if _needs(cell)]
        outcomes = {
            name: Outcome("failed", f"{why} (--resume errored tries it again)", again=True) for name, why in failed.items()
        }
        first = {name: job for name, job in first.items() if name not in outcomes}
        ledger.begin(len(first) + len(second), len(done))
        outcomes |= execute(list(first.values()), ledger, should_stop) if first else {}
        jobs = []
        for cell in second:
            needed = outcomes[str(_needs(cell))]
            if needed.dataset is None:
                outcomes[cell.run] = _waiting(cell, needed)
                continue
            config = {**(cell.config or {}), "dataset": needed.dataset, "env": None}  # Why None: the dataset's has the intents
            jobs.append(_job(cell.run, out, config))
        if jobs:
            outcomes |= execute(jobs, ledger, should_stop)
        blocked = {cell.run: Outcome("blocked", cell.blocked) for cell in plan.cells if cell.blocked}
        results = [(cell, (outcomes | done | blocked)[cell.run]) for cell in plan.cells]
        for search in plan.searches:
            results += _of_search(search, out, ledger, should_stop, resume, run_search)
        found = [cell for cell, _ in results if cell not in plan.cells]
        if found:
            write_study(dataclasses.replace(plan, cells=plan.cells + found), out)
        ledger.close([cell for cell, _ in results])
        return results


def _of_search(
    search: Search,
    out: Path,
    listener: Ledger,
    should_stop: Callable[[], bool],
    resume: Resume,
    run_search: RunSearch | None,
) -> list[tuple[Cell, Outcome]]:
    cell = Cell(search.row, search.dataset, search.column, search.variant, 0, search.prefix, blocked=search.blocked)
    if search.blocked:
        return [(cell, Outcome("blocked", search.blocked))]
    if should_stop() or run_search is None:
        return [(cell, Outcome("stopped"))]
    return carry_out(search, out, run_search, listener, retries_failed=resume == "errored", should_stop=should_stop)


def perform(
    job: Job,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool] = lambda: False,
    listener: Callable[[RunConfig, Path], OnEvent] | None = None,
) -> Outcome:
    """Does the job here, from where it was left. What would come again is an outcome: a user's error, or losses or actions
    that are not finite. Other errors raise.

    listener: makes what hears the run's events too, of its configuration and folder.
    """
    from wmrl_ray.checkpoint import CheckpointError
    from wmrl_ray.data.datasets import open_dataset
    from wmrl_ray.data.episode import DataError
    from wmrl_ray.intents import augmented
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.run.events import Event
    from wmrl_ray.search_trial import train_here
    from wmrl_ray.train import NonFiniteLossError

    def on_event(event: Event) -> None:
        if event.kind in ("start", "update"):
            on_progress(event.update, event.total)
        if hears is not None:
            hears(event)

    outcome, hears = Outcome("finished"), None
    try:
        if job.config is not None:
            config, folder = from_dict(RunConfig, job.config), Path(job.folder)
            hears = None if listener is None else listener(config, folder)
            outcome = _of_result(train_here(config, folder, on_event, should_stop))
        if job.vectors is not None and outcome.state == "finished":
            outcome = dataclasses.replace(outcome, dataset=augmented(**job.vectors))
            open_dataset(str(outcome.dataset))  # Why: read once into the cache, before its Workers start side by side
    except (ConfigError, DataError, CheckpointError, NonFiniteLossError, FloatingPointError) as error:
        return Outcome("failed", str(error))
    return outcome


def in_process(jobs: Sequence[Job], listener: Listener, should_stop: Callable[[], bool]) -> dict[str, Outcome]:
    """One job after another in this process, where breakpoints work and an error of ours shows its traceback."""
    outcomes = {job.name: Outcome("stopped") for job in jobs}
    for job in jobs:
        if should_stop():
            break
        outcomes[job.name] = perform(job, functools.partial(listener.progress, job.name), should_stop)
        listener.end(job, outcomes[job.name])
    return outcomes


def on_ray(
    out: Path, *, cpus_per_run: float = 1.0, gpus_per_run: float = 0.0, max_failures: int = 3, trial_timeout_s: float = 600.0
) -> Execute:
    """Jobs as Tune trials on the Ray that runs already, each with one thread, `cpus_per_run` CPUs and `gpus_per_run` GPUs.

    A process that dies or shows no sign of life for `trial_timeout_s` (0: never), or an error of ours, is tried again from its
    checkpoint, `max_failures` times.
    """
    from wmrl_ray.rllib.trials import run_trials

    device = "cuda" if gpus_per_run > 0 else "cpu"

    def execute(jobs: Sequence[Job], listener: Listener, should_stop: Callable[[], bool]) -> dict[str, Outcome]:
        specs = {job.name: _on_device(job, device) for job in jobs}

        def on_end(name: str, trial: TrialOutcome) -> None:
            listener.end(specs[name], _of_trial(trial))

        ended = run_trials(
            _perform_in_trial,
            specs,
            folder=out / ".tune",
            on_progress=lambda name, values: listener.progress(name, values["update"], values["total"]),
            on_end=on_end,
            cpus_per_trial=cpus_per_run,
            gpus_per_trial=gpus_per_run,
            max_failures=max_failures,
            trial_timeout_s=trial_timeout_s,
            should_stop=should_stop,
        )
        return {name: _of_trial(trial) for name, trial in ended.items()}

    return execute


def _finished(plan: Plan, out: Path) -> dict[str, Outcome]:
    """The cells that an earlier sweep finished. Raises ConfigError for a folder that holds a run with other settings."""
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.run.folder import RunDir

    done: dict[str, Outcome] = {}
    runs = {cell.run: cell.config for cell in plan.cells if cell.config and not cell.blocked} | plan.managers
    with_vectors = {cell.run for cell in plan.cells if _needs(cell)}
    for name, settings in runs.items():
        run = RunDir(out / name)
        if not run.exists():
            continue
        config, before = from_dict(RunConfig, settings), run.config()
        if name in with_vectors:  # the name of the dataset with intents is known later, and checked then
            config = dataclasses.replace(config, dataset=before.dataset, env=before.env)
        if difference := run.difference(config):
            raise ConfigError(f"{run.path} holds another run, {difference}; choose another --out, or delete that folder")
        result = run.result()
        if name not in plan.managers and result and result["updates"] >= config.num_updates:
            done[name] = dataclasses.replace(_of_result(result), again=True)
    return done


def _check_vectors(plan: Plan, out: Path, done: Collection[str]) -> None:
    """Raises ConfigError for a Worker that learned from other intents, or random vectors, than this sweep's others would.

    A Manager that is trained further, or again, has other intents. One that no open cell needs may be gone.
    """
    from wmrl_ray.intents import augmented_id
    from wmrl_ray.run.folder import RunDir

    wanted = {_needs(cell) for cell in plan.cells if not cell.blocked and cell.run not in done}
    for cell in plan.cells:
        worker = RunDir(out / cell.run)
        if cell.blocked or not _needs(cell) or not worker.exists():
            continue
        source = cell.random_dim or str((out / str(cell.manager)).resolve())
        if cell.manager and (
            change := _changes(RunDir(out / cell.manager), plan.managers[cell.manager], cell.manager in wanted)
        ):
            why = f"its Manager {cell.manager} {change}"
        elif cell.manager and not RunDir(out / cell.manager).exists():
            continue
        else:
            before, now = worker.config().dataset, augmented_id(**_vectors(cell, source))
            if before == now:
                continue
            why = f"it was trained on {before}, this sweep's Workers there on {now}"
        raise ConfigError(f"{worker.path} has other {'intents' if cell.manager else 'vectors'}: {why}; choose another --out")


def _changes(manager: RunDir, settings: Settings, is_needed: bool) -> str | None:
    """What would make another of this Manager, or None."""
    if not manager.exists():
        return "is not there any more" if is_needed else None
    result, total = manager.result(), settings["num_updates"]
    if result is None:
        return "has not finished"
    return f"would go on from {result['updates']} to {total} updates" if result["updates"] < total else None


def _first_jobs(plan: Plan, cells: Sequence[Cell], out: Path) -> Iterator[Job]:
    """Managers first, since most waits for them; one job for each Manager, and for each dataset with random vectors."""
    needed = {cell.manager: cell for cell in cells if cell.manager}
    for name, cell in needed.items():
        job = _job(str(name), out, plan.managers[str(name)])
        yield dataclasses.replace(job, vectors=_vectors(cell, job.folder))
    for cell in cells:
        if cell.random_dim:
            yield dataclasses.replace(_job(str(_needs(cell)), out, None), vectors=_vectors(cell, cell.random_dim))
    yield from (_job(cell.run, out, cell.config) for cell in cells if not _needs(cell))


def _vectors(cell: Cell, source: str | int) -> dict[str, Any]:
    return {"uri": cell.dataset, "source": source, "env": (cell.config or {})["env"], "seed": cell.seed}


def _needs(cell: Cell) -> str | None:
    """The name of the job that makes the dataset that the cell trains on."""
    return f"{cell.row}/random{cell.random_dim}-s{cell.seed}" if cell.random_dim else cell.manager


def _job(name: str, out: Path, config: Settings | None) -> Job:
    return Job(name, str((out / name).resolve()), config)


def _on_device(job: Job, device: str) -> Job:
    """Without a GPU of its own a run keeps off those it may see; other runs have them."""
    if job.config is None or job.config["device"] != "auto":
        return job
    return dataclasses.replace(job, config={**job.config, "device": device})


def _perform_in_trial(job: Job, report: Report) -> dict[str, Any]:
    from wmrl_ray.rllib.telemetry import Telemetry

    def listener(config: RunConfig, folder: Path) -> OnEvent:
        return Telemetry(config, folder).on_event

    outcome = perform(job, lambda update, total: report({"update": update, "total": total}), report.should_stop, listener)
    return dataclasses.asdict(outcome)


def _of_trial(trial: TrialOutcome) -> Outcome:
    if trial.error is not None:
        return Outcome("failed", trial.error)
    return Outcome("stopped") if trial.result is None else Outcome(**trial.result)


def _of_result(result: dict[str, Any]) -> Outcome:
    """What result.json says."""
    return Outcome(
        "finished" if result["finished"] else "stopped",
        updates=result["updates"],
        seconds=result["seconds"],
        score=result.get("eval/score_mean"),
        episode_return=result.get("eval/return_mean"),
    )


def _waiting(cell: Cell, needed: Outcome) -> Outcome:
    if needed.state == "stopped":
        return Outcome("stopped")
    return Outcome("waiting", f"{_needs(cell)}, which it needs, failed")
