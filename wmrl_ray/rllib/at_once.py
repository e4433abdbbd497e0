"""The asynchronous schedule at work: what runners and learners are busy with, and what comes next."""

from __future__ import annotations

import concurrent.futures
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from wmrl_ray.rllib.failures import ActorLostError
from wmrl_ray.rllib.online_learner import Report
from wmrl_ray.rllib.sampling import Answer, Order, Packet, Runners
from wmrl_ray.schedule import Delivery, Ledger, Limits, Request, Schedule

Future = concurrent.futures.Future[Any]


@dataclass
class Asked:
    """request: of the schedule. episodes: reference to those that the answer will have. deadline: of `Runners.answer`."""

    request: Request
    episodes: Any
    deadline: float


@dataclass
class Kept:
    """Runners whose learners were lost: their actors, with the unfinished episodes in their environments, and what they did.

    session: of their collectors. ledger: of that session. waiting: what they were busy with. ended: what came of that.
    """

    runners: Runners
    session: str
    ledger: Ledger
    waiting: dict[Future, Asked]
    ended: list[tuple[int, Answer, Packet]] = field(default_factory=list)

    def settle(self) -> None:
        """Waits until everybody is at rest. Who dies, or hangs, is replaced."""
        for future, asked in self.waiting.items():
            runner = asked.request.runner
            try:
                answer = self.runners.answer(runner, future, asked.deadline)
            except ActorLostError:
                continue  # it misses what a dead learner had, weights for one, and has done nothing
            if answer is None:
                self.ledger.lose(runner)
                continue
            self.ledger.enter(runner, answer.statistics.steps, answer.lengths, answer.unfinished)
            self.ended.append((runner, answer, Packet([asked.episodes], answer.lengths)))
        self.waiting = {}

    def resumed(self, limits: Limits, saved: Mapping[str, Any]) -> Schedule:
        """The schedule that goes on from the saved counts with these runners, and with the episodes that they had begun."""
        ended: dict[int, list[int]] = {}
        for runner, answer, _ in self.ended:
            ended.setdefault(runner, []).extend(answer.lengths)
        schedule = Schedule(limits)
        schedule.ledger.adopt(saved, self.ledger, ended, limits.num_envs)
        for runner, answer, packet in self.ended:
            schedule.deliver(runner, _deliveries(answer, packet.reference[0]))
        return schedule


class AtOnce:
    """Runners and learners at work, each as far as the schedule lets it. The cost of an answer does not grow with the number of
    runners: it comes through a queue, and the one that is waited for longest is the first of those that are waited for.
    """

    def __init__(
        self,
        runners: Runners,
        order: Callable[[Request], Order],
        learn: Callable[[Sequence[Packet], int], list[Report]],
        heard: Callable[[Answer], None],
    ) -> None:
        """
        Args:
            order: what a runner is sent for a request.
            learn: the learners' call with these episodes and so many updates; in a thread of its own.
            heard: told of every answer.
        """
        self.runners, self._order, self._learn, self._heard = runners, order, learn, heard
        threads = torch.get_num_threads()
        # Why a thread: learners, the driver's own too, work while the driver serves the runners
        self._pool = concurrent.futures.ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(threads))
        self.schedule: Schedule
        self.waiting: dict[Future, Asked] = {}

    def begin(self, schedule: Schedule) -> None:
        """Nobody was asked for anything yet."""
        # Why not wait for what is under way after a restore: its answers are of another run, and each actor works in order
        self.schedule, self.waiting = schedule, {}
        self._learning: Future | None = None
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()

    def until_call(self) -> list[Report]:
        """Works until the learners' next call has ended. Returns its reports, already counted."""
        while True:
            self._ask()
            for future in self._next():
                if future is self._learning:
                    self._learning = None
                    reports = future.result()
                    self.schedule.finish_call()
                    return reports
                if future in self.waiting:  # else an answer that came too late
                    self._receive(future)

    def drain(self) -> list[Report] | None:
        """What is queued goes to the learners: a reference means nothing to another process. None if nothing is."""
        if (call := self.schedule.drain()) is None:
            return None
        reports = self._learn(_packets(call.deliveries), 0)
        self.schedule.finish_call()
        return reports

    def stop(self) -> None:
        self._pool.shutdown(wait=True)

    def _ask(self) -> None:
        """All that the schedule allows now."""
        while (request := self.schedule.next_request()) is not None:
            future, episodes = self.runners.ask(request.runner, self._order(request))
            self.waiting[future] = Asked(request, episodes, self.runners.deadline(request.runner))
            future.add_done_callback(self._ended.put)
        if (call := self.schedule.next_call()) is not None:
            self._learning = self._pool.submit(partial(self._learn, _packets(call.deliveries), call.num_updates))
            self._learning.add_done_callback(self._ended.put)
        assert self.waiting or self._learning is not None, "everybody waits: Limits has let this pass"

    def _next(self) -> list[Future]:
        """What has ended, or has not in its time; waits for one of them."""
        first = next(iter(self.waiting), None)  # asked before all others, so that its time ends first, or it starts
        left_s = None if first is None else max(0.0, self.waiting[first].deadline - time.monotonic())
        try:
            return [self._ended.get(timeout=left_s)]
        except queue.Empty:
            assert first is not None
            return [first]

    def _receive(self, future: Future) -> None:
        asked = self.waiting.pop(future)
        answer = self.runners.answer(asked.request.runner, future, asked.deadline)
        if answer is None:
            self.schedule.lose(asked.request.runner)
            return
        seconds = answer.statistics.act_s + answer.statistics.env_s
        self.schedule.receive(
            asked.request.number, answer.statistics.steps, _deliveries(answer, asked.episodes), answer.unfinished, seconds
        )
        self._heard(answer)


def _deliveries(answer: Answer, episodes: Any) -> list[Delivery]:
    """One object holds all episodes of an answer: it travels with the first of them."""
    packets = [Packet([episodes], answer.lengths), *[None] * len(answer.lengths)]
    return [Delivery(packet, steps) for packet, steps in zip(packets, answer.lengths, strict=False)]


def _packets(deliveries: Sequence[Delivery]) -> list[Packet]:
    return [delivery.reference for delivery in deliveries if delivery.reference is not None]
