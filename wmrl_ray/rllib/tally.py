"""What happened in an online run since it was last asked, as metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from wmrl_ray.collect import Statistics
from wmrl_ray.rllib.online_learner import Report
from wmrl_ray.rllib.sampling import Answer


@dataclass
class Tally:
    """What happened since it was last taken. Seconds of runners are summed over runners; those of learners are rank 0's.

    before: the part of `statistics` that a checkpoint brought: it counts in means, but not in what is per second.
    """

    statistics: Statistics = field(default_factory=Statistics)
    before: Statistics = field(default_factory=Statistics)
    runner_wait_s: float = 0.0
    runner_load_s: float = 0.0
    learner_wait_s: float = 0.0
    update_s: float = 0.0
    ingest_s: float = 0.0
    publish_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add_answer(self, answer: Answer) -> None:
        self.statistics.add(answer.statistics)
        self.runner_wait_s += answer.wait_s
        self.runner_load_s += answer.load_s

    def add_report(self, report: Report) -> None:
        if report.statistics is not None:
            self.statistics.add(report.statistics)
        self.learner_wait_s += report.wait_s
        self.update_s += report.update_s
        self.ingest_s += report.ingest_s
        self.publish_s += report.publish_s

    def metrics(self, has_runners: bool) -> dict[str, float]:
        found = {**self.statistics.metrics(), "time/update_s": self.update_s}
        if not has_runners:
            return found
        now, before = self.statistics, self.before
        worked = now.act_s + now.env_s - before.act_s - before.env_s + self.runner_load_s
        learned = self.update_s + self.ingest_s + self.publish_s
        return found | {
            "online/steps_per_s": (now.steps - before.steps) / max(time.monotonic() - self.started, 1e-9),
            "time/ingest_s": self.ingest_s,
            "time/publish_s": self.publish_s,
            "time/runner_load_s": self.runner_load_s,
            "time/runner_wait_share": self.runner_wait_s / max(self.runner_wait_s + worked, 1e-9),
            "time/learner_wait_share": self.learner_wait_s / max(self.learner_wait_s + learned, 1e-9),
        }
