"""Optuna's TPE, which suggests no point twice, as a searcher of Tune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from ray.tune.search import Searcher

from wmrl_ray.space import Point, point_name

NUM_TRIES = 100


class Distinct(Searcher):
    """Of two trials at one point the second would train the runs of the first, perhaps at the same time.

    Why not Tune's own: it has no way to take a suggestion back.
    """

    def __init__(
        self,
        space: Mapping[str, optuna.distributions.BaseDistribution],
        *,
        metric: str,
        mode: str,
        seed: int,
        first: Iterable[Point] = (),
        skipped: Iterable[str] = (),
    ) -> None:
        """
        Args:
            first: points that are suggested before any other.
            skipped: names of points that are not suggested at all.
        """
        super().__init__(metric=metric, mode=mode)
        direction = "maximize" if mode == "max" else "minimize"
        self._study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
        for point in first:
            self._study.enqueue_trial(dict(point))
        self._space, self._suggested = dict(space), set(skipped)
        self._trials: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        for _ in range(NUM_TRIES):
            trial = self._study.ask(self._space)
            if (name := point_name(trial.params)) not in self._suggested:
                self._suggested.add(name)
                self._trials[trial_id] = trial
                return dict(trial.params)
            # Why failed: what failed teaches Optuna nothing, and the next point is drawn afresh
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return self.FINISHED  # the space seems to have no other points

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._trials and self.metric in result:  # Why: what a trial says as it fails has no metric
            self._trials[trial_id].report(result[self.metric], result["training_iteration"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (trial := self._trials.pop(trial_id, None)) is None:
            return
        if (value := (result or {}).get(self.metric)) is not None and value == value:
            self._study.tell(trial, value)
        else:
            state = optuna.trial.TrialState.FAIL if error else optuna.trial.TrialState.PRUNED
            self._study.tell(trial, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search that is started again reads the runs' folders (see `search`)."""
