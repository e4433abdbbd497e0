"""Collecting on runner actors: what one is asked, what it answers, and the actors themselves, replaced where they die.

Why not RLlib's own group of training runners: it waits for a runner that restarts, and forgets a request that it cannot send.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from wmrl_ray.collect import Statistics
from wmrl_ray.rllib.failures import DEATHS, STARTING_S, RemoteError, unwrap
from wmrl_ray.rllib.placement import RUNNER, Room

if TYPE_CHECKING:
    from wmrl_ray.data.episode import Episode

MOST_DEATHS = 3  # of one runner in a row, none of them with an answer; then the run stops


@dataclass(frozen=True)
class Weights:
    """reference: to the vector of `flatten_weights`, in a list so that Ray does not fetch it early. version: in updates."""

    reference: list[Any]
    version: int


@dataclass(frozen=True)
class Order:
    """What a runner does next: `num_steps` steps in each of its environments, or fewer: up to the first that ends an episode.

    weights: None while actions are random. session: a runner makes a new collector, of this seed, at the first order of each;
    collector: the state in which that starts (and whether its unfinished episodes go on).
    """

    num_steps: int
    session: str
    seed: tuple[int, ...]
    weights: Weights | None
    collector: tuple[dict[str, Any], bool] | None = None


@dataclass(frozen=True)
class Answer:
    """What became of an order; the episodes that ended are an object of their own, which the driver never opens. (Ray itself
    carries objects below 100 kB, such as an episode of a cartpole, in the driver's memory; others go from node to node.)

    lengths: steps of those episodes. load_s: taking new weights. wait_s: between the last answer and this order. unfinished:
    steps of each environment's unfinished episode. logged: what a user's callbacks logged, as RLlib's metrics.
    """

    lengths: list[int]
    statistics: Statistics
    load_s: float = 0.0
    wait_s: float = 0.0
    unfinished: Sequence[int] = ()
    logged: Any = None


@dataclass(frozen=True)
class Packet:
    """The episodes of one answer. reference: in a list so that Ray does not fetch it early."""

    reference: list[Any]
    lengths: list[int]


def fetch(packets: Sequence[Packet]) -> tuple[list[Episode], list[int], ObjectLostError | None]:
    """On a learner: the episodes, in order; the lengths of those that were on a node which is gone, and the error about it."""
    episodes: list[Episode] = []
    lost: list[int] = []
    cause = None
    for packet in packets:
        try:
            episodes += ray.get(packet.reference[0])
        except ObjectLostError as error:
            lost += packet.lengths
            cause = error
    return episodes, lost, cause


@dataclass
class Runners:
    """The actors that collect. Each has a number from 0; RLlib's worker index is one more.

    Why an answer is two return values and not a reference that the runner put: Ray loses what a process owns when it dies, and
    returned objects are the driver's.
    """

    config: Any
    spaces: dict[str, Any]
    num_runners: int
    room: Room = field(default_factory=Room)
    actors: list[Any] = field(default_factory=list)
    deaths: list[int] = field(default_factory=list)  # of each in a row
    started: set[int] = field(default_factory=set)  # those whose actor has answered

    def __post_init__(self) -> None:
        self._shared_config = ray.put(self.config)
        self.deaths = [0] * self.num_runners
        self.actors = [self._make(runner) for runner in range(self.num_runners)]

    def _make(self, runner: int) -> Any:
        c = self.config
        actor_class = ray.remote(
            num_cpus=c.num_cpus_per_env_runner,
            num_gpus=c.num_gpus_per_env_runner,
            resources=c.custom_resources_per_env_runner,
            max_restarts=0,
            scheduling_strategy=self.room.strategy(RUNNER, runner),
        )(c.env_runner_cls)
        return actor_class.remote(
            config=self._shared_config, worker_index=runner + 1, num_workers=self.num_runners, spaces=self.spaces
        )

    def ask(self, runner: int, order: Order) -> tuple[concurrent.futures.Future[Any], Any]:
        """Sends an order. Returns what will hold the Answer (see `answer`), and the reference to the episodes."""
        answer, episodes = self.actors[runner].collect.options(num_returns=2).remote(order)
        return answer.future(), episodes

    def deadline(self, runner: int) -> float:
        """By `time.monotonic()`, of what is asked now. Why more for an actor that has never answered: it may still be starting,
        and on a busy node would count as hanging, as would the one in its place.
        """
        return time.monotonic() + self.config.call_timeout_s + (0.0 if runner in self.started else STARTING_S)

    def answer(self, runner: int, future: concurrent.futures.Future[Any], deadline: float) -> Answer | None:
        """The answer; None if the runner died, or does not answer until `deadline`, and is replaced.

        Raises:
            RemoteError: the runner failed, with its traceback; or it has died too often.
        """
        try:
            answer = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._replace(runner)
            return None
        except DEATHS as error:
            if getattr(error, "actor_init_failed", False):
                raise RemoteError(f"runner {runner} could not start: {error}") from error
            self._replace(runner)
            return None
        unwrap([answer], "runner", 1)
        self.deaths[runner] = 0
        self.started.add(runner)
        return answer

    def _replace(self, runner: int) -> None:
        self.deaths[runner] += 1
        if self.deaths[runner] >= MOST_DEATHS:
            raise RemoteError(
                f"runner {runner} died {MOST_DEATHS} times in a row without an answer (killed, out of memory, or silent for "
                f"call_timeout_s = {self.config.call_timeout_s:g} s; see Ray's logs of the node)"
            )
        ray.kill(self.actors[runner])
        self.started.discard(runner)
        self.actors[runner] = self._make(runner)

    def collector_states(self, session: str) -> tuple[list[dict[str, Any] | None], list[int]]:
        """Of every runner, each of which is at rest: None for one that took no steps in this session. And who has died; those
        are replaced.
        """
        states: list[Any] = []
        dead = []
        references = [actor.get_collector_state.remote(session) for actor in self.actors]
        deadlines = [self.deadline(runner) for runner in range(self.num_runners)]
        for runner, reference in enumerate(references):
            try:
                states.append(ray.get(reference, timeout=max(0.0, deadlines[runner] - time.monotonic())))
            except (*DEATHS, GetTimeoutError):
                self._replace(runner)
                dead.append(runner)
                states.append(None)
        return unwrap(states, "runner", self.num_runners), dead

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
