"""The folder of a sweep: one sweep at a time in it, its study.json, and what happens to an older sweep there."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from wmrl_ray.config import ConfigError, check
from wmrl_ray.run.lock import only_writer
from wmrl_ray.study import SCHEMA, Plan


def write_study(plan: Plan, out: Path) -> None:
    """study.json, what `wmrl report` reads; and study-TABLE.json, since one folder may hold several tables.

    Cells of an earlier sweep of the same table stay in it.

    Raises:
        ConfigError: the folder holds this table of another paper or with the other kind of datasets, or a damaged file.
    """
    from wmrl_ray.data.files import write_json

    own = out / f"study-{plan.table}.json"
    cells = _earlier_cells(plan, own) | {cell.key: cell.record for cell in plan.cells}
    about = {"schema": SCHEMA, "paper": plan.paper, "table": plan.table, "stand_ins": plan.stand_ins}
    for path in (own, out / "study.json"):
        write_json(path, {**about, "cells": list(cells.values())})


def _earlier_cells(plan: Plan, file: Path) -> dict[tuple, dict[str, Any]]:
    """What an earlier sweep of the table recorded in `file`, by cell; see `write_study`."""
    if not file.exists():
        return {}
    try:
        before = json.loads(file.read_text())
        schema, paper, was_stand_ins = before["schema"], before["paper"], bool(before["stand_ins"])
        earlier = {(c["row"], c["column"], c["variant"], c["seed"]): c for c in before["cells"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is damaged ({type(error).__name__}: {error}); delete it, and sweep again everything that it held: "
            "finished runs are not repeated"
        ) from error
    holds = f"{file} holds table {plan.table!r}"
    check(schema == SCHEMA, f"{holds} with schema {schema!r}, this version writes {SCHEMA!r}; choose another --out")
    check(paper == plan.paper, f"{holds} of the paper {paper!r}, not of {plan.paper!r}; choose another --out")
    kinds = ("the originals", "stand-ins")
    was, now = kinds[was_stand_ins], kinds[plan.stand_ins]
    check(was == now, f"{holds} with {was}, not with {now}: their scores differ; choose another --out")
    return earlier


def clear(plan: Plan, out: Path) -> None:
    """Deletes what a sweep that was killed has left half-written, and Tune's records of it. For the only writer."""
    from wmrl_ray.data.files import remove_partials

    for folder in [out, *(out / search.folder for search in plan.searches)]:
        remove_partials(folder)
        for path in folder.glob(".tune*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(out: Path, *, take_over: bool = False) -> None:
    """Renames the sweep in `out` to `out.1`, or the next number that is free: nothing is lost.

    Raises:
        ConfigError: another process works there, or the folder holds something else than a sweep.
    """
    if not out.exists() or not any(path for path in out.iterdir() if path.name != ".lock"):
        return
    check(
        any(out.glob("study*.json")),
        f"--resume fresh: {out} holds no sweep (no study.json) but something else; choose another --out",
    )
    with only_writer(out, take_over=take_over):
        number = next(n for n in itertools.count(1) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{number}"))
