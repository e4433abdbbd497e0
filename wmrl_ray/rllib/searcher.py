"""Tune's Optuna, which suggests no point twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray.tune.search.optuna.optuna_search import OptunaSearch, OptunaTrialState

from wmrl_ray.space import point_name

NUM_TRIES = 100


class Distinct(OptunaSearch):
    """Of two trials at one point the second would train the runs of the first, perhaps at the same time.

    skipped: names of points that are not suggested at all.
    """

    def __init__(self, *args: Any, skipped: Iterable[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._suggested = set(skipped)

    def suggest(self, trial_id: str) -> Any:
        for _ in range(NUM_TRIES):
            point = super().suggest(trial_id) or {}
            if (name := point_name(point)) not in self._suggested:
                self._suggested.add(name)
                return point
            # Why failed: what failed teaches Optuna nothing, and the next point is drawn afresh
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=OptunaTrialState.FAIL)
        return self.FINISHED  # the space seems to have no other points

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.metric in result:  # Why: what a trial says as it fails has no metric
            super().on_trial_result(trial_id, result)
