"""The table and the picture of recorded learning runs.

python -m tests.benchmarks.learning RUN... --picture tests/benchmarks/learning.png     # prints the table in Markdown
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.envs import maze_layout
from wmrl_ray.report.runs import Run, read_runs

NAMES = {"bc": "BC", "tdmpc": "TD-MPC", "iql_tdmpc": "IQL-TD-MPC"}
COLORS = {"bc": "#8a8f98", "tdmpc": "#2f7ed8", "iql_tdmpc": "#e4572e"}
NUM_PATHS = 12

Groups = dict[tuple[str, str], list[Run]]


def group(runs: Sequence[Run]) -> Groups:
    """Runs by (dataset, algorithm), seeds in order."""
    groups: Groups = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault((str(run.dataset["name"]), run.algorithm), []).append(run)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], list(NAMES).index(item[0][1]))))


def table(groups: Groups) -> str:
    """One line per dataset and algorithm, from the last evaluation of each seed."""
    lines = [
        "| dataset | algorithm | score, mean +- std over seeds | each seed | return | success | updates | seeds x episodes "
        "| hidden |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, algorithm), runs in groups.items():
        scores = np.array([run.final("eval/score_mean") for run in runs])
        returns = np.array([run.final("eval/return_mean") for run in runs])
        success = np.array([run.final("eval/success_mean") for run in runs])
        spread = f" +- {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
        updates = sorted({run.evaluations[-1]["update"] for run in runs})
        agent: dict[str, Any] = runs[0].config["agent"]
        hidden = agent.get("model", agent).get("hidden_dim", "default")
        lines.append(
            f"| {dataset} | {NAMES[algorithm]} | **{scores.mean():.1f}**{spread} | {', '.join(f'{s:.1f}' for s in scores)} "
            f"| {returns.mean():.1f} | {success.mean():.2f} | {', '.join(f'{u:,}' for u in updates)} "
            f"| {len(runs)} x {runs[0].final('eval/episodes'):.0f} | {hidden} |"
        )
    return "\n".join(lines)


def picture(groups: Groups, dataset: str, path: Path) -> None:
    """A learning curve for each seed, beside each algorithm's last evaluation in the maze."""
    from matplotlib.figure import Figure

    algorithms = {algorithm: runs for (name, algorithm), runs in groups.items() if name == dataset}
    layout = maze_layout(str(next(iter(algorithms.values()))[0].env_id))
    assert layout is not None
    figure = Figure(figsize=(4.2 + 2.6 * len(algorithms), 3.0), dpi=160, layout="constrained")
    curves, *panels = figure.subplots(1, 1 + len(algorithms), width_ratios=[1.6] + [1.0] * len(algorithms))
    for (algorithm, runs), panel in zip(algorithms.items(), panels, strict=True):
        for i, run in enumerate(runs):
            label = f"{NAMES[algorithm]} ({len(runs)} seed{'s' * (len(runs) > 1)})" if i == 0 else None
            x, y = run.curve("eval/score_mean")
            curves.plot(x, y, color=COLORS[algorithm], marker="o", markersize=3, alpha=0.8, label=label)
        left, right, bottom, top = layout.bounds
        panel.imshow(layout.walls, extent=(left, right, bottom, top), cmap="Greys", vmax=2, interpolation="nearest")
        for episode in runs[0].trajectories()[:NUM_PATHS]:
            panel.plot(episode[:, 0], episode[:, 1], color=COLORS[algorithm], linewidth=0.9, alpha=0.7)
            panel.plot(*episode[0, :2], ".", color="black", markersize=4)
        panel.plot(*layout.goal, "*", color="#d6a800", markersize=14, markeredgecolor="black", markeredgewidth=0.6)
        panel.set(xticks=[], yticks=[], title=NAMES[algorithm], xlim=(left, right), ylim=(bottom, top))
    for level, text in ((0, "random"), (100, "expert controller")):
        curves.axhline(level, color="black", linewidth=0.8, linestyle=":")
        curves.annotate(text, (0, level), fontsize=7, va="bottom")
    curves.set(xlabel="updates", ylabel="score", title=dataset)
    curves.legend(frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(0.01, 0.21))
    curves.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--dataset", default="wmrl/pointmaze/umaze-v0", help="of the picture")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    groups = group(read_runs(arguments.runs))
    print(table(groups))
    if arguments.picture:
        picture(groups, arguments.dataset, arguments.picture)


if __name__ == "__main__":
    main()
