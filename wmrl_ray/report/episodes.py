"""Which episodes are put side by side: a Worker with intents, and the same algorithm in the same maze without (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wmrl_ray.config import ConfigError
from wmrl_ray.report.runs import Run
from wmrl_ray.report.summary import Group

if TYPE_CHECKING:
    from wmrl_ray.envs.layouts import MazeLayout


class Panel(NamedTuple):
    """One episode. path: observations [T+1, O]. intended: states [T+1, O] of the Manager's intents; None: without intents."""

    label: str
    path: np.ndarray
    intended: np.ndarray | None


def intent_panels(members: Sequence[Group], groups: Sequence[Group]) -> tuple[list[Panel], MazeLayout | None]:
    """The first episode of each Worker with intents among `members`, the runs on one dataset; ([], None) if there is none.

    Before each of them, if it is among `groups`, the same algorithm without intents: in the same maze, trained on the dataset
    that the intents were put behind, with the same seed or, where there is none, another.
    """
    from wmrl_ray.envs import maze_layout  # lazily: only reports with intents need the mazes

    panels: list[Panel] = []
    layout = None
    for group in members:
        found = _first_episode([run for run in group.runs if _has_intents(run) and maze_layout(str(run.env_id)) is not None])
        if found is None or found[2] is None:
            continue
        run, path, intended = found
        layout = maze_layout(str(run.env_id))
        labels = {id(other): by.label for by in groups for other in by.runs if _is_baseline_of(other, run)}
        others = [other for by in groups for other in by.runs if id(other) in labels]
        without = _first_episode(sorted(others, key=lambda other: other.seed != run.seed))
        if without is not None:
            seed = "" if without[0].seed == run.seed else f" (seed {without[0].seed}, not {run.seed})"
            panels.append(Panel(f"{labels[id(without[0])]}, without intents{seed}", without[1], None))
        panels.append(Panel(f"{group.label}, with intents", path, intended))
    return panels, layout


def _first_episode(runs: Sequence[Run]) -> tuple[Run, np.ndarray, np.ndarray | None] | None:
    """(run, observations, intended states or None) of the first that saved some; a damaged file was warned of."""
    for run in runs:
        try:
            if paths := run.trajectories():
                intended = run.intended()
                return run, paths[0], intended[0] if intended else None
        except ConfigError:
            continue
    return None


def _has_intents(run: Run) -> bool:
    return str(run.env_id).startswith("intents:")


def _is_baseline_of(other: Run, run: Run) -> bool:
    """Whether `other` is what the Worker `run` would be without intents."""
    if other.algorithm != run.algorithm or not str(run.env_id).endswith(f":{other.env_id}"):
        return False
    (name, sha256), (other_name, other_sha256) = run.base, (other.dataset.get("name"), other.dataset.get("sha256"))
    return name == other_name if sha256 is None else sha256 == other_sha256
