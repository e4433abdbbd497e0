"""Runs -> report.html (one file, nothing external) and report.json beside it."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl_ray import __version__
from wmrl_ray.config import ConfigError
from wmrl_ray.report import figures
from wmrl_ray.report.runs import Run, read_runs
from wmrl_ray.report.summary import Group, group_runs, summarize_report

if TYPE_CHECKING:
    import numpy as np


def write_report(paths: Sequence[str | Path], out: str | Path = "report.html") -> tuple[Path, Path]:
    """Writes the report on every run in or below `paths`; returns the paths of the HTML and the JSON file.

    Raises:
        ConfigError: no run there, a damaged run file, or an `out` that is not an .html file in an existing folder.
    """
    out = Path(out)
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"report file {str(out)!r} must end in .html; its numbers go into the .json beside it")
    if not out.parent.is_dir():
        raise ConfigError(f"no such folder for the report: {out.parent}; create it or choose another -o")
    groups = group_runs(read_runs(paths))
    numbers = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wmrl_ray": __version__,
        **summarize_report(groups),
    }
    html = render(numbers, draw(groups, numbers))
    json_path = out.with_suffix(".json")
    _write(json_path, json.dumps(numbers, indent=2, allow_nan=False, default=str))
    _write(out, html)
    return out, json_path


def draw(groups: Sequence[Group], numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The SVG figures of each dataset: {dataset: {"score", "paths", "intents": svg or None, "losses": [(label, svg)]}}; adds
    warnings.
    """
    colors = figures.color_of([group.label for group in groups])
    drawn: dict[str, dict[str, Any]] = {}
    for scale in numbers["scales"]:
        for dataset in scale["datasets"]:
            members = [group for group in groups if group.dataset == dataset["name"]]
            losses = [(group.label, svg) for group in members if (svg := figures.loss_figure(group, colors[group.label]))]
            drawn[dataset["name"]] = {
                "score": figures.score_figure(members, colors, dataset["card"]),
                "paths": _paths_figure(members, colors, numbers["warnings"]),
                "intents": _intents_figure(members, groups),
                "losses": losses,
            }
    return drawn


def render(numbers: dict[str, Any], drawn: dict[str, dict[str, Any]]) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wmrl_ray.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "count": count, "duration": duration, "value": value}
    return environment.get_template("report.html").render(figures=drawn, **numbers)


def number(x: float | None, digits: int = 1) -> str:
    """`12.3`, with an en dash for what is not known and a real minus sign."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def count(x: float | None) -> str:
    """`20,000`."""
    return "–" if x is None else f"{x:,.0f}"


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `4 min 05 s`, `12 s`, `3.4 s`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def value(x: Any) -> str:
    """A configuration or card value on one line."""
    if isinstance(x, float):
        return f"{x:.6g}"
    return json.dumps(x) if isinstance(x, list | dict) else "–" if x is None else str(x)


def _paths_figure(groups: Sequence[Group], colors: dict[str, str], warnings: list[str]) -> str | None:
    runs: list[Run] = [run for group in groups for run in group.runs]
    env_id = next((run.env_id for run in runs if run.env_id), None)
    if env_id is None or not any((run.path / "trajectories.npz").exists() for run in runs):
        return None
    from wmrl_ray.envs import maze_layout  # lazily: only reports with trajectories need the mazes

    layout = maze_layout(env_id)
    if layout is None:
        return None
    panels = [(group.label, paths) for group in groups if (paths := _first_trajectories(group, warnings))]
    return figures.trajectory_figure(panels, colors, layout, groups[0].dataset) if panels else None


def _intents_figure(members: Sequence[Group], groups: Sequence[Group]) -> str | None:
    """Where the Managers of these Workers pointed, in the first episode of each (Fig. 2 of the IQL-TD-MPC paper).

    Before each Worker, if it is among `groups`, the same algorithm in the same maze without intents. None without a Manager.
    """
    from wmrl_ray.envs import maze_layout

    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    layout = None
    for group in members:
        with_intents = _first_episode(group)
        if with_intents is None or with_intents[2] is None:
            continue
        run, path, intended = with_intents
        layout = maze_layout(str(run.env_id))
        if layout is None:
            continue
        for other in groups:
            without = _first_episode(other)
            if without is not None and without[2] is None and _same_but_for_intents(without[0], run):
                panels.append((f"{other.label}, without intents", without[1], None))
                break
        panels.append((f"{group.label}, with intents", path, intended))
    return figures.intent_figure(panels, layout, members[0].dataset) if panels and layout is not None else None


def _first_episode(group: Group) -> tuple[Run, np.ndarray, np.ndarray | None] | None:
    """(run, observations, intended states or None) of the first seed that saved some; a damaged file was warned of."""
    for run in group.runs:
        try:
            if paths := run.trajectories():
                intended = run.intended()
                return run, paths[0], intended[0] if intended else None
        except ConfigError:
            continue
    return None


def _same_but_for_intents(without: Run, run: Run) -> bool:
    return without.algorithm == run.algorithm and str(run.env_id).endswith(f":{without.env_id}")


def _first_trajectories(group: Group, warnings: list[str]) -> list[np.ndarray]:
    """Of the first seed that saved some; a damaged file becomes a warning."""
    for run in group.runs:
        try:
            if paths := run.trajectories():
                return paths
        except ConfigError as error:
            warnings.append(f"{run.name}: {error}")
    return []


def _write(path: Path, text: str) -> None:
    """Complete or absent."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
