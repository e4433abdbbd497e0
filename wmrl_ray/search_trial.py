"""One trial of a search: a point with all of its seeds, trained from one evaluation to the next, seed after seed.

    run_trial(search, out, point, report)   # report({"update": 1000, "eval/return_mean": mean over seeds, "values": [...]})

Everything is in the runs' folders: a trial that is started again reports what they hold and goes on from there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmrl_ray.config import check, from_dict
from wmrl_ray.core.memory import forget_runs
from wmrl_ray.data.files import write_json
from wmrl_ray.fork import fork
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event, OnEvent
from wmrl_ray.run.folder import RunDir
from wmrl_ray.run.lock import only_writer
from wmrl_ray.search import Search
from wmrl_ray.space import Point

Values = dict[str, Any]
Report = Callable[[Values], None]
MakeListener = Callable[[RunConfig, Path], OnEvent]  # of a run's configuration and folder


class Member:
    """A trial and where it stands: its name, its settings now, and which generation of its runs they belong to.

    Trials keep their settings; a member of a population takes others' state and settings over, each time in new folders.
    """

    def __init__(self, search: Search, out: Path, name: str, point: Point) -> None:
        self.search, self.out, self.name = search, Path(out), name
        self.file = self.out / search.folder / f"{name}.json"
        record = json.loads(self.file.read_text()) if self.file.exists() else {"generation": 0, "point": point}
        self.generation, self.point = int(record["generation"]), dict(record["point"])

    @property
    def runs(self) -> dict[int, RunDir]:
        """By seed."""
        return {seed: RunDir(self.out / name) for seed, name in self.run_names.items()}

    @property
    def run_names(self) -> dict[int, str]:
        generation = f"{self.name}-g{self.generation}" if self.generation else self.name
        return {seed: self.search.run(generation, seed) for seed in self.search.configs}

    @property
    def reached(self) -> int:
        """The last update at which every seed was judged; 0 before."""
        runs, metric = self.runs.values(), self.search.tune.metric
        judged = [rung for rung in self.search.rungs if all(_value(run, metric, rung) is not None for run in runs)]
        return judged[-1] if judged else 0

    def record(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"generation": self.generation, "point": self.point, "runs": list(self.run_names.values())})

    def train(self, rung: int, should_stop: Callable[[], bool], listener: MakeListener | None = None) -> list[float] | None:
        """The metric of every seed at update `rung`, trained up to there where it is not yet; None when it was stopped."""
        values = []
        for seed, run in self.runs.items():
            config = from_dict(RunConfig, self.search.config(self.point, seed))
            if (value := _value(run, self.search.tune.metric, rung)) is None:
                if should_stop():  # Why here: a loop asks after its first call only
                    return None
                train_until(config, run.path, rung, should_stop, listener)
                value = _value(run, self.search.tune.metric, rung)
            if value is None:
                return None
            values.append(value)
        return values

    def keep(self, rung: int) -> Path:
        """A copy of the seeds' checkpoints at `rung`, which others may continue from while the runs go on and prune theirs.

        Older ones are deleted: a member that runs on reaches the next exploit, and waits there for all who continue from it.
        """
        folder = self._kept(rung)
        for seed, run in self.runs.items():
            target = folder / f"s{seed}"
            if not target.exists():
                source = run.checkpoint_path(rung)
                check(source.exists(), f"{source} is not there, and others cannot continue from it")
                shutil.copytree(source, target, copy_function=_link)
        rungs = self.search.rungs
        oldest = rungs[max(0, rungs.index(rung) - self.search.tune.perturbation_interval)]
        for old in folder.parent.glob(f"{self.name}-g*-*"):
            if int(old.name.rpartition("-")[2]) < oldest:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def adopt(self, donor: Values, point: Point) -> None:
        """Goes on from the donor's state at its rung with the settings `point`, as the next generation."""
        other = Member(self.search, self.out, donor["name"], {})
        other.generation = donor["generation"]
        self.generation, self.point = self.generation + 1, point
        for seed, path in self.runs.items():
            if not path.exists():  # it may have died between two seeds
                config = from_dict(RunConfig, self.search.config(point, seed))
                source = self.out / donor["kept"] / f"s{seed}"
                fork(source, other.runs[seed].path, config, path.path, point)
        self.record()

    def _kept(self, rung: int) -> Path:
        """Why with the generation: after an adoption a member stands at a rung for the second time, in another state."""
        return self.out / self.search.folder / "kept" / f"{self.name}-g{self.generation}-{rung:08d}"


def run_trial(
    search: Search,
    out: Path,
    name: str,
    point: Point,
    report: Report,
    *,
    adopted: Values | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    listener: MakeListener | None = None,
) -> Values:
    """Trains the trial from evaluation to evaluation and reports each; returns what it came to.

    Args:
        name: of the trial; `space.point_name` of the point that it began with.
        adopted: what another member reported (`kept`, ...), to go on from with the settings `point`.
        listener: makes what hears each run's events too.

    Raises:
        ConfigError, DataError, NonFiniteLossError, ...: as `train.train`.
    """
    member = Member(search, out, name, point)
    if adopted is not None:
        member.adopt(adopted, point)
    member.record()
    reported: Values = {}
    rungs, is_population = search.rungs, search.tune.scheduler == "pbt"
    if is_population:  # Why: an exploit at a rung that was passed before would take members back
        rungs = [rung for rung in rungs if rung >= member.reached]
    for rung in rungs:
        values = member.train(rung, should_stop, listener)
        if values is None:
            return {"state": "stopped", **reported}
        reported = {
            "update": rung,
            "total": search.rungs[-1],
            search.tune.metric: sum(values) / len(values),
            "values": values,
            "name": name,
            "generation": member.generation,
            "point": member.point,
            "runs": list(member.run_names.values()),
        }
        if is_population and rung != search.rungs[-1]:
            reported["kept"] = str(member.keep(rung).relative_to(member.out))
        report(reported)
    return {"state": "finished", **reported}


def train_until(
    config: RunConfig,
    path: Path,
    rung: int,
    should_stop: Callable[[], bool] = lambda: False,
    listener: MakeListener | None = None,
) -> Values:
    """Trains the run up to and with the evaluation at `rung`, from where it was left; its folder holds a checkpoint then."""
    reached, hears = False, None if listener is None else listener(config, path)

    def on_event(event: Event) -> None:
        nonlocal reached
        reached = reached or (event.kind == "eval" and event.update >= rung)
        if hears is not None:
            hears(event)

    return train_here(config, path, on_event, lambda: reached or should_stop())


def train_here(
    config: RunConfig, path: Path, on_event: Callable[[Event], None], should_stop: Callable[[], bool] = lambda: False
) -> Values:
    """Trains the run in this process from where it was left, from a dataset or its own steps, with the trackers it names.

    One run at a time: it clears what earlier ones in this process have compiled.
    """
    from wmrl_ray.online import train_online
    from wmrl_ray.trackers import Trackers
    from wmrl_ray.train import train

    def for_both(event: Event) -> None:
        on_event(event)
        trackers.on_event(event)

    forget_runs()
    loop = train_online if config.learns_online else train
    # Why taken over: whoever holds the sweep's folder sees to it that one process has the run. It may have ended this moment
    alone = only_writer(path, take_over=True, patience_s=30)
    with alone, Trackers.open(config, path) as trackers:
        return loop(config, path, resume=True, on_event=for_both, should_stop=should_stop)


def _value(run: RunDir, metric: str, rung: int) -> float | None:
    """The metric of the evaluation at `rung`, None before it. Raises ConfigError where evaluations have no such metric."""
    for line in run.read_metrics():
        if line["update"] == rung and "eval/return_mean" in line:
            known = ", ".join(name for name in line if name.startswith("eval/"))
            check(metric in line, f"tune.metric = {metric!r} is not in the evaluations of {run.path.name}; they have {known}")
            check(math.isfinite(line[metric]), f"{run.path.name}: {metric} = {line[metric]} at update {rung}")
            return float(line[metric])
    return None


def _link(source: str, target: str) -> None:
    """Without a second copy of the bytes where the file system can: checkpoints are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
