"""The searches of a sweep: what each has found, on disk after every report, and what one that is started again begins with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wmrl_ray.config import ConfigError, check, from_dict
from wmrl_ray.search import Search
from wmrl_ray.space import point_name
from wmrl_ray.study import Cell

if TYPE_CHECKING:
    from wmrl_ray.results import Ledger
    from wmrl_ray.sweep import Outcome

SCHEMA = "wmrl.search/v1"
FILE = "search.json"

Trial = dict[str, Any]  # of search.json: name, point, state, updates, values (update -> one for each seed), runs, why


class RunSearch(Protocol):
    """Carries a search out; `rllib.search.run_search` is the one."""

    def __call__(
        self,
        search: Search,
        out: Path,
        *,
        known: Any,
        skipped: Any,
        pruned: dict[str, int],
        on_report: Callable[[str, dict[str, Any]], None],
        on_end: Callable[[str, str, str | None], None],
        should_stop: Callable[[], bool],
    ) -> None: ...


class Record:
    """search.json of one search, written again at every change."""

    def __init__(self, search: Search, out: Path) -> None:
        self.search, self.path = search, out / search.folder / FILE
        self.trials: dict[str, Trial] = {}
        if self.path.exists():
            self.trials = {trial["name"]: trial for trial in self._read()["trials"]}

    def _read(self) -> dict[str, Any]:
        try:
            before = json.loads(self.path.read_text())
            space, schema = before["space"], before["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path} is damaged ({type(error).__name__}: {error}); start afresh: --resume fresh"
            ) from error
        other = f"{self.path} holds another search"
        check(schema == SCHEMA, f"{other}, of schema {schema!r}; this version writes {SCHEMA!r}; choose another --out")
        check(space == self._space, f"{other}, of {space}; choose another --out, or set it aside with --resume fresh")
        return before

    @property
    def _space(self) -> dict[str, Any]:
        space = {setting: {one.kind: one.values} for setting, one in self.search.space.items()}
        return {**space, "metric": self.search.tune.metric, "mode": self.search.tune.mode, "seeds": list(self.search.configs)}

    def report(self, name: str, values: dict[str, Any]) -> None:
        trial = self.trials.setdefault(name, {"name": name, "values": {}})
        generation, update = values["generation"], values["update"]
        # Why not taken for progress: a trial that is started again reports all it has, and may be stopped in the midst of it
        is_known = trial.get("generation") == generation and update <= trial["updates"]
        if not is_known or trial["state"] not in ("finished", "pruned"):
            trial |= {"state": "running", "why": None}
        if not is_known:
            trial |= {"point": values["point"], "updates": update, "runs": values["runs"], "generation": generation}
        trial["values"][str(values["update"])] = values["values"]
        self.write()

    def end(self, name: str, state: str, why: str | None) -> Trial:
        trial = self.trials.setdefault(name, {"name": name, "values": {}, "point": None, "updates": 0, "runs": []})
        if trial["updates"] >= self.search.rungs[-1] and (trial.get("state") == "finished" or state in ("pruned", "stopped")):
            state, why = "finished", None  # Why: a scheduler may judge at the last update too, where nothing is left to stop
        trial |= {"state": state, "why": why}
        self.write()
        return trial

    @property
    def best(self) -> Trial | None:
        """The trial with the best mean over all seeds after all updates; None while none has come that far."""
        last = str(self.search.rungs[-1])
        done = {t["name"]: sum(v) / len(v) for t in self.trials.values() if (v := t["values"].get(last))}
        if not done:
            return None
        name = (max if self.search.tune.mode == "max" else min)(done, key=lambda name: done[name])
        return {
            "name": name,
            "point": self.trials[name]["point"],
            "mean": done[name],
            "values": self.trials[name]["values"][last],
        }

    def write(self) -> None:
        from wmrl_ray.data.files import despite_full_disk, write_json

        about = {name: getattr(self.search, name) for name in ("row", "dataset", "column", "variant", "rungs")}
        content = {"schema": SCHEMA, **about, "space": self._space, "scheduler": self.search.tune.scheduler}
        content |= {"searcher": self.search.tune.searcher, "trials": list(self.trials.values()), "best": self.best}
        with despite_full_disk(f"{self.path} is written at the next report"):
            write_json(self.path, content)


def check_same(search: Search, out: Path) -> None:
    """Raises ConfigError for a folder that holds a run of this search with other settings than it would have now."""
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.search_trial import Member

    recorded = {name: trial["point"] for name, trial in Record(search, out).trials.items() if trial["point"] is not None}
    for name, point in ({point_name(point): point for point in search.trials} | recorded).items():
        member = Member(search, out, name, point)  # Why: one of a population has other settings than it began with
        for seed, run in member.runs.items():
            if not run.exists():
                continue
            if difference := run.difference(from_dict(RunConfig, search.config(member.point, seed))):
                raise ConfigError(
                    f"{run.path} holds another run, {difference}; choose another --out, or set it aside with --resume fresh"
                )


def carry_out(
    search: Search,
    out: Path,
    run_search: RunSearch,
    listener: Ledger,
    *,
    retries_failed: bool,
    should_stop: Callable[[], bool],
) -> list[tuple[Cell, Outcome]]:
    """Runs one search, or what is left of it; the outcome of each run of each trial."""
    from wmrl_ray.sweep import Job, Outcome

    record = Record(search, out)
    record.write()
    earlier = list(record.trials.values())
    failed = [trial["name"] for trial in earlier if trial["state"] == "failed" and not retries_failed]
    known = [trial["point"] for trial in earlier if trial["point"] is not None and trial["name"] not in failed]
    if search.tune.scheduler == "pbt":
        known = []  # Why: members are named by the points that they began with; their files say what they are now

    def on_report(name: str, values: dict[str, Any]) -> None:
        record.report(name, values)
        listener.progress(f"{search.prefix}-{name}", values["update"], values["total"])

    def on_end(name: str, state: str, why: str | None) -> None:
        trial = record.end(name, state, why)
        for cell in _cells(search, trial):
            listener.add(cell)
        for run in trial["runs"] or [f"{search.prefix}-{name}"]:
            listener.end(Job(run, str(out / run)), _outcome(trial, out / run, search))

    run_search(
        search,
        out,
        known=known,
        skipped=failed,
        pruned={trial["name"]: trial["updates"] for trial in earlier if trial["state"] == "pruned"},
        on_report=on_report,
        on_end=on_end,
        should_stop=should_stop,
    )
    results = []
    names = [*record.trials, *(name for point in search.trials if (name := point_name(point)) not in record.trials)]
    points = {point_name(point): point for point in search.trials}
    for name in names:
        unknown = {"name": name, "point": points.get(name), "state": "stopped", "runs": [], "why": None, "updates": 0}
        trial = record.trials.get(name, unknown)
        results += [(cell, _outcome(trial, out / cell.run, search)) for cell in _cells(search, trial)]
    nothing = Cell(search.row, search.dataset, search.column, search.variant, 0, search.prefix)
    return results or [(nothing, Outcome("stopped"))]


def _cells(search: Search, trial: Trial) -> list[Cell]:
    """One for each seed of the trial."""
    name, point = trial["name"], trial["point"] or {}
    runs = trial["runs"] or [search.run(name, seed) for seed in search.configs]
    row, dataset, column, variant = search.row, search.dataset, search.column, search.variant_of(name)
    both = zip(search.configs, runs, strict=True)
    return [Cell(row, dataset, column, variant, seed, run, point=point) for seed, run in both]


def _outcome(trial: Trial, path: Path, search: Search) -> Outcome:
    from wmrl_ray.run.folder import RunDir
    from wmrl_ray.sweep import Outcome

    run = RunDir(path)
    last = run.last_evaluation() if run.exists() else {}
    lines = run.read_metrics() if run.exists() else []
    state = trial["state"] if trial["state"] != "running" else "stopped"
    return Outcome(
        state,
        trial["why"],
        updates=trial["updates"],
        seconds=lines[-1]["time_s"] if lines else 0.0,
        score=last.get("eval/score_mean"),
        episode_return=last.get("eval/return_mean"),
    )
