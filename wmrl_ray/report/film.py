"""Fig. 2 of the IQL-TD-MPC paper as it moves: Workers in a maze, and where their Managers' intents point at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wmrl_ray.config import ConfigError
from wmrl_ray.report.episodes import Panel, intent_panels
from wmrl_ray.report.figures import INTENT_SECONDS, draw_maze
from wmrl_ray.report.summary import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from wmrl_ray.envs.layouts import MazeLayout

FPS = 25
MOVING = 8 * FPS  # at most so many frames, however long the episodes are
HOLD = FPS  # the last picture stays for a second
DPI = 100
PANEL_INCHES = 4.0
PER_ROW = 4
WALL, PATH, AGENT, INTENT, GOAL = "#b9c0c9", "#5d6672", "#2f7ed8", "#12a150", "#f2b705"


@dataclass(frozen=True)
class Film:
    """What is shown: the panels of one dataset's Workers. left_out: other datasets whose Workers have intents."""

    dataset: str
    panels: list[Panel]
    layout: MazeLayout
    left_out: list[str]

    @property
    def times(self) -> np.ndarray:
        """The step of the episodes that each frame shows, [F] int; one that has ended stays at its last state."""
        last = max(len(panel.path) for panel in self.panels) - 1
        stride = max(1, -(-last // (MOVING - 1)))
        moving = np.arange(0, last, stride)
        return np.concatenate([moving, np.full(1 + HOLD, last)])

    def frames(self, progress: Callable[[int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Pictures [h, w, 3] uint8, one for each of `times`. progress: called with (drawn, all)."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        per_row = min(len(self.panels), PER_ROW)
        num_rows = -(-len(self.panels) // per_row)
        rows, columns = np.asarray(self.layout.walls).shape
        size = (PANEL_INCHES * per_row, (PANEL_INCHES * rows / columns + 0.4) * num_rows)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        grid = list(figure.subplots(num_rows, per_row, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        scenes = [_Scene(axes, panel, self.layout) for axes, panel in zip(grid, self.panels, strict=False)]
        canvas.draw()
        still = canvas.copy_from_bbox(figure.bbox)  # Why: the mazes are drawn once, a frame draws only what moves
        times = self.times
        for i, time in enumerate(times, start=1):
            canvas.restore_region(still)
            for scene in scenes:
                scene.draw(int(time))
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
            if progress is not None:
                progress(i, len(times))


class _Scene:
    """One maze with its agent, its path so far, and the intent of the moment: a green dot with a line along the velocity."""

    def __init__(self, axes: Axes, panel: Panel, layout: MazeLayout):
        self.axes, self.panel, self.layout = axes, panel, layout
        draw_maze(axes, layout, WALL)
        axes.set_title(panel.label, fontsize=10, color="black")
        axes.plot(*layout.goal, marker="*", markersize=13, color=GOAL, markeredgecolor="black", markeredgewidth=0.5)
        (self.path,) = axes.plot([], [], color=PATH, linewidth=1.3, animated=True)
        (self.speed,) = axes.plot([], [], color=INTENT, linewidth=2.0, animated=True)
        (self.intent,) = axes.plot([], [], marker="o", markersize=9, color=INTENT, markeredgewidth=0, animated=True)
        (self.agent,) = axes.plot([], [], marker="o", markersize=6, color=AGENT, markeredgecolor="white", animated=True)
        self.step = axes.text(0.01, 0.01, "", transform=axes.transAxes, fontsize=8, color="black", animated=True)

    def draw(self, time: int) -> None:
        path, intended = self.panel.path, self.panel.intended
        now = min(time, len(path) - 1)
        self.path.set_data(path[: now + 1, 0], path[: now + 1, 1])
        self.agent.set_data(path[now : now + 1, 0], path[now : now + 1, 1])
        self.step.set_text(f"step {now}")
        moving: list[Line2D] = [self.path]
        if intended is not None:
            position, first = intended[now, :2], self.layout.velocity
            end = position + INTENT_SECONDS * self.layout.cell_size * intended[now, first : first + 2]
            self.intent.set_data(position[:1], position[1:])
            self.speed.set_data([position[0], end[0]], [position[1], end[1]])
            moving += [self.speed, self.intent]
        for artist in (*moving, self.agent, self.step):
            self.axes.draw_artist(artist)


def plan_film(groups: Sequence[Group]) -> Film:
    """The panels of the first dataset whose Workers have intents; rather one where one without intents is beside them.

    Raises:
        ConfigError: no run has intents.
    """
    films = []
    for dataset in dict.fromkeys(group.dataset for group in groups):
        panels, layout = intent_panels([group for group in groups if group.dataset == dataset], groups)
        if layout is not None:
            films.append(Film(dataset, panels, layout, []))
    if not films:
        raise ConfigError(
            "no video: none of these runs saved an episode with a Manager's intents in a maze; train a Worker on the dataset "
            "that `wmrl intents DATASET --manager RUN` makes, and give its run"
        )
    film = max(films, key=lambda film: any(panel.intended is None for panel in film.panels))  # the first of equals
    return Film(film.dataset, film.panels, film.layout, [other.dataset for other in films if other is not film])
