"""The asynchronous schedule, driven by random orders of events: bounds, ratio, nothing lost or counted twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmrl_ray.config import ConfigError
from wmrl_ray.schedule import ANSWER_S, DRIVER_SHARE, Call, Delivery, Ledger, Limits, Request, Schedule


class World:
    """Runners and learners that answer in any order. Every episode has a number of its own as reference.

    delivered: the references of episodes that runners delivered, in order. taken: those that learners took. lost: the
    deliveries among those that were gone by then, as with a node. deaths, losses: how likely a runner dies with a request, and
    a delivery is lost.
    """

    def __init__(
        self,
        limits: Limits,
        seed: int,
        episode_steps: tuple[int, ...] = (7, 30),
        deaths: float = 0.0,
        losses: float = 0.0,
    ) -> None:
        self.schedule, self.limits = Schedule(limits), limits
        self.rng, self.episode_steps, self.deaths, self.losses = random.Random(seed), episode_steps, deaths, losses
        self.requests: dict[int, Request] = {}
        self.call: Call | None = None
        self.progress = [0] * limits.num_runners  # steps of each runner's unfinished episode
        self.lengths = [self.rng.choice(episode_steps) for _ in range(limits.num_runners)]
        self.delivered: list[int] = []
        self.delivered_steps = 0
        self.taken: list[int] = []
        self.lost: list[Delivery] = []

    def ask(self) -> None:
        """Everything the schedule allows now is begun."""
        while (request := self.schedule.next_request()) is not None:
            assert request.runner not in {other.runner for other in self.requests.values()}
            self.requests[request.number] = request
        if self.call is None and (call := self.schedule.next_call()) is not None:
            self.call = call
            self.taken += [delivery.reference for delivery in call.deliveries]

    def happen(self) -> None:
        """One thing that is under way ends."""
        choices: list[Any] = [*self.requests, *(["call"] if self.call else [])]
        assert choices, "deadlock: nobody works and nobody may begin"
        if (what := self.rng.choice(choices)) == "call":
            assert self.call is not None
            lost = [delivery for delivery in self.call.deliveries if self.rng.random() < self.losses]
            self.lost += lost
            self.schedule.ledger.lose_delivered([delivery.steps for delivery in lost])
            self.schedule.finish_call()
            self.call = None
            return
        request = self.requests.pop(what)
        if self.rng.random() < self.deaths:
            self.schedule.lose(request.runner)
            self.progress[request.runner] = 0
            return
        episodes = self.step(request.runner)
        self.schedule.receive(request.number, self.limits.request_steps, episodes)

    def step(self, runner: int) -> list[Delivery]:
        self.progress[runner] += self.limits.request_steps
        episodes = []
        while self.progress[runner] >= self.lengths[runner]:
            self.progress[runner] -= self.lengths[runner]
            self.delivered.append(len(self.delivered))
            self.delivered_steps += self.lengths[runner]
            episodes.append(Delivery(self.delivered[-1], self.lengths[runner]))
            self.lengths[runner] = self.rng.choice(self.episode_steps)
        return episodes

    def check(self) -> None:
        schedule, limits, counts = self.schedule, self.limits, self.schedule.counts
        assert counts.steps == counts.delivered_steps + schedule.ledger.unfinished_steps + counts.lost_steps
        assert schedule.ledger.unfinished_steps == sum(self.progress)
        assert counts.episodes == len(self.delivered) - len(self.lost)
        assert counts.delivered_steps == self.delivered_steps - sum(delivery.steps for delivery in self.lost)
        assert self.taken + [delivery.reference for delivery in schedule.queue] == self.delivered  # once each, in order
        assert counts.updates <= limits.updates_per_step * counts.steps + limits.max_updates_ahead + 1e-6
        if counts.steps < limits.seed_steps or not self.delivered:
            assert counts.updates == 0


limits = st.builds(
    Limits,
    num_runners=st.integers(1, 9),
    request_steps=st.integers(1, 40),
    updates_per_call=st.integers(1, 30),
    updates_per_step=st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]),
    seed_steps=st.integers(0, 200),
    max_updates_ahead=st.sampled_from([0, 10]),
    max_queued_episodes=st.integers(1, 10),
)
rates = st.sampled_from([0.0, 0.1])


@given(limits=limits, seed=st.integers(0, 10_000), deaths=rates, losses=rates, tight=st.booleans())
def test_in_any_order_of_events_bounds_hold_nothing_is_lost_or_taken_twice_and_nobody_waits_for_ever(
    limits: Limits, seed: int, deaths: float, losses: float, tight: bool
) -> None:
    if tight:
        late = max(0, limits.updates_per_call - limits.max_updates_ahead)
        least = limits.request_steps + late / limits.updates_per_step
        limits = Limits(**{**vars(limits), "max_steps_ahead": int(least) + 1})
    world = World(limits, seed, deaths=deaths, losses=losses)
    longest_answer = 0
    for _ in range(300):
        queued_before = len(world.schedule.queue)
        world.ask()
        world.check()
        if not all(request.random for request in world.requests.values()):
            assert world.schedule.steps_ahead + world.schedule.steps_asked_for <= limits.steps_ahead + 1e-6
        world.happen()
        world.check()
        longest_answer = max(longest_answer, len(world.schedule.queue) - queued_before)
        # a runner is asked only below the bound, so only answers that were under way can pass it
        assert len(world.schedule.queue) < limits.max_queued_episodes + limits.num_runners * max(1, longest_answer)
    assert world.schedule.counts.steps > 0


@settings(max_examples=30)
@given(updates_per_step=st.sampled_from([0.1, 0.5, 1.0, 2.0]), runners=st.sampled_from([1, 8]), seed=st.integers(0, 100))
def test_updates_per_step_converge_to_u_whoever_is_faster(updates_per_step: float, runners: int, seed: int) -> None:
    bounds = Limits(runners, 10, 8, updates_per_step, seed_steps=100, max_queued_episodes=1000)
    world = World(bounds, seed)
    while world.schedule.counts.updates < 800:
        world.ask()
        world.happen()
    counts = world.schedule.counts
    ratio = counts.updates / counts.steps
    assert updates_per_step * (1 - 1.2 * bounds.steps_ahead / counts.steps) <= ratio <= updates_per_step


def test_the_seed_phase_is_random_and_ends_with_its_updates_before_more_steps_are_taken() -> None:
    schedule = Schedule(Limits(2, request_steps=10, updates_per_call=5, seed_steps=30))
    first, second = schedule.next_request(), schedule.next_request()
    assert first is not None
    assert second is not None
    assert first.random
    assert second.random
    schedule.receive(first.number, 10, [Delivery("a", 10)])
    third = schedule.next_request()
    assert third is not None
    assert schedule.next_request() is None  # 10 taken and 20 asked for: the seed is complete when they come
    schedule.receive(third.number, 10, [Delivery("b", 10)])
    assert schedule.next_call() is None
    assert schedule.next_request() is None
    schedule.receive(second.number, 10, [Delivery("c", 10)])
    assert not schedule.is_seeding
    for done in range(6):  # 30 updates are due
        request = schedule.next_request()
        if done == 0:  # 2 (2 10 + 5) steps ahead are allowed, 30 are taken, one request is 10 more
            assert request is not None
            assert not request.random
            in_flight = request
        call = schedule.next_call()
        assert call == Call(tuple(Delivery(name, 10) for name in "abc") if done == 0 else (), 5)
        assert schedule.finish_call() == 5 * (done + 1)
    assert schedule.next_call() is None
    schedule.receive(in_flight.number, 10, [])
    assert schedule.next_call() == Call((), 5)
    lag = schedule.take_lags().metrics()
    assert lag["online/policy_lag_mean"] == lag["online/policy_lag_max"] == 30
    assert lag["online/queue_max"] == 3
    assert schedule.take_lags().metrics()["online/policy_lag_max"] == 0


def test_an_episode_longer_than_the_seed_keeps_everybody_seeding_until_it_ends() -> None:
    schedule = Schedule(Limits(1, request_steps=10, updates_per_call=5, seed_steps=20))
    for _ in range(4):
        request = schedule.next_request()
        assert request is not None
        assert request.random
        assert schedule.next_call() is None
        schedule.receive(request.number, 10, [])
    request = schedule.next_request()
    assert request is not None
    schedule.receive(request.number, 10, [Delivery("long", 45)])
    assert schedule.next_call() == Call((Delivery("long", 45),), 5)
    assert schedule.ledger.unfinished_steps == 5


def test_a_full_queue_stops_requests_and_is_taken_without_updates() -> None:
    schedule = Schedule(Limits(2, request_steps=10, updates_per_call=100, max_queued_episodes=2))
    first, second = schedule.next_request(), schedule.next_request()
    assert first is not None
    assert second is not None
    schedule.receive(first.number, 10, [Delivery(0, 5), Delivery(1, 5)])
    assert schedule.next_request() is None
    assert schedule.next_call() == Call((Delivery(0, 5), Delivery(1, 5)), 0)
    assert schedule.next_request() is not None
    assert schedule.finish_call() == 0


def test_the_death_of_a_runner_voids_its_request_and_its_unfinished_steps_only() -> None:
    schedule = Schedule(Limits(2, request_steps=10, updates_per_call=5))
    first, second = schedule.next_request(), schedule.next_request()
    assert first is not None
    assert second is not None
    schedule.receive(first.number, 10, [Delivery("a", 6)])
    again = schedule.next_request()
    assert again is not None
    assert (again.runner, again.incarnation) == (0, 0)
    assert schedule.lose(0) == 1
    assert schedule.counts.lost_steps == 4
    assert [delivery.reference for delivery in schedule.queue] == ["a"]
    with pytest.raises(RuntimeError, match="request 2 is not in flight"):
        schedule.receive(again.number, 10, [])
    replaced = schedule.next_request()
    assert replaced is not None
    assert (replaced.runner, replaced.incarnation) == (0, 1)
    schedule.receive(second.number, 10, [])
    with pytest.raises(RuntimeError, match="is not in flight"):
        schedule.receive(second.number, 10, [])
    assert schedule.counts.steps == 20


def test_a_resumed_schedule_has_the_counts_and_other_incarnations() -> None:
    schedule = Schedule(Limits(2, request_steps=10, updates_per_call=5))
    request = schedule.next_request()
    assert request is not None
    schedule.receive(request.number, 10, [Delivery("a", 6)])
    with pytest.raises(RuntimeError, match="1 episodes are queued"):
        schedule.get_state()
    assert schedule.drain() == Call((Delivery("a", 6),), 0)
    with pytest.raises(RuntimeError, match="drain"):
        schedule.get_state()
    schedule.finish_call()
    assert schedule.drain() is None
    resumed = Schedule.resumed(Limits(3, request_steps=10, updates_per_call=5), schedule.get_state())
    assert (resumed.counts.steps, resumed.counts.episodes, resumed.counts.lost_steps) == (10, 1, 4)
    call = resumed.next_call()
    assert call is not None
    assert call.num_updates == 5
    following = resumed.next_request()
    assert following is not None
    assert following.incarnation == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps_ahead": 14}, "max_steps_ahead = 14: runners would wait for learners .* use at least 15, a request's 10"),
        ({"updates_per_step": 0.0}, "updates_per_step = 0.0; it must be positive"),
        ({"request_steps": 0}, "request_steps = 0; it must be at least 1"),
        ({"max_updates_ahead": -1}, "max_updates_ahead = -1; it must not be negative"),
    ],
)
def test_limits_that_cannot_work_are_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Limits(**{"num_runners": 2, "request_steps": 10, "updates_per_call": 5, **change})
    assert "\n" not in str(caught.value)


def test_seeding_goes_on_until_an_episode_fills_a_window() -> None:
    schedule = Schedule(Limits(1, request_steps=10, updates_per_call=5, seed_steps=20, window=4))
    for lengths in ([3, 3], [3, 3, 3], [4]):
        assert schedule.next_call() is None
        request = schedule.next_request()
        assert request is not None
        assert request.random
        schedule.receive(request.number, 10, [Delivery(None, steps) for steps in lengths])
    call = schedule.next_call()
    assert call is not None
    assert call.num_updates == 5


def test_a_ledger_that_goes_on_without_its_unfinished_episodes_counts_them_as_lost() -> None:
    ledger, kept, dropped = (Ledger(2) for _ in range(3))
    ledger.enter(0, 10, [6])
    ledger.enter(1, 10, [])
    kept.set_state(ledger.get_state(), goes_on=True)
    assert (kept.unfinished_steps, kept.counts.lost_steps) == (14, 0)
    dropped.set_state(ledger.get_state(), goes_on=True, drops_unfinished=True)
    assert (dropped.unfinished_steps, dropped.counts.lost_steps, dropped.incarnations) == (0, 14, [0, 0])
    dropped.enter(1, 10, [9])  # of a new episode
    assert dropped.counts.steps == dropped.counts.delivered_steps + dropped.unfinished_steps + dropped.counts.lost_steps


def test_delivered_episodes_that_are_gone_with_a_node_count_as_lost_and_not_as_delivered() -> None:
    ledger = Ledger(2)
    ledger.enter(0, 20, [6, 9])
    ledger.enter(1, 10, [7])
    ledger.lose_delivered([9, 7])
    counts = ledger.counts
    assert (counts.steps, counts.episodes, counts.delivered_steps, counts.lost_steps) == (30, 1, 6, 16)
    assert (ledger.unfinished_steps, counts.lost_runners, ledger.incarnations) == (8, 0, [0, 0])
    ledger.lose_delivered([])
    ledger.enter(0, 5, [10])  # the runner's unfinished episode is untouched
    assert (counts.episodes, counts.delivered_steps, counts.lost_steps) == (2, 16, 16)


class Slots:
    """One runner's environments with episodes of random lengths; who took which step when is known."""

    def __init__(self, num_envs: int, rng: random.Random) -> None:
        self.rng, self.time = rng, 0
        self.begun: list[tuple[int, int]] = [(0, rng.randint(1, 9)) for _ in range(num_envs)]  # (when, how long it will be)

    def lengths(self) -> list[int]:
        return [self.time - when for when, _ in self.begun]

    def collect(self, num_steps: int) -> tuple[int, list[tuple[int, int]]]:
        """Up to the first end of an episode. (steps of all, the episodes that ended)."""
        before = self.time
        for _ in range(num_steps):
            self.time += 1
            if ended := [each for each in self.begun if self.time - each[0] == each[1]]:
                self.begun = [(self.time, self.rng.randint(1, 9)) if each in ended else each for each in self.begun]
                return (self.time - before) * len(self.begun), ended
        return (self.time - before) * len(self.begun), []


@given(seed=st.integers(0, 10_000), num_envs=st.integers(1, 4), after=st.integers(0, 8), ends=st.booleans(), dies=st.booleans())
def test_what_healthy_runners_have_begun_is_kept_and_no_step_of_it_is_counted_twice(
    seed: int, num_envs: int, after: int, ends: bool, dies: bool
) -> None:
    """A checkpoint, `after` answers more, the learners' death with the last answer under way or not, and the adoption."""
    rng = random.Random(seed)
    limits = Limits(2, num_envs, 4, num_envs=num_envs)
    live, slots = Ledger(2, "s"), [Slots(num_envs, rng) for _ in range(2)]

    def answer(runner: int) -> list[tuple[int, int]]:
        steps, ended = slots[runner].collect(rng.randint(1, 6))
        lengths = [length for _, length in ended]
        live.enter(runner, steps, lengths, slots[runner].lengths())
        return ended

    for _ in range(rng.randint(0, 12)):
        answer(rng.randrange(2))
    saved, then, unfinished = live.get_state(), [each.time for each in slots], [each.lengths() for each in slots]
    for _ in range(after):
        answer(rng.randrange(2))
    if dies:  # and another has taken its place
        live.lose(1)
        slots[1], then[1] = Slots(num_envs, rng), 0
        answer(1)
    last = answer(0) if ends else []
    schedule = Schedule(limits)
    schedule.ledger.adopt(saved, live, {0: [length for _, length in last]}, num_envs)
    schedule.deliver(0, [Delivery(None, length) for _, length in last])

    kept = [(0, when, length) for when, length in last]
    kept += [(i, when, slots[i].time - when) for i in range(2) for when, _ in slots[i].begun]
    old = [
        0 if dies and i == 1 else max(0, min(then[i] - when, length)) for i, when, length in kept
    ]  # of it, when it was saved
    counts = schedule.counts
    assert counts.lost_steps == sum(map(sum, unfinished)) - sum(old)
    assert counts.steps == saved["steps"] + sum(length for *_, length in kept) - sum(old)
    assert counts.steps == counts.delivered_steps + schedule.ledger.unfinished_steps + counts.lost_steps
    assert schedule.ledger.unfinished_steps == sum(sum(each.lengths()) for each in slots)
    assert counts.episodes == saved["episodes"] + len(last)
    assert schedule.ledger.incarnations == live.incarnations == [0, int(dies)]
    (again := Ledger(2)).adopt(schedule.ledger.get_state(), schedule.ledger, {}, num_envs)  # at rest nothing changes
    assert again.counts == counts and again.unfinished_steps == schedule.ledger.unfinished_steps


def test_of_another_session_nothing_is_taken_for_the_same_steps() -> None:
    before, live = Ledger(1, "before"), Ledger(1, "now")
    before.enter(0, 8, [], [8])
    live.enter(0, 3, [], [3])
    (found := Ledger(1)).adopt(before.get_state(), live, {}, 1)
    assert (found.counts.steps, found.counts.lost_steps, found.unfinished_steps) == (11, 8, 3)


@pytest.mark.parametrize(
    ("runners", "step_s", "given", "expected"),
    [
        (128, 0.060, {}, 7),  # planning
        (4, 0.060, {}, 1),
        (128, 0.001, {}, 384),  # no planning
        (128, 0.060, {"request_steps": 25}, 25),  # what was asked for is the least
        (128, 0.001, {"num_envs": 10, "request_steps": 10}, 390),  # whole steps of all environments
        (128, 0.001, {"max_steps_ahead": 1024}, 8),  # room for all of them
    ],
)
def test_requests_are_so_long_that_they_leave_the_driver_alone(
    runners: int, step_s: float, given: dict[str, int], expected: int
) -> None:
    limits = Limits(**{"num_runners": runners, "request_steps": 1, "updates_per_call": 16, **given})
    steps = limits.pace(step_s)
    assert steps == expected and steps % limits.num_envs == 0
    if "max_steps_ahead" not in given:
        assert runners / (steps * step_s) * ANSWER_S <= DRIVER_SHARE + 1e-9


def test_the_pace_follows_what_planning_takes_and_not_the_random_steps() -> None:
    schedule = Schedule(Limits(8, 1, 4, seed_steps=8))
    requests = [schedule.next_request() for _ in range(8)]
    assert all(request is not None and request.random and request.steps == 1 for request in requests)
    for request in requests:
        assert request is not None
        schedule.receive(request.number, 1, [Delivery(None, 1)], seconds=1e-6)
    assert (schedule.request_steps, schedule.steps_asked_for) == (1, 0)
    request = schedule.next_request()
    assert request is not None and not request.random
    schedule.receive(request.number, 1, [], seconds=0.004)
    assert schedule.request_steps == Limits(8, 1, 4).pace(0.004) == 6
    assert schedule.request_steps == 6
    request = schedule.next_request()
    assert request is not None and request.steps == schedule.steps_asked_for == 6
    schedule.lose(request.runner)
    assert schedule.steps_asked_for == 0
