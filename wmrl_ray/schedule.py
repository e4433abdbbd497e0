"""Who may work now: the asynchronous schedule of runners that collect steps and learners that make updates.

Pure bookkeeping, without Ray, threads or clocks, so that it can be tested and simulated. The loop around it asks
`next_request` and `next_call`, does what they say, and reports with `receive`, `lose` and `finish_call`.

A step is one action in one environment. Updates follow steps at the rate U; neither side gets further ahead than `Limits`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmrl_ray.config import check

# Of the driver's time: for one request and its answer, Ray's part with it (`tests/benchmarks/bench_schedule.py` measures it),
# and the share of all that requests may take before they get longer.
ANSWER_S, DRIVER_SHARE = 1.2e-3, 0.4
MEMORY = 0.95  # of the measured seconds of a step, from one answer to the next


@dataclass(frozen=True)
class Limits:
    """What bounds an asynchronous run."""

    num_runners: int
    request_steps: int  # n, steps that one request asks a runner for, all its environments together; more where `pace` says so
    updates_per_call: int  # K, updates in one call of the learners
    updates_per_step: float = 1.0  # U
    seed_steps: int = 0  # random ones, before the first update
    window: int = 1  # steps of the shortest episode that can be learned from alone
    max_steps_ahead: int | None = None  # steps taken or asked for, whose updates are not made; None: 2 (R n + K / U)
    max_updates_ahead: int = 0  # updates made before their steps
    max_queued_episodes: int = 64  # delivered and not yet taken by the learners; no request is sent while it is reached
    num_envs: int = 1  # W, of each runner

    def __post_init__(self) -> None:
        for name in ("num_runners", "request_steps", "updates_per_call", "window", "max_queued_episodes", "num_envs"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("seed_steps", "max_updates_ahead"):
            check(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}; it must not be negative")
        check(self.updates_per_step > 0, f"updates_per_step = {self.updates_per_step}; it must be positive")
        needed = self.request_steps + self._call_steps
        check(
            self.steps_ahead >= needed,
            f"online.max_steps_ahead = {self.max_steps_ahead}: runners would wait for learners and learners for runners; "
            f"use at least {needed:g}, a request's {self.request_steps} steps and those of one call's updates, or None",
        )

    @property
    def _call_steps(self) -> float:
        """That must lie ready for the updates of one call."""
        return max(0, self.updates_per_call - self.max_updates_ahead) / self.updates_per_step

    @property
    def steps_ahead(self) -> float:
        """With requests of `request_steps`; see `room_for`."""
        return self.room_for(self.request_steps)

    def room_for(self, request_steps: int) -> float:
        """Room for every runner to work on a request while one call is made and the next call's steps lie ready."""
        if self.max_steps_ahead is not None:
            return self.max_steps_ahead
        return 2 * (self.num_runners * request_steps + self.updates_per_call / self.updates_per_step)

    def pace(self, step_s: float) -> int:
        """n, so that requests and answers of all runners take the driver no more than DRIVER_SHARE of its time.

        Args:
            step_s: seconds that a runner needs for one step, planning and environment.

        Returns: whole steps of all W environments; at least `request_steps`, and no more than `max_steps_ahead` has room for.
        """
        steps = self.num_runners * ANSWER_S / DRIVER_SHARE / max(step_s, 1e-9)
        if self.max_steps_ahead is not None:  # and for all runners at once
            steps = min(steps, self.max_steps_ahead - self._call_steps, self.max_steps_ahead / self.num_runners)
            steps -= steps % self.num_envs
        return max(self.request_steps, self.num_envs * math.ceil(steps / self.num_envs))


@dataclass(frozen=True)
class Request:
    """What one runner is asked for. incarnation: how often this runner has been replaced. random: actions of the seed phase.
    version: of the weights to act with. steps: asked for, of all its environments together.
    """

    number: int
    runner: int
    incarnation: int
    random: bool
    version: int
    steps: int


@dataclass(frozen=True)
class Delivery:
    """A finished episode on its way to the learners. reference: whatever they can fetch it with; nobody here looks inside."""

    reference: Any
    steps: int


@dataclass(frozen=True)
class Call:
    """What the learners do next: take these episodes, then make `num_updates` updates (0: the queue was full)."""

    deliveries: tuple[Delivery, ...]
    num_updates: int


@dataclass
class Counts:
    """Sums over the whole run. steps = steps of delivered episodes + of unfinished ones + lost_steps, at all times."""

    steps: int = 0
    updates: int = 0
    episodes: int = 0
    delivered_steps: int = 0
    lost_steps: int = 0  # reported, of episodes that died with their runner or node, or that a resumed run dropped
    lost_runners: int = 0
    longest_episode: int = 0  # steps; no sum


class Ledger:
    """What became of every step that a runner reported, in either schedule.

    incarnations: how often each runner has been replaced. taken: steps of each since it was made. session: of all of them.
    """

    def __init__(self, num_runners: int, session: str = "") -> None:
        self.counts, self.session = Counts(), session
        self.incarnations = [0] * num_runners
        self.taken = [0] * num_runners
        self._unfinished = [0] * num_runners  # steps reported of each runner's unfinished episodes
        self._begun: list[Sequence[int]] = [()] * num_runners  # the lengths of those, where they are known

    @property
    def unfinished_steps(self) -> int:
        return sum(self._unfinished)

    def enter(self, runner: int, steps: int, lengths: Sequence[int], begun: Sequence[int] = ()) -> None:
        """A runner took `steps` steps, with which episodes of these lengths ended (begun earlier or not).

        Args:
            begun: the lengths of its unfinished episodes, one of each environment; only an adoption needs them.
        """
        delivered = sum(lengths)
        unfinished = self._unfinished[runner] + steps - delivered
        if steps < 0 or unfinished < 0:
            raise RuntimeError(f"runner {runner} delivered {-unfinished} steps more than it reported")
        self._unfinished[runner], self._begun[runner] = unfinished, begun
        self.taken[runner] += steps
        self.counts.steps += steps
        self.counts.episodes += len(lengths)
        self.counts.delivered_steps += delivered
        self.counts.longest_episode = max([self.counts.longest_episode, *lengths])

    def lose(self, runner: int) -> int:
        """The runner died with its unfinished episodes; what it delivered is untouched. Returns its new incarnation."""
        self.counts.lost_steps += self._unfinished[runner]
        self.counts.lost_runners += 1
        self._unfinished[runner], self._begun[runner], self.taken[runner] = 0, (), 0
        self.incarnations[runner] += 1
        return self.incarnations[runner]

    def lose_delivered(self, lengths: Sequence[int]) -> None:
        """Episodes of these lengths were gone, with a node, before the learners had them."""
        self.counts.episodes -= len(lengths)
        self.counts.delivered_steps -= sum(lengths)
        self.counts.lost_steps += sum(lengths)

    def get_state(self) -> dict[str, Any]:
        runners = {"unfinished": self._unfinished, "incarnations": self.incarnations, "taken": self.taken}
        return {**vars(self.counts), "session": self.session, **{name: list(each) for name, each in runners.items()}}

    def set_state(self, state: Mapping[str, Any], *, goes_on: bool, drops_unfinished: bool = False) -> None:
        """Continues with the saved runners and, unless `drops_unfinished`, their unfinished episodes; or with new ones, which
        lose them.
        """
        # Why a default: a run without runners does not know its longest episode, nor did older checkpoints
        self.counts = Counts(**{name: int(state.get(name, 0)) for name in vars(Counts())})
        if goes_on and state["incarnations"]:
            self._unfinished, self.incarnations = list(state["unfinished"]), list(state["incarnations"])
            if drops_unfinished:
                self.counts.lost_steps += self.unfinished_steps
                self._unfinished = [0] * len(self._unfinished)
            return
        self.counts.lost_steps += sum(state["unfinished"])
        self._unfinished = [0] * len(self._unfinished)
        # Why: no runner may repeat the random streams of one of the saved run
        self.incarnations = [1 + max(state["incarnations"], default=0)] * len(self.incarnations)

    def adopt(self, state: Mapping[str, Any], live: Ledger, ended: Mapping[int, Sequence[int]], num_envs: int) -> None:
        """Continues from the saved counts with the runners of `live`, which went on: what they have begun is kept, and of it
        the steps that the saved counts have are not counted again. What else was unfinished then is lost.

        Args:
            ended: by runner, lengths of its episodes that ended with its last steps; they are still to be entered.
            num_envs: W, which take their steps together.
        """
        self.set_state(state, goes_on=False)
        self.session, self.incarnations, self.taken = live.session, list(live.incarnations), list(live.taken)
        self._begun = list(live._begun)
        for runner, taken in enumerate(live.taken):
            kept = [*live._begun[runner], *ended.get(runner, ())]
            self._unfinished[runner] = sum(kept)
            self.counts.steps += sum(kept)
            if (state.get("session"), _at(state["incarnations"], runner)) == (live.session, live.incarnations[runner]):
                since = (taken - state["taken"][runner]) // num_envs  # steps of each environment
                counted = sum(max(0, length - since) for length in kept)
                self.counts.steps -= counted
                self.counts.lost_steps -= counted


def _at(values: Sequence[int], index: int) -> int | None:
    return values[index] if index < len(values) else None


@dataclass
class Lags:
    """Since the last `take_lags`: how old the weights were that acted, in updates, and how long the queue was, in episodes."""

    weight: float = 0.0
    total: float = 0.0
    largest: int = 0
    queues: int = 0  # looks at the queue
    queued: int = 0  # summed over them
    longest: int = 0

    def add(self, other: Lags) -> None:
        self.weight, self.total = self.weight + other.weight, self.total + other.total
        self.queues, self.queued = self.queues + other.queues, self.queued + other.queued
        self.largest, self.longest = max(self.largest, other.largest), max(self.longest, other.longest)

    def metrics(self) -> dict[str, float]:
        return {
            "online/policy_lag_mean": self.total / self.weight if self.weight else 0.0,
            "online/policy_lag_max": float(self.largest),
            "online/queue_mean": self.queued / self.queues if self.queues else 0.0,
            "online/queue_max": float(self.longest),
        }


class Schedule:
    """The state of one asynchronous run.

    Versions of weights are counted in updates: version v acted after v updates.
    """

    def __init__(self, limits: Limits, session: str = "") -> None:
        self.limits = limits
        self.request_steps = limits.request_steps
        self.ledger = Ledger(limits.num_runners, session)
        self.queue: deque[Delivery] = deque()
        self._in_flight: dict[int, Request] = {}
        self._idle: deque[int] = deque(range(limits.num_runners))  # those that wait longest first
        self._call: Call | None = None
        self._next_number = 0
        self._asked = 0  # steps, by the requests in flight
        self._step_s: float | None = None
        self._lags = Lags()

    @property
    def counts(self) -> Counts:
        return self.ledger.counts

    # -- what may be done now -------------------------------------------------------------------------------------------------

    @property
    def is_seeding(self) -> bool:
        """Nothing can be learned yet: too few steps, or no episode that has ended fills a window."""
        c, limits = self.counts, self.limits
        return c.steps < limits.seed_steps or (c.updates == 0 and c.longest_episode < limits.window)

    @property
    def steps_asked_for(self) -> int:
        return self._asked

    @property
    def steps_ahead(self) -> float:
        """Steps taken whose updates are not made. Negative: the learners are ahead."""
        return self.counts.steps - self.counts.updates / self.limits.updates_per_step

    def next_request(self) -> Request | None:
        """The request to send now, already counted as sent; None if every runner is busy or has to wait."""
        c, limits = self.counts, self.limits
        if not self._idle or len(self.queue) >= limits.max_queued_episodes:
            return None
        if seeding := self.is_seeding:
            # Why the second: when the steps are there and no episode is long enough, more steps are all that helps
            may_start = c.steps + self.steps_asked_for < limits.seed_steps or c.steps >= limits.seed_steps
        else:
            room = limits.room_for(self.request_steps)
            may_start = self.steps_ahead + self.steps_asked_for + self.request_steps <= room
        if not may_start:
            return None
        runner = self._idle.popleft()
        incarnation, steps = self.ledger.incarnations[runner], self.request_steps
        request = Request(self._next_number, runner, incarnation, seeding, c.updates, steps)
        self._next_number += 1
        self._asked += steps
        self._in_flight[request.number] = request
        return request

    def next_call(self) -> Call | None:
        """What the learners do now, already counted as begun; None if they are busy or have to wait.

        A call takes the whole queue. Without updates to make it is worth one only when the queue is full.
        """
        if self._call is not None:
            return None
        c, limits = self.counts, self.limits
        allowed = limits.updates_per_step * c.steps + limits.max_updates_ahead + 1e-6  # of rounding, where U is a fraction
        may_update = not self.is_seeding and c.updates + limits.updates_per_call <= allowed
        if not may_update and len(self.queue) < limits.max_queued_episodes:
            return None
        self._call = self._take_queue(limits.updates_per_call if may_update else 0)
        return self._call

    def drain(self) -> Call | None:
        """A call that only takes what is queued, before a checkpoint. None if nothing is, or the learners are busy."""
        if self._call is not None or not self.queue:
            return None
        self._call = self._take_queue(0)
        return self._call

    def _take_queue(self, num_updates: int) -> Call:
        self._lags.add(Lags(queues=1, queued=len(self.queue), longest=len(self.queue)))
        call = Call(tuple(self.queue), num_updates)
        self.queue.clear()
        return call

    # -- what has happened ----------------------------------------------------------------------------------------------------

    def receive(
        self, number: int, steps: int, deliveries: Iterable[Delivery], begun: Sequence[int] = (), seconds: float = 0.0
    ) -> None:
        """The answer to a request: the steps that were taken, and the episodes that ended with them (begun earlier or not).

        Args:
            begun: as in `Ledger.enter`. seconds: that the steps took the runner; 0: not known.
        """
        request = self._in_flight.pop(number, None)
        if request is None:
            raise RuntimeError(f"request {number} is not in flight: answered twice, or by a runner that was given up")
        self._asked -= request.steps
        self._idle.append(request.runner)
        self._enter(request.runner, steps, list(deliveries), begun)
        if not request.random:
            lag = self.counts.updates - request.version
            self._lags.weight += steps
            self._lags.total += steps * lag
            self._lags.largest = max(self._lags.largest, lag)
            if steps and seconds:
                step_s = seconds / steps
                self._step_s = step_s if self._step_s is None else MEMORY * self._step_s + (1 - MEMORY) * step_s
                self.request_steps = self.limits.pace(self._step_s)

    def deliver(self, runner: int, deliveries: Iterable[Delivery]) -> None:
        """Episodes whose steps are known already, of a runner that was adopted."""
        self._enter(runner, 0, list(deliveries), self.ledger._begun[runner])

    def _enter(self, runner: int, steps: int, deliveries: list[Delivery], begun: Sequence[int]) -> None:
        self.ledger.enter(runner, steps, [delivery.steps for delivery in deliveries], begun)
        self.queue.extend(deliveries)

    def lose(self, runner: int) -> int:
        """The runner died: its request is void, its unfinished episodes are gone. Returns its new incarnation."""
        for number in [number for number, request in self._in_flight.items() if request.runner == runner]:
            self._asked -= self._in_flight.pop(number).steps
            self._idle.append(runner)
        return self.ledger.lose(runner)

    def finish_call(self) -> int:
        """The learners have done what `next_call` said. Returns the version of their weights."""
        if self._call is None:
            raise RuntimeError("finish_call() without a call")
        self.counts.updates += self._call.num_updates
        self._call = None
        return self.counts.updates

    # -- reports --------------------------------------------------------------------------------------------------------------

    def take_lags(self) -> Lags:
        """Since the last call of this."""
        taken, self._lags = self._lags, Lags()
        return taken

    def get_state(self) -> dict[str, Any]:
        """The counts. What is queued must have been drained: a reference means nothing to another process."""
        if self.queue or self._call is not None:
            raise RuntimeError(f"{len(self.queue)} episodes are queued or with the learners; drain() first")
        return self.ledger.get_state()

    @classmethod
    def resumed(cls, limits: Limits, state: Mapping[str, Any], session: str = "") -> Schedule:
        """Continues from `get_state` with new runners: the unfinished episodes of the old ones are lost."""
        schedule = cls(limits, session)
        schedule.ledger.set_state(state, goes_on=False)
        return schedule
