"""What happened in an online run: told in every iteration through RLlib's MetricsLogger, under RLlib's names; and summed until
a run's log takes it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ray.rllib.core import ALL_MODULES, DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.utils import metrics as names
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from wmrl_ray.collect import Statistics
from wmrl_ray.rllib.online_learner import Report
from wmrl_ray.rllib.sampling import Answer
from wmrl_ray.schedule import Lags

RUNNERS, LEARNERS = names.ENV_RUNNER_RESULTS, names.LEARNER_RESULTS
ENV_STEPS = (names.NUM_ENV_STEPS_SAMPLED_LIFETIME,)
RLLIBS = ("online/steps", "online/episodes", "online/return_mean", "online/length_mean")  # RLlib has names for them
AGENT, MODULE = "agent_episode_return_mean", "module_episode_return_mean"


@dataclass
class Sums:
    """What happened since it was made. Seconds of runners are summed over runners; those of learners are rank 0's.

    before: the part of `statistics` that a checkpoint brought: it counts in means, but not in what is per second.
    """

    statistics: Statistics = field(default_factory=Statistics)
    before: Statistics = field(default_factory=Statistics)
    lags: Lags = field(default_factory=Lags)
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

    def add(self, other: Sums) -> None:
        self.statistics.add(other.statistics)
        self.lags.add(other.lags)
        for name in ("runner_wait_s", "runner_load_s", "learner_wait_s", "update_s", "ingest_s", "publish_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def metrics(self, has_runners: bool, is_asynchronous: bool = False) -> dict[str, float]:
        found = {**self.statistics.metrics(), "time/update_s": self.update_s}
        if not has_runners:
            return found
        now, before = self.statistics, self.before
        worked = now.act_s + now.env_s - before.act_s - before.env_s + self.runner_load_s
        learned = self.update_s + self.ingest_s + self.publish_s
        found |= self.lags.metrics() if is_asynchronous else {}
        return found | {
            "online/steps_per_s": (now.steps - before.steps) / max(time.monotonic() - self.started, 1e-9),
            "time/ingest_s": self.ingest_s,
            "time/publish_s": self.publish_s,
            "time/runner_load_s": self.runner_load_s,
            "time/runner_wait_share": self.runner_wait_s / max(self.runner_wait_s + worked, 1e-9),
            "time/learner_wait_share": self.learner_wait_s / max(self.learner_wait_s + learned, 1e-9),
        }


class SampleMetrics:
    """Of an online run. What it holds does not grow, however long nobody asks.

    num_smoothed: RLlib's returns and lengths are of so many episodes that ended last, in this iteration or before.
    """

    def __init__(self, num_smoothed: int, has_runners: bool, is_asynchronous: bool) -> None:
        self._kind = has_runners, is_asynchronous
        self._recent: deque[list[float]] = deque(maxlen=num_smoothed)  # (return, length)
        self._iteration, self._since_log = Sums(), Sums()
        self._logged: list[Any] = []  # by callbacks, in this iteration

    def add_answer(self, answer: Answer) -> None:
        self._iteration.add_answer(answer)
        self._logged += [] if answer.logged is None else [answer.logged]

    def add_report(self, report: Report) -> None:
        self._iteration.add_report(report)
        self._logged += [] if report.logged is None else [report.logged]

    def add_lags(self, lags: Lags) -> None:
        self._iteration.lags.add(lags)

    def end_iteration(self, logger: MetricsLogger, counts: Mapping[str, int]) -> None:
        """Logs it. `counts`: so far, by the name that a run's log has for them."""
        done = self._iteration.statistics
        self._recent.extend(done.ended)
        _log_counts(logger, done.steps, counts["online/steps"], done.episodes, counts["online/episodes"])
        _log_episodes(logger, list(self._recent))
        for path, value in {**counts, **self._iteration.metrics(*self._kind)}.items():
            if path not in RLLIBS:
                logger.log_value((RUNNERS, path.rpartition("/")[2]), value, window=1)
        if self._logged:
            logger.aggregate(self._logged, key=RUNNERS)
        done.ended.clear()
        self._since_log.add(self._iteration)
        self._iteration, self._logged = Sums(), []

    def take(self) -> dict[str, float]:
        """Since the last call of this, for a run's log."""
        taken, self._since_log = self._since_log, Sums()
        return taken.metrics(*self._kind)

    def get_state(self) -> dict[str, Any]:
        """Numbers and lists, without a reference to what goes on here. Before an iteration has ended, that is not in it."""
        return {"statistics": asdict(self._since_log.statistics), "recent": [list(one) for one in self._recent]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        restored = Statistics(**copy.deepcopy(state["statistics"]))
        self._iteration, self._logged = Sums(), []
        self._since_log = Sums(statistics=restored, before=copy.deepcopy(restored))
        self._recent.clear()
        self._recent.extend(state.get("recent", []))  # older checkpoints have none


def _log_counts(logger: MetricsLogger, steps: int, all_steps: int, episodes: int, all_episodes: int) -> None:
    counted = [
        ((names.NUM_ENV_STEPS_SAMPLED,), ENV_STEPS, steps, all_steps),
        ((names.NUM_EPISODES,), (names.NUM_EPISODES_LIFETIME,), episodes, all_episodes),
    ]
    for now, lifetime, who in (
        (names.NUM_AGENT_STEPS_SAMPLED, names.NUM_AGENT_STEPS_SAMPLED_LIFETIME, DEFAULT_AGENT_ID),
        (names.NUM_MODULE_STEPS_SAMPLED, names.NUM_MODULE_STEPS_SAMPLED_LIFETIME, DEFAULT_MODULE_ID),
    ):
        counted.append(((now, who), (lifetime, who), steps, all_steps))
    for now, lifetime, new, total in counted:
        logger.log_value((RUNNERS, *now), new, reduce="sum")
        missing = total - logger.peek((RUNNERS, *lifetime), default=0)  # Why: so a restored count is right whatever was logged
        logger.log_value((RUNNERS, *lifetime), missing, reduce="lifetime_sum", with_throughput=lifetime == ENV_STEPS)


def _log_episodes(logger: MetricsLogger, recent: list[list[float]]) -> None:
    """Also where none has ended: who schedules by a metric, as Tune does, needs it in every result."""
    returns, lengths = ([one[part] for one in recent] or [math.nan] for part in (0, 1))
    found: dict[tuple[str, ...], float] = {
        (names.EPISODE_RETURN_MEAN,): sum(returns) / len(returns),
        (names.EPISODE_RETURN_MIN,): min(returns),
        (names.EPISODE_RETURN_MAX,): max(returns),
        (names.EPISODE_LEN_MEAN,): sum(lengths) / len(lengths),
        (names.EPISODE_LEN_MIN,): min(lengths),
        (names.EPISODE_LEN_MAX,): max(lengths),
    }
    found |= {(AGENT, DEFAULT_AGENT_ID): sum(returns) / len(returns), (MODULE, DEFAULT_MODULE_ID): sum(returns) / len(returns)}
    for name, value in found.items():
        logger.log_value((RUNNERS, *name), value, window=1)


def log_trained(logger: MetricsLogger, num_steps: int) -> None:
    """Environment steps in the batches of all learners, a step counted as often as it is in one."""
    for now, lifetime, who in (
        (names.NUM_ENV_STEPS_TRAINED, names.NUM_ENV_STEPS_TRAINED_LIFETIME, ALL_MODULES),
        (names.NUM_MODULE_STEPS_TRAINED, names.NUM_MODULE_STEPS_TRAINED_LIFETIME, DEFAULT_MODULE_ID),
    ):
        logger.log_value((LEARNERS, who, now), num_steps, reduce="sum")
        logger.log_value((LEARNERS, who, lifetime), num_steps, reduce="lifetime_sum", with_throughput=True)


def plain_state(logger: MetricsLogger) -> dict[str, Any]:
    """Of a MetricsLogger, as lists and numbers; without what a callback logged that is neither."""
    kept = {}
    for key, state in logger.get_state()["stats"].items():
        with contextlib.suppress(TypeError):
            kept[key] = _plain(state)
    return {"stats": kept}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(type(value))
