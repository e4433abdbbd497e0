"""Runs -> report.html (one file, nothing external) and report.json beside it."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl_ray import __version__
from wmrl_ray.config import ConfigError
from wmrl_ray.data.files import write_json, write_text
from wmrl_ray.report import figures, tables
from wmrl_ray.report.episodes import intent_panels
from wmrl_ray.report.runs import Run, read_runs
from wmrl_ray.report.study import summarize_studies
from wmrl_ray.report.summary import Group, group_runs, summarize_report
from wmrl_ray.report.words import count, duration, number, value

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Report:
    """What was read. numbers: what report.json holds; drawn: the figures of each dataset, see `draw`."""

    groups: list[Group]
    numbers: dict[str, Any]
    drawn: dict[str, dict[str, Any]]

    def embed_film(self, dataset: str, video: Path) -> None:
        """Puts an MP4 file's bytes onto the page, where the figures of `dataset` are: the page still opens alone."""
        self.drawn[dataset]["film"] = base64.b64encode(video.read_bytes()).decode()

    def write(self, out: Path) -> Path:
        """Writes the page to `out` and its numbers beside it; returns the path of the numbers."""
        check_report_path(out)
        html = render(self.numbers, self.drawn)
        json_path = out.with_suffix(".json")
        write_json(json_path, self.numbers, indent=2, default=str)
        write_text(out, html)
        return json_path


def read_report(paths: Sequence[str | Path]) -> Report:
    """The report on every run in or below `paths`, with the table of every study.json there; nothing is written.

    Raises:
        ConfigError: no run there, or a damaged run or study file.
    """
    runs = read_runs(paths)
    groups = group_runs(runs)
    numbers = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wmrl_ray": __version__,
        **summarize_report(groups),
    }
    numbers["studies"] = summarize_studies(paths, runs, numbers["warnings"])
    return Report(groups, numbers, draw(groups, numbers))


def write_report(paths: Sequence[str | Path], out: str | Path = "report.html") -> tuple[Path, Path]:
    """Writes the report on every run in or below `paths`; returns the paths of the HTML and the JSON file.

    Raises:
        ConfigError: no run there, a damaged file, or an `out` that is not an .html file in an existing folder.
    """
    out = Path(out)
    check_report_path(out)
    return out, read_report(paths).write(out)


def check_report_path(out: Path) -> None:
    """Raises ConfigError, before the work, for a page that could not be written after it."""
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"report file {str(out)!r} must end in .html; its numbers go into the .json beside it")
    if not out.parent.is_dir():
        raise ConfigError(f"no such folder for the report: {out.parent}; create it or choose another -o")


def draw(groups: Sequence[Group], numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The SVG figures of each dataset: {dataset: {"score", "learning", "paths", "intents": svg or None, "film": None until one
    is embedded, "losses": [(label, svg)]}}; adds warnings.
    """
    colors = figures.color_of([group.label for group in groups])
    drawn: dict[str, dict[str, Any]] = {}
    for scale in numbers["scales"]:
        if scale["profiles"] is not None:
            drawn[f"profiles of {scale['scale']}"] = {
                "profile": figures.profile_figure(scale["profiles"], colors, scale["scale"])
            }
        for dataset in scale["datasets"]:
            members = [group for group in groups if group.dataset == dataset["name"]]
            losses = [(group.label, svg) for group in members if (svg := figures.loss_figure(group, colors[group.label]))]
            drawn[dataset["name"]] = {
                "score": figures.score_figure(members, colors, dataset["card"]),
                "learning": figures.learning_figure(members, colors),
                "paths": _paths_figure(members, colors, numbers["warnings"]),
                "intents": _intents_figure(members, groups),
                "film": None,
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
    environment.globals["tables"] = tables
    return environment.get_template("report.html").render(figures=drawn, **numbers)


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
    panels, layout = intent_panels(members, groups)
    return figures.intent_figure(panels, layout, members[0].dataset) if layout is not None else None


def _first_trajectories(group: Group, warnings: list[str]) -> list[np.ndarray]:
    """Of the first seed that saved some; a damaged file becomes a warning."""
    for run in group.runs:
        try:
            if paths := run.trajectories():
                return paths
        except ConfigError as error:
            warnings.append(f"{run.name}: {error}")
    return []
