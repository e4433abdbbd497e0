"""study.json and the runs of its cells -> the numbers of a paper's table: ours, the paper's, and whether the arms differ."""

from __future__ import annotations

import importlib.resources
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import ConfigError, check, did_you_mean, read_json
from wmrl_ray.report.runs import Run, read_run
from wmrl_ray.report.stats import welch
from wmrl_ray.report.summary import experiment_of, scale_of
from wmrl_ray.study import SCHEMA

WITHOUT_TABLE = "its runs are in the report without a table"
SCORE, PEARSON = "eval/score_mean", "reward/pearson"
ALPHA = 0.05  # the papers' level of significance
MISSING = {
    "eval/success_mean": "its environment does not say what a success is",
    PEARSON: "no rewards.json of its last update: wmrl analyse reward RUN -o RUN/rewards.png",
}
CELL_KEYS = ("row", "column", "variant", "seed", "run")

Cell = dict[str, Any]  # of study.json: one run that is planned


@dataclass(frozen=True)
class Study:
    """A sweep that fills one table of a paper, at one point of its grid: "" is what the paper does, "-skip4" another."""

    path: Path  # study.json, or study-TABLE.json
    paper: dict[str, Any]
    key: str  # of the table
    stand_ins: bool
    cells: list[Cell]
    point: str = ""

    @property
    def table(self) -> dict[str, Any]:
        return self.paper["tables"][self.key]

    @property
    def metric(self) -> str:
        """What the table holds: scores, success rates, or correlations of rewards."""
        return self.table.get("metric", SCORE)


class NotInPaperError(ConfigError):
    """A study of something that no paper known here prints: there is nothing to put ours beside."""


@dataclass
class Notes:
    """What stands below a table; the same text has one number wherever it applies."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def load_paper(name: str) -> dict[str, Any]:
    """The tables of a paper, every value as printed there. Raises NotInPaperError for a paper that is not there."""
    files = {
        file.name.removesuffix(".json"): file
        for file in importlib.resources.files("wmrl_ray.report").joinpath("papers").iterdir()
        if file.name.endswith(".json")
    }
    if name not in files:
        raise NotInPaperError(f"no tables of a paper {name!r}{did_you_mean(name, files)}; known: {', '.join(sorted(files))}")
    return json.loads(files[name].read_text(encoding="utf-8"))


def find_studies(paths: Sequence[str | Path]) -> list[Path]:
    """The study of every sweep in the folders `paths` and below them, each once.

    A sweep writes study.json, and the same into study-TABLE.json: a folder that several tables share has one of each.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, paths):
        for file in sorted(given.rglob("study.json")):
            for table in sorted(file.parent.glob("study-*.json")) or [file]:
                found.setdefault(table.resolve(), table)
    return list(found.values())


def read_study(path: Path) -> Study:
    """Reads a study.json.

    Raises:
        NotInPaperError: there is no such paper, table, row, column or variant.
        ConfigError: it is damaged, or of another schema.
    """
    values = read_json(path, "start its sweep again, which rewrites it")
    schema = values.get("schema")
    check(schema == SCHEMA, f"{path}: schema {schema!r}; this version reads {SCHEMA!r}, which `wmrl sweep` writes")
    cells, stand_ins = values.get("cells"), values.get("stand_ins")
    if not isinstance(cells, list) or not isinstance(stand_ins, bool):
        raise ConfigError(f"{path}: needs `cells`, a list, and `stand_ins`, true or false; start its sweep again")
    _check_cells(path, cells)
    try:
        paper = load_paper(str(values.get("paper")))
    except NotInPaperError as error:
        raise NotInPaperError(f"{path}: {error}; {WITHOUT_TABLE}") from error
    key = str(values.get("table"))
    if (figure := paper.get("figures", {}).get(key)) is not None:
        only = f"{figure['title']} is a figure, whose values the paper's text does not give"
        raise NotInPaperError(f"{path}: {only}; its runs are in the report with their curves")
    if key not in paper["tables"]:
        printed = ", ".join(paper["tables"])
        raise NotInPaperError(f"{path}: table {key!r} is none of the paper's ({printed}); {WITHOUT_TABLE}")
    study = Study(path, paper, key, stand_ins, cells)
    for cell in cells:
        for name, known in (("row", study.table["rows"]), ("column", study.table["columns"])):
            _require_printed(path, name, cell[name], known)
        if _arm_and_point(cell["variant"], study.table["arms"]) is None:
            _require_printed(path, "variant", cell["variant"], study.table["arms"])
    return study


def _check_cells(path: Path, cells: Sequence[Any]) -> None:
    """Raises ConfigError for what no sweep writes: a cell that lacks something, or is there twice."""
    seen: set[tuple] = set()
    for cell in cells:
        missing = [k for k in CELL_KEYS if k not in cell] if isinstance(cell, dict) else list(CELL_KEYS)
        check(not missing, f"{path}: a cell has no {', '.join(missing)}: {cell}")
        for key in CELL_KEYS:
            expected = int if key == "seed" else str
            check(isinstance(cell[key], expected), f"{path}: a cell's {key} is {cell[key]!r}; start its sweep again")
        where = (cell["row"], cell["column"], cell["variant"], cell["seed"])
        check(where not in seen, f"{path}: {' '.join(map(str, where))} is there twice; each seed counts once")
        seen.add(where)


def _require_printed(path: Path, name: str, value: str, known: Mapping[str, Any] | Sequence[str]) -> None:
    if value not in known:
        has = f"the paper's table has {', '.join(known)}"
        raise NotInPaperError(f"{path}: {name} {value!r}{did_you_mean(value, known)}; {has}; {WITHOUT_TABLE}")


def _arm_and_point(variant: Any, arms: Sequence[str]) -> tuple[str, str] | None:
    """`intents-skip4` -> ("intents", "-skip4"): a sweep over the Manager's settings names its points so. None: no such arm."""
    for arm in arms:
        if str(variant) == arm or str(variant).startswith(f"{arm}-"):
            return arm, str(variant).removeprefix(arm)
    return None


def split_points(study: Study) -> list[Study]:
    """One study for each point of its grid; what has no point of its own (the baseline) is in all of them."""
    points: dict[str, list[Cell]] = defaultdict(list)
    shared: list[Cell] = []
    for cell in study.cells:
        arm, point = _arm_and_point(cell["variant"], study.table["arms"]) or (cell["variant"], "")
        last = arm == study.table["arms"][-1]
        (points[point] if last else shared).append({**cell, "variant": arm})
    return [replace(study, cells=shared + cells, point=point) for point, cells in sorted((points or {"": []}).items())]


def summarize_studies(paths: Sequence[str | Path], runs: Sequence[Run], warnings: list[str]) -> list[dict[str, Any]]:
    """The numbers of every study in or below `paths` that its paper has a table for; the others are added to `warnings`.

    runs: those read already.
    """
    summaries = []
    for path in find_studies(paths):
        try:
            study = read_study(path)
        except NotInPaperError as error:
            warnings.append(str(error))
            continue
        summaries += [summarize_study(point, runs) for point in split_points(study)]
    return summaries


def summarize_study(study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    """One table as a plain dict: what report.json holds, and what the page and the terminal show.

    {"rows": [{"name", "datasets", "cells": [one for each column]}], "notes": [text], ...}. A cell's `notes` are positions in
    the table's, from 1. A cell whose `arms[variant]["mean"]` is None was not run.
    """
    table, notes = study.table, Notes()
    planned: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in study.cells:
        planned[cell["row"], cell["column"], cell["variant"]].append(cell)
    known = {run.path.resolve(): run for run in runs}
    mixed = _mixed(study, known)
    rows = []
    for name, printed in table["rows"].items():
        cells = []
        for column in table["columns"]:
            arms = {arm: planned[name, column, arm] for arm in table["arms"]}
            value = table.get("points", {}).get(study.point, {}).get(name, printed)[column]
            cells.append(_cell(study, column, value, arms, known, mixed, notes))
        if table["form"] == "score":
            _mark_best(cells)
        # Why none that is blocked: it may name the original that no stand-in was made of
        own = [cell for cell in study.cells if cell["row"] == name and not cell.get("blocked")]
        datasets = sorted({str(cell["dataset"]) for cell in own if cell.get("dataset")})
        rows.append({"name": name, "datasets": datasets, "cells": cells})
    shown = [arm for row in rows for cell in row["cells"] for arm in cell["arms"].values() if arm["seeds"]]
    updates = [update for arm in shown for update in arm["updates"]]
    of_defaults = study.point and study.point not in table.get("points", {})
    return {
        "path": str(study.path),
        "paper": study.paper["paper"],
        "paper_title": study.paper["title"],
        "source": study.paper["source"],
        "table": study.key,
        "point": study.point.removeprefix("-") or None,
        "stand_ins": study.stand_ins,
        "caption": table["caption"] + " The paper's values are of its own settings, not of this point." * bool(of_defaults),
        **{key: table[key] for key in ("title", "form", "arms", "columns", "num_updates", "num_seeds")},
        "updates": [min(updates), max(updates)] if updates else None,
        "num_runs": sum(len(arm["seeds"]) for arm in shown),
        "num_planned": len(study.cells),
        "rows": rows,
        "notes": notes.texts,
    }


def _cell(
    study: Study,
    column: str,
    printed: Mapping[str, float],
    planned: Mapping[str, list[Cell]],
    known: Mapping[Path, Run],
    mixed: Collection[tuple],
    notes: Notes,
) -> dict[str, Any]:
    """Both arms (or the only one) of one cell, and their comparison."""
    reasons: list[str] = []
    kept: dict[str, list[Run]] = {}
    for arm, cells in planned.items():
        reasons += [] if cells else ["not part of this study"]
        kept[arm] = []
        for cell in cells:
            run = _find_run(study, cell["run"], known)
            why = _why_left_out(study, cell, run)
            if run is None or why is not None:
                reasons.append(str(why))
            else:
                kept[arm].append(run)
    runs = [run for members in kept.values() for run in members]
    scales = {(scale_of(run), run.dataset.get("ref_min_score"), run.dataset.get("ref_max_score")) for run in runs}
    if len(scales) > 1 and study.metric == SCORE:  # Why the references too: each dataset of its own defines a scale of its own
        names = sorted({str(run.dataset.get("name")) for run in runs})
        reasons.append(f"scores on different scales are neither averaged nor compared: {', '.join(names)}")
        kept = {arm: [] for arm in kept}
    for arm, members in kept.items():
        seeds = {run.seed for run in members}
        cells = [cell for cell in planned[arm] if cell["seed"] in seeds]
        managers = [_find_run(study, cell["manager"], known) for cell in cells if cell.get("manager")]
        reasons += _uneven(members, [manager for manager in managers if manager is not None])
        if any((cell["row"], arm, cell["seed"]) in mixed for cell in cells):
            reasons.append("Workers of the same seed were trained on different datasets: with other intents, or other data")
    arms = {arm: _arm(members, len(planned[arm]), study.metric) for arm, members in kept.items()}
    cell = {"column": column, "paper": dict(printed), "arms": arms, "delta": None, "p": None, "why_no_test": None}
    cell |= {"verdict": None, "bold": False, "delta_to_paper": None, "digits": 1 if study.metric == SCORE else 2}
    shown = all(arm["seeds"] for arm in arms.values())
    if len(arms) == 2 and shown:
        cell |= _compare(*arms.values())
    elif len(arms) == 1 and shown and study.metric == SCORE and {scale for scale, *_ in scales} == {"published"}:
        cell["delta_to_paper"] = next(iter(arms.values()))["mean"] - printed["mean"]
    return cell | {"notes": sorted({notes.number(reason) for reason in reasons})}


def _mixed(study: Study, known: Mapping[Path, Run]) -> set[tuple]:
    """(row, variant, seed) of which not all columns were trained on the same dataset."""
    contents: dict[tuple, set[str]] = defaultdict(set)
    for cell in study.cells:
        if (run := _find_run(study, cell["run"], known)) is not None and run.dataset.get("sha256"):
            contents[cell["row"], cell["variant"], cell["seed"]].add(run.dataset["sha256"])
    return {where for where, found in contents.items() if len(found) > 1}


def _find_run(study: Study, name: str, known: Mapping[Path, Run]) -> Run | None:
    """The run in a folder: one of those read already, or another of the study's; None before it has started."""
    path = study.path.parent / name
    if (run := known.get(path.resolve())) is not None:
        return run
    return read_run(path) if (path / "config.json").exists() else None


def _why_left_out(study: Study, cell: Cell, run: Run | None) -> str | None:
    """Why a planned run has no part in its cell, or None: it has."""
    if run is None:
        return str(cell.get("blocked") or "not run yet")
    if (run.algorithm, run.seed) != (cell["column"], cell["seed"]):
        return f"left out: {cell['run']} is {run.algorithm} with seed {run.seed}, not what study.json says"
    scale = scale_of(run)
    if scale == "returns" and study.metric == SCORE:
        return f"no score: dataset {run.dataset.get('name')} has no reference scores"
    if (scale == "stand_in") != study.stand_ins:
        other = "stand-ins" if study.stand_ins else "no stand-ins"
        is_one = "is a stand-in" if scale == "stand_in" else "is not a stand-in"
        return f"left out: dataset {run.dataset.get('name')} {is_one}, and this study is on {other}"
    if not run.evaluations:
        return "no evaluation yet"
    return None if _measured(run, study.metric) is not None else MISSING.get(study.metric, "no evaluation yet")


def _uneven(runs: Sequence[Run], managers: Sequence[Run]) -> list[str]:
    """What tells the seeds of one arm apart besides the seed."""
    reasons = []
    if len({(experiment_of(manager), manager.num_updates) for manager in managers}) > 1:
        reasons.append("the Managers of its seeds were trained with different settings, or for longer")
    if len({run.dataset.get("obs_dim") for run in runs}) > 1:
        reasons.append("its seeds have vectors of different sizes behind their observations")
    if len({experiment_of(run) for run in runs}) > 1:
        reasons.append("its seeds were run with different settings")
    if len({run.evaluations[-1]["update"] for run in runs}) > 1:
        reasons.append("its seeds were evaluated after different numbers of updates")
    return reasons


def _measured(run: Run, metric: str) -> float | None:
    """Of the last evaluation; a correlation of rewards is in rewards.json, which `wmrl analyse reward` writes.

    None where it is missing, or of a checkpoint before the last evaluation (the run has gone on since), or has other episodes
    among its own.
    """
    if metric != PEARSON:
        return run.final(metric)
    file = run.path / "rewards.json"
    try:
        found = json.loads(file.read_text()) if file.exists() else {"pearson": None, "update": 0}
        is_other = found["update"] < run.evaluations[-1]["update"] or found.get("random_episodes", 0) > 0
        value = None if is_other else found["pearson"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({type(error).__name__}: {error}); write it again: wmrl analyse reward"
        ) from error
    return None if value is None else float(value)


def _arm(runs: Sequence[Run], num_planned: int, metric: str) -> dict[str, Any]:
    """One arm: the last evaluation of each seed (never the best one); std is the sample deviation, None for one seed."""
    runs = sorted(runs, key=lambda run: run.seed)
    scores = [float(score) for run in runs if (score := _measured(run, metric)) is not None]
    return {
        "num_planned": num_planned,
        "seeds": [run.seed for run in runs],
        "scores": scores,
        "mean": float(np.mean(scores)) if scores else None,
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "updates": [int(run.evaluations[-1]["update"]) for run in runs],
        "unfinished": [run.seed for run in runs if not run.is_complete],
    }


def _compare(baseline: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of two arms. verdict: "better", "worse", "same" (not significant), or None without a test."""
    delta = ours["mean"] - baseline["mean"]
    if baseline["unfinished"] or ours["unfinished"]:  # Why: testing until it is significant finds what is not there
        return {"delta": delta, "why_no_test": "unfinished"}
    if any(len(arm["seeds"]) < arm["num_planned"] for arm in (baseline, ours)):
        return {"delta": delta, "why_no_test": "incomplete"}
    test = welch(baseline["scores"], ours["scores"])
    if test.p is None:
        return {"delta": delta, "why_no_test": test.why}
    significant = "better" if delta > 0 else "worse"
    return {"delta": delta, "p": test.p, "verdict": significant if test.p < ALPHA else "same"}


def _mark_best(cells: Sequence[dict[str, Any]]) -> None:
    """Sets `bold` where ours is within one standard deviation (the best's) of the best of the row, as Table I does."""
    ours = [(cell, next(iter(cell["arms"].values()))) for cell in cells]
    ours = [(cell, arm) for cell, arm in ours if arm["mean"] is not None]
    if len(ours) > 1:  # the best of one is no news
        best = max((arm for _, arm in ours), key=lambda arm: arm["mean"])
        for cell, arm in ours:
            cell["bold"] = arm["mean"] >= best["mean"] - (best["std"] or 0.0)
