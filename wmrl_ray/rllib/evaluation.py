"""Evaluation by runner actors: started, left alone while training goes on, collected when done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray

from wmrl_ray.rllib.failures import ActorLostError, RemoteError, guarded, remote_error, unwrap
from wmrl_ray.rollout import Evaluation

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    from wmrl_ray.rllib.callbacks import EpisodeRecord
    from wmrl_ray.rllib.env_runner import PlannerEnvRunner

TAG = "evaluate"
LOCAL = 0  # the index of the runner in the driver process
Share = tuple[list["EpisodeRecord"], dict[str, float], Any]


def _run_episodes(runner: PlannerEnvRunner, weights: Any, parts: dict[int, range], seed: int) -> Share:
    """On the runner: its part of the episodes, with these weights and from its own stream of noise."""
    index = runner.worker_index or LOCAL
    runner.module.set_state(ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights)
    return runner.run_episodes(parts[index], seed, noise_seed=seed + 100_003 * index)


class RunningEvaluation:
    """One evaluation of given weights.

    Why the weights travel with the request: RLlib's `sync_weights` drops them for a runner that has not yet answered the last
    sync, and the runner would then evaluate old ones.

    num_updates: of the weights. parts: the numbers of the episodes that each runner runs, in ascending order. logged: when it
    has ended, what callbacks logged on each runner.
    """

    def __init__(
        self, group: EnvRunnerGroup, weights: Any, num_episodes: int, seed: int, num_updates: int, timeout_s: float
    ) -> None:
        self.num_updates, self._timeout_s, self._started = num_updates, timeout_s, time.monotonic()
        self._group = group
        self._shares: dict[int, Any] = {}
        self.logged: list[Any] = []
        alive = group.healthy_worker_ids()
        if len(alive) < group.num_remote_env_runners():
            missing = group.num_remote_env_runners() - len(alive)
            raise ActorLostError(
                f"{missing} of {group.num_remote_env_runners()} evaluation runners died (see Ray's logs of the node)"
            )
        workers = alive[:num_episodes] or [LOCAL]
        each, rest = divmod(num_episodes, len(workers))
        first = [i * each + min(i, rest) for i in range(len(workers) + 1)]
        self.parts = {worker: range(first[i], first[i + 1]) for i, worker in enumerate(workers)}
        if workers == [LOCAL]:
            self._shares[LOCAL] = _run_episodes(group.local_env_runner, weights, self.parts, seed)
            return
        kwargs = {"weights": ray.put(weights), "parts": self.parts, "seed": seed}
        sent = group.foreach_env_runner_async(guarded(_run_episodes), tag=TAG, kwargs=kwargs, remote_worker_ids=workers)
        if sent != len(workers):
            raise RemoteError(f"only {sent} of {len(workers)} evaluation runners took the request; is an evaluation running?")

    def poll(self, timeout_s: float | None) -> Evaluation | None:
        """The result, or None if it is still running after `timeout_s` (None: waits for it).

        Raises:
            RemoteError: a runner failed, with its traceback.
            ActorLostError: one died, or the evaluation takes longer than its limit.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while len(self._shares) < len(self.parts):
            left = 1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                ready = self._group.fetch_ready_async_reqs(tags=TAG, timeout_seconds=min(left, 1.0))
            except Exception as error:  # a runner's own come as values: what is raised is Ray's, a death mostly
                raise remote_error("evaluation runner", error) from error
            self._shares.update(ready)
            unwrap((share for _, share in ready), "evaluation runner", len(ready))
            if not ready and self._group.num_in_flight_async_reqs(TAG) == 0:
                unwrap(self._shares.values(), "evaluation runner", len(self.parts))
            missing = len(self.parts) - len(self._shares)
            if missing and time.monotonic() - self._started > self._timeout_s:
                unwrap(self._shares.values(), "evaluation runner", len(self.parts), self._timeout_s)
            if deadline is not None and left == 0.0 and len(self._shares) < len(self.parts):
                return None
        shares = [self._shares[worker] for worker in self.parts]
        self.logged = [logged for *_, logged in shares if logged]
        return _merge(shares)


def _merge(shares: list[Share]) -> Evaluation:
    records = [record for share, *_ in shares for record in share]
    episodes = [record.episode for record in records]
    names = shares[0][1]  # every runner has the same agent
    return Evaluation(
        episodes=episodes,
        returns=[episode.episode_return for episode in episodes],
        lengths=[len(episode) for episode in episodes],
        successes=[bool(record.success) for record in records],
        reports_success=any(record.success is not None for record in records),
        act_metrics={name: sum(info[name] * len(share) for share, info, _ in shares) / len(records) for name in names},
    )


def evaluate_on_runners(algorithm: Any, group: EnvRunnerGroup) -> tuple[dict[str, float], int, int]:
    """RLlib's `custom_evaluation_function`: exact episode counts, not the first to end."""
    algorithm.start_evaluation()
    algorithm.finish_evaluation()
    steps = sum(algorithm.last_evaluation.lengths)
    return algorithm.last_evaluation_metrics, steps, steps
