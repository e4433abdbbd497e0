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

    Before each of them, if it is among `groups`, the same algorithm in the same maze without intents.
    """
    from wmrl_ray.envs import maze_layout  # lazily: only reports with intents need the mazes

    panels: list[Panel] = []
    layout = None
    for group in members:
        with_intents = _first_episode(group)
        if with_intents is None or with_intents[2] is None:
            continue
        run, path, intended = with_intents
        here = maze_layout(str(run.env_id))
        if here is None:
            continue
        layout = here
        for other in groups:
            without = _first_episode(other)
            if without is not None and without[2] is None and _same_but_for_intents(without[0], run):
                panels.append(Panel(f"{other.label}, without intents", without[1], None))
                break
        panels.append(Panel(f"{group.label}, with intents", path, intended))
    return panels, layout


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
