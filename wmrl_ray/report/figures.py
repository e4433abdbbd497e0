"""matplotlib -> inline SVG whose ink follows the page: text and axes take the colour of the surrounding text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.report.runs import Run
from wmrl_ray.report.stats import band
from wmrl_ray.report.summary import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wmrl_ray.envs.layouts import MazeLayout

COLORS = ("#2f7ed8", "#e4572e", "#17a673", "#a05bd6", "#d69a00", "#d6478f", "#4aa8b5", "#8a8f98")  # legible on white and black
INK, FAINT = "#010203", "#040506"  # stand for the page's colours until `_svg` replaces them
NUM_TRAJECTORIES = 12  # in one picture: more hide each other
NUM_INTENTS = 60  # of one episode
INTENT_SECONDS = 0.3  # length of a velocity line, for each metre of a maze's cells (an ant's are 4 m wide, and it is slower)


def color_of(labels: Sequence[str]) -> dict[str, str]:
    """The same colour for a label in every figure."""
    return {label: COLORS[i % len(COLORS)] for i, label in enumerate(sorted(set(labels)))}


def score_figure(groups: Sequence[Group], colors: Mapping[str, str], card: Mapping[str, Any]) -> str | None:
    """Evaluation against updates on one dataset: mean over seeds, band from the lowest to the highest seed."""
    figure, axes = _figure(7.2, 3.6)
    drawn = [_draw_band(axes, group.runs, group.metric, group.label, colors[group.label]) for group in groups]
    if not any(drawn):
        return None
    if groups[0].scale != "returns":
        axes.axhline(0, color=FAINT, linewidth=1, linestyle=":")
        axes.axhline(100, color=FAINT, linewidth=1, linestyle=":")
        if (behaviour := card.get("behaviour_score")) is not None:
            axes.axhline(behaviour, color=FAINT, linewidth=1.2, linestyle="--", label="mean of the dataset")
    axes.set_xlabel("updates")
    axes.set_ylabel("return" if groups[0].scale == "returns" else "normalised score")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return _svg(figure, f"score-{groups[0].dataset}")


def learning_figure(groups: Sequence[Group], colors: Mapping[str, str]) -> str | None:
    """Returns against the agent's own steps: of evaluations, and dotted of the episodes that it learned from."""
    figure, axes = _figure(7.2, 3.6)
    drawn = [_draw_band(axes, group.runs, "eval/return_mean", group.label, colors[group.label], steps=True) for group in groups]
    for group in groups:
        for run in group.runs:
            drawn.append(len((curve := run.curve_over_steps("online/return_mean"))[0]) > 0)
            axes.plot(*curve, color=colors[group.label], linewidth=0.9, linestyle=":", alpha=0.8)
    if not any(drawn):
        return None
    axes.set_xlabel("agent steps")
    axes.set_ylabel("return")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return _svg(figure, f"learning-{groups[0].dataset}")


def profile_figure(profiles: Mapping[str, Any], colors: Mapping[str, str], salt: str) -> str:
    """Performance profiles: the share of runs, over datasets and seeds, above each score; bands: 95% intervals over seeds."""
    figure, axes = _figure(7.2, 3.6)
    for label, (share, low, high) in profiles["curves"].items():
        axes.plot(profiles["tau"], share, color=colors[label], linewidth=1.8, label=label)
        if low is not None:
            axes.fill_between(profiles["tau"], low, high, color=colors[label], alpha=0.18, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("normalised score \N{GREEK SMALL LETTER TAU}")
    axes.set_ylabel("share of runs above \N{GREEK SMALL LETTER TAU}")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    return _svg(figure, f"profile-{salt}")


def loss_figure(group: Group, color: str) -> str | None:
    """Every loss of one experiment, small multiples on a shared x axis."""
    names = sorted({name for run in group.runs for name in run.metric_names("loss/")})
    names = [name for name in names if all(len(run.curve(name)[0]) for run in group.runs)]
    if not names:
        return None
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, grid = _grid(rows, columns, 2.7 * columns, 1.9 * rows)
    for axes, name in zip(grid, names, strict=False):
        _draw_band(axes, group.runs, name, None, color)
        axes.set_title(name.removeprefix("loss/"), fontsize=10, color=INK)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    return _svg(figure, f"loss-{group.label}-{group.dataset}")


def trajectory_figure(
    panels: Sequence[tuple[str, Sequence[np.ndarray]]], colors: Mapping[str, str], layout: MazeLayout, salt: str
) -> str:
    """The last evaluation's trajectories in the maze.

    Args:
        panels: one (label, observations [T+1, O] of each episode) for each experiment; at least one.
        salt: tells the ids of this figure from those of others on the page.
    """
    rows, columns = np.asarray(layout.walls).shape
    width = min(3.4, 9.0 / len(panels)) if len(panels) < 4 else 2.6
    per_row = min(len(panels), 4)
    num_rows = -(-len(panels) // per_row)
    figure, grid = _grid(num_rows, per_row, width * per_row, (width * rows / columns + 0.45) * num_rows)
    for axes, (label, paths) in zip(grid, panels, strict=False):
        draw_maze(axes, layout)
        for path in paths[:NUM_TRAJECTORIES]:
            axes.plot(path[:, 0], path[:, 1], color=colors[label], linewidth=1.1, alpha=0.55)
        starts = np.stack([path[0, :2] for path in paths[:NUM_TRAJECTORIES]])
        axes.scatter(starts[:, 0], starts[:, 1], s=14, color=colors[label], zorder=3)
        axes.scatter(*layout.goal, s=130, marker="*", color="#f2b705", edgecolors=INK, linewidths=0.6, zorder=4)
        axes.set_title(label, fontsize=10, color=INK)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return _svg(figure, f"paths-{salt}")


def intent_figure(panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]], layout: MazeLayout, salt: str) -> str:
    """One episode for each experiment, and where its Manager's intents pointed: positions with velocity lines (Fig. 2).

    Args:
        panels: (label, observations [T+1, O], intended states [T+1, O] or None for a Worker without intents).
    """
    rows, columns = np.asarray(layout.walls).shape
    figure, grid = _grid(1, len(panels), 3.4 * len(panels), 3.4 * rows / columns + 0.45)
    for axes, (label, path, intended) in zip(grid, panels, strict=True):
        draw_maze(axes, layout)
        axes.plot(path[:, 0], path[:, 1], color=INK, linewidth=1.1, alpha=0.7)
        axes.scatter(*path[0, :2], s=20, color=INK, zorder=3)
        if intended is not None:
            shown = intended[:: max(1, len(intended) // NUM_INTENTS)]
            position, velocity = shown[:, :2], shown[:, layout.velocity : layout.velocity + 2]
            ends = position + INTENT_SECONDS * layout.cell_size * velocity
            time = np.linspace(0, 1, len(shown))
            axes.scatter(*position.T, c=time, cmap="viridis", s=9, zorder=4)
            for (x, y), (x_end, y_end) in zip(position, ends, strict=True):
                axes.plot([x, x_end], [y, y_end], color="#2f7ed8", linewidth=0.6, alpha=0.6)
        axes.scatter(*layout.goal, s=130, marker="*", color="#f2b705", edgecolors=INK, linewidths=0.6, zorder=5)
        axes.set_title(label, fontsize=10, color=INK)
    return _svg(figure, f"intents-{salt}")


def draw_maze(axes: Axes, layout: MazeLayout, color: str = FAINT) -> None:
    """The walls, on axes that are as large as the maze."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    walls = np.asarray(layout.walls)
    left, right, bottom, top = layout.bounds
    width, height = (right - left) / walls.shape[1], (top - bottom) / walls.shape[0]
    cells = [Rectangle((left + c * width, top - (r + 1) * height), width, height) for r, c in np.argwhere(walls)]
    axes.add_collection(PatchCollection(cells, facecolor=color, edgecolor=color, linewidth=0.4))
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    axes.grid(False)


def _draw_band(axes: Axes, runs: Sequence[Run], key: str, label: str | None, color: str, *, steps: bool = False) -> bool:
    """Draws `key` of the runs that logged it, against updates or the agent's own steps; False when none did."""
    found = [run.curve_over_steps(key) if steps else run.curve(key) for run in runs]
    curves = [curve for curve in found if len(curve[0])]
    if not curves:
        return False
    x, mean, low, high = band(curves)
    if not len(x):  # asynchronous seeds are never at the same step
        for i, curve in enumerate(curves):
            axes.plot(*curve, color=color, linewidth=1.4, label=label if i == 0 else None)
        return True
    axes.plot(x, mean, color=color, linewidth=1.8, label=label, marker="o" if len(x) < 15 else None, markersize=3.5)
    if len(curves) > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return True


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, grid = _grid(1, 1, width, height)
    return figure, grid[0]


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot: no global state, no display."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.patch.set_alpha(0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=8.5, color=FAINT)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.grid(True, color=FAINT, alpha=0.35, linewidth=0.6)
        axes.margins(x=0.02)
    return figure, grid


def _svg(figure: Figure, salt: str) -> str:
    """The <svg> element: no XML header, no metadata, ids of its own, colours bound to the page's."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "svg.id": None}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', _open_tag, svg, count=1)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px var(--sans)", svg)
    return svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")


def _open_tag(match: re.Match[str]) -> str:
    width = float(match[1].split()[2])
    return f'<svg class="figure" style="max-width: {1.25 * width:.0f}px" {match[1]} role="img">'
