"""Tune's population-based training, in which nobody waits for a member that will not come.

What a member does before it takes over another's state is a generation of its own (`search_trial.Member`): its folder stays,
and is no row of results.parquet. Why: nobody goes on from it, and the table would show it as the result of settings that were
given up before they were trained to the end. The successor's own rows begin with the evaluations of the run it continues, which
its `lineage` names.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining


class Population(PopulationBasedTraining):
    """Synchronous: members are compared when all have come to the next exploit. Those that have ended do not count.

    Tune's own exploits only as the last member reports, and pauses for ever those that wait for one that fails or finishes; or
    all, when they begin beyond the first exploits, as after a resume.
    """

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        before = self._next_perturbation_sync
        decision = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != before:
            self._set_next(before, _unfinished(tune_controller))
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        # Why here and not where a member ends: it is asked all the time, and only now are the others' pauses complete
        chosen, rest = super().choose_trial_to_run(tune_controller), _unfinished(tune_controller)
        if chosen is None and rest and all(trial.status == Trial.PAUSED for trial in rest):
            self._exploit_among(rest, tune_controller)
            chosen = super().choose_trial_to_run(tune_controller)
        return chosen

    def _exploit_among(self, members: list[Trial], tune_controller: Any) -> None:
        lower, upper = self._quantiles()
        between = [trial for trial in members if trial not in upper and trial not in lower]
        for trial in [*upper, *between, *lower]:  # the best first: their checkpoints are what the worst take over
            state = self._trial_state[trial]
            state.last_perturbation_time = state.last_train_time
            self._checkpoint_or_exploit(trial, tune_controller, upper, lower)
        self._set_next(self._next_perturbation_sync, members)

    def _set_next(self, before: float, members: list[Trial]) -> None:
        """The next exploit: where the foremost stands, or beyond it when all stand there."""
        times = [self._trial_state[trial].last_train_time for trial in members]
        after = max([before + self._perturbation_interval, *times])
        self._next_perturbation_sync = after if min(times, default=0) < after else after + self._perturbation_interval


def _unfinished(tune_controller: Any) -> list[Trial]:
    return [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
