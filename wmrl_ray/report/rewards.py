"""The scatter plot of decoded against true rewards (Fig. 4 of the IQ-MPC paper)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmrl_ray.data.files import replacing


def draw_rewards(true: np.ndarray, decoded: np.ndarray, path: Path, title: str, pearson: float | None) -> None:
    """Writes the picture; its ending says the format. true, decoded: [N], one point for every step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # Why not pyplot: no global state, no display
    axes = figure.add_subplot()
    axes.scatter(true, decoded, s=6, alpha=0.35, linewidths=0, color="#2f7ed8")
    if pearson is not None:
        slope, offset = np.polyfit(true.astype(np.float64), decoded.astype(np.float64), 1)
        ends = np.array([true.min(), true.max()])
        axes.plot(ends, slope * ends + offset, color="#e4572e", linewidth=1.2, label=f"least squares; Pearson {pearson:.3f}")
        axes.legend(frameon=False, loc="best")
    axes.set(xlabel="true reward", ylabel="decoded reward", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=130)
