"""The Algorithm of an agent that takes its own steps: who collects, who learns, when weights go out.

Episodes go from runners to learners as references; the driver reads counts and times only, but where it is the learner itself
(`num_learners` = 0).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS

from wmrl_ray import checkpoint
from wmrl_ray.core.agents import agent_config
from wmrl_ray.online import Clock, Turn, make_clock
from wmrl_ray.rllib.algorithm import AgentAlgorithm, save
from wmrl_ray.rllib.at_once import AtOnce, Kept
from wmrl_ray.rllib.failures import ActorLostError
from wmrl_ray.rllib.metrics import SampleMetrics
from wmrl_ray.rllib.online_learner import OnlineLearner, Report, sees
from wmrl_ray.rllib.placement import room_in_use
from wmrl_ray.rllib.sampling import Answer, Order, Packet, Runners, Weights
from wmrl_ray.run.config import RunConfig
from wmrl_ray.schedule import Ledger, Limits, Request, Schedule


def _take_turns(learner: OnlineLearner, until: int) -> Report:
    return learner.take_turns(until)


def _ingest_and_update(learner: OnlineLearner, **kwargs: Any) -> Report:
    return learner.ingest_and_update(**kwargs)


def _sees(learner: OnlineLearner, part: checkpoint.Part) -> bool:
    return sees(part)


def _load(learner: OnlineLearner, **kwargs: Any) -> None:
    learner.load_online(**kwargs)


def make_limits(run: RunConfig, clock: Clock) -> Limits:
    """Of an asynchronous run. Raises ConfigError where runners and learners would wait for each other."""
    online = run.online
    return Limits(
        num_runners=online.num_runners,
        request_steps=online.steps_per_turn * online.num_envs,
        updates_per_call=run.updates_per_call,
        updates_per_step=online.updates_per_step,
        seed_steps=clock.seed_steps,
        window=agent_config(run.algorithm, run.agent).window,
        max_steps_ahead=online.max_steps_ahead,
        max_updates_ahead=online.max_updates_ahead,
        max_queued_episodes=online.max_queued_episodes,
        num_envs=online.num_envs,
    )


class OnlineAlgorithm(AgentAlgorithm):
    """Each iteration is `updates_per_call` updates on every learner, and the steps that they follow.

    Without runners the learner takes the steps, in turn with its updates. With runners, by `online.schedule`: synchronous, in
    turns, with the result of the same turns in one process; or asynchronous, both at once, within the limits of
    `wmrl_ray.schedule`.

    num_steps: taken so far, of all environments. num_episodes: ended so far.
    """

    _runners: Runners | None = None
    _work: AtOnce | None = None  # of the asynchronous schedule
    _kept: Kept | None = None  # of a session whose learners were lost

    def setup(self, config: Any) -> None:
        super().setup(config)
        run = self.config.run_config()
        assert run.env is not None
        self.online = run.online
        self._learner_counts = (0, 0)  # (steps, episodes) of the learner's own collector
        self._learner_unfinished = 0  # steps of its unfinished episodes
        self._replay_steps = 0
        self._told = SampleMetrics(
            self.config.metrics_num_episodes_for_smoothing,
            has_runners=run.online.num_runners > 0,
            is_asynchronous=run.online.num_runners > 0 and run.online.schedule == "asynchronous",
        )
        self._collectors: list[dict[str, Any] | None] = []  # states in which the runners' collectors start
        self._weights = Weights([], 0)
        self._ledger = Ledger(max(1, self.online.num_runners))  # without runners: of the learner's own collector
        self._clock: Clock = make_clock(run, run.env)
        if self.online.num_runners == 0:
            return
        assert self.spaces is not None
        self._kept = _handed_over.get()
        if self._kept is None:
            self._runners = Runners(self.config, self.spaces, self.online.num_runners, room_in_use())
        else:
            self._runners = self._kept.runners
        if self.online.schedule == "asynchronous":
            self._limits = make_limits(run, self._clock)
            self._work = AtOnce(self._runners, self._request_order, self._learn_at_once, self._heard)
        self._begin_session(None)

    def _begin_session(self, counts: Mapping[str, Any] | None) -> None:
        """Nobody was asked for anything yet, and the learners' weights are known. counts: of a checkpoint."""
        self._session = uuid.uuid4().hex  # of the runners' collectors: a restore begins another
        if self._work is not None:
            if self._kept is not None:
                self._session = self._kept.session
                self._kept.settle()
                schedule = self._kept.resumed(self._limits, counts or Ledger(0).get_state())
                for _, answer, _ in self._kept.ended:
                    self._heard(answer)
            elif counts is not None:
                schedule = Schedule.resumed(self._limits, counts, self._session)
            else:
                schedule = Schedule(self._limits, self._session)
            self._work.begin(schedule)
            self._ledger = schedule.ledger
        self._account(self._learn([], 0, publish=True))

    @property
    def _schedule(self) -> Schedule | None:
        return None if self._work is None else self._work.schedule

    @property
    def num_steps(self) -> int:
        return self._learner_counts[0] if self._runners is None else self._ledger.counts.steps

    @property
    def num_episodes(self) -> int:
        return self._learner_counts[1] if self._runners is None else self._ledger.counts.episodes

    # -- the schedules --------------------------------------------------------------------------------------------------------

    def training_step(self) -> None:
        until = self.num_updates + self.config.updates_per_call
        self._kept = None  # they have begun to go on here
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            if self._runners is None:
                self._account(self.on_learners(_take_turns, until=until))
                self.num_updates = until
            elif self._work is None:
                self._in_turns(until)
            else:
                while self.num_updates < until:
                    self._account(self._work.until_call())
                    self.num_updates = self._work.schedule.counts.updates
        self.log_trained()
        if self._schedule is not None:
            self._told.add_lags(self._schedule.take_lags())
        self._told.end_iteration(self.metrics, self._counts())

    def step(self) -> dict[str, Any]:
        return {**super().step(), "num_steps": self.num_steps, "num_episodes": self.num_episodes}

    def _in_turns(self, until: int) -> None:
        """Steps of all runners, then updates of all learners, and so on."""
        while self.num_updates < until:
            turn = self._clock.turn(self.num_updates, self.num_steps, until)
            packets = self._collect(turn) if turn.steps else []
            if packets or turn.updates:
                self._account(self._learn(packets, turn.updates, publish=turn.updates > 0))
            self.num_updates += turn.updates

    def _collect(self, turn: Turn) -> list[Packet]:
        """The turn's steps of every runner; their episodes, in the order of the runners."""
        assert self._runners is not None
        packets: list[list[Packet]] = [[] for _ in range(self.online.num_runners)]
        left = dict.fromkeys(range(self.online.num_runners), turn.steps)  # an answer comes as soon as an episode ends
        while left:
            sent = {runner: self._runners.ask(runner, self._order(runner, n, turn.random)) for runner, n in left.items()}
            deadlines = {runner: self._runners.deadline(runner) for runner in sent}
            for runner, deadline in deadlines.items():
                answer = self._runners.answer(runner, sent[runner][0], deadline)
                if answer is None:
                    self._ledger.lose(runner)  # and the one that replaces it is asked for these steps next
                    continue
                self._ledger.enter(runner, answer.statistics.steps, answer.lengths)
                self._told.add_answer(answer)
                if answer.lengths:
                    packets[runner].append(Packet([sent[runner][1]], answer.lengths))
                left[runner] -= answer.statistics.steps // self.online.num_envs
            left = {runner: steps for runner, steps in left.items() if steps > 0}
        self._collectors = []
        return [packet for of_runner in packets for packet in of_runner]

    def _order(self, runner: int, num_steps: int, random: bool) -> Order:
        incarnation = self._ledger.incarnations[runner]
        seed = (self.config.seed, runner, incarnation) if incarnation else (self.config.seed, runner)
        state = self._collectors[runner] if self._collectors else None
        saved = None
        if state is not None and incarnation == self._saved_incarnations[runner]:
            saved = (state, self.online.replay_unfinished)
        return Order(num_steps, self._session, seed, None if random else self._weights, saved)

    def _request_order(self, request: Request) -> Order:
        return self._order(request.runner, request.steps // self.online.num_envs, request.random)

    def _heard(self, answer: Answer) -> None:
        self._told.add_answer(answer)

    # -- learners -------------------------------------------------------------------------------------------------------------

    def _learn_at_once(self, packets: Sequence[Packet], num_updates: int) -> list[Report]:
        return self._learn(packets, num_updates, publish=num_updates > 0)

    def _learn(self, packets: Sequence[Packet], num_updates: int, *, publish: bool) -> list[Report]:
        return self.on_learners(
            _ingest_and_update,
            packets=packets,
            num_updates=num_updates,
            num_steps=self.num_steps,
            publish=publish,
        )

    def _account(self, reports: Sequence[Report]) -> None:
        first = reports[0]
        if any(report.lost != first.lost for report in reports):
            raise ActorLostError("a node is gone with episodes that some learners had fetched and others had not")
        self._ledger.lose_delivered(first.lost)
        if first.metrics is not None:
            self.metrics.aggregate([report.metrics for report in reports], key=LEARNER_RESULTS)
        if first.weights is not None:
            self._weights = first.weights
        self._replay_steps = first.replay_steps
        self._learner_counts, self._learner_unfinished = (first.num_steps, first.num_episodes), first.unfinished_steps
        self._told.add_report(first)

    def _counts(self) -> dict[str, int]:
        counts = {
            "online/steps": self.num_steps,
            "online/episodes": self.num_episodes,
            "online/replay_steps": self._replay_steps,
        }
        if self._runners is not None:
            counts |= {f"online/{name}": getattr(self._ledger.counts, name) for name in ("lost_steps", "lost_runners")}
        if self._schedule is not None:
            counts["online/request_steps"] = self._schedule.request_steps
        return counts

    def take_metrics(self) -> dict[str, float]:
        return {name: float(count) for name, count in self._counts().items()} | self._told.take()

    def totals(self) -> dict[str, int]:
        return {"steps": self.num_steps, "episodes": self.num_episodes}

    def cleanup(self) -> None:
        if self._work is not None:
            self._work.stop()
        if self._runners is not None:
            self._runners.stop()
        super().cleanup()

    def hand_over(self) -> Kept | None:
        """The runners of an asynchronous run whose learners were lost; no longer this algorithm's. None: they have nothing that
        another session could go on with.
        """
        if self._work is None or self._runners is None:
            return None
        kept = self._kept or Kept(self._runners, self._session, self._ledger, self._work.waiting)
        self._runners = None
        return kept

    # -- checkpoints ----------------------------------------------------------------------------------------------------------

    def policy_tree(self, folder: Path | None = None) -> dict[str, Any]:
        """As offline, and `online`: the steps' counts; `collectors`: states of those that can go on exactly (synchronous)."""
        self._drain()
        ranks = self.on_learners(save, folder=folder)
        if self._runners is None:
            collectors = [ranks[0]["collector"]]
        elif self._schedule is None and self.num_steps > 0:
            # Why not the former when they drop their unfinished episodes: the ledger has counted those as lost
            collectors = self._collectors if self.online.replay_unfinished else []
            collectors = collectors or self._collector_states()
        else:
            collectors = []
        streams = [rank["streams"] for rank in ranks]
        return {"agent": ranks[0]["agent"], "streams": streams, "collectors": collectors, "online": self._counts_state()}

    def load_policy_tree(self, tree: dict[str, Any]) -> None:
        counts, collectors = tree["online"], tree["collectors"]
        replay = tree["streams"][0]["replay"]
        if isinstance(replay, checkpoint.Part) and not all(self.on_learners(_sees, part=replay)):
            tree["streams"][0]["replay"] = checkpoint.read_part(replay)
        own = collectors[0] if self._runners is None and len(collectors) == 1 else None
        taken = (counts["steps"], counts["episodes"])
        incarnation = 1 + max(counts["incarnations"], default=0)
        self.on_learners(
            _load, agent_state=tree["agent"], streams=tree["streams"], collector=own, taken=taken, incarnation=incarnation
        )
        self._resume(counts, collectors, own is not None)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        self._drain()
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "online": self._counts_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        # Why the last: without runners the learner's state, if it is here, has its collector's
        self._resume(state["online"], [], COMPONENT_LEARNER_GROUP in state and state["online"]["by_learner"])

    def _drain(self) -> None:
        if self._work is not None and (reports := self._work.drain()) is not None:
            self._account(reports)

    def _counts_state(self) -> dict[str, Any]:
        found = {
            **self._ledger.get_state(),
            "updates": self.num_updates,
            "by_learner": self._runners is None,
            **self._told.get_state(),
        }
        if self._runners is None:
            (steps, episodes), unfinished = self._learner_counts, self._learner_unfinished
            found |= {"steps": steps, "episodes": episodes, "unfinished": [unfinished]}
            found["delivered_steps"] = steps - unfinished - found["lost_steps"]
        return found

    def _collector_states(self) -> list[dict[str, Any] | None]:
        assert self._runners is not None
        states, dead = self._runners.collector_states(self._session)
        for runner in dead:  # Why not every None: a runner that was not asked yet has nothing to lose
            self._ledger.lose(runner)
        return states

    def _resume(self, counts: dict[str, Any], collectors: list[dict[str, Any] | None], own_goes_on: bool) -> None:
        """own_goes_on: the learner's collector, of a run without runners, was restored."""
        self._told.set_state(counts)
        drops = not self.online.replay_unfinished
        if self._runners is None:
            self._learner_counts = (counts["steps"], counts["episodes"])
            self._ledger.set_state(counts, goes_on=own_goes_on, drops_unfinished=drops)
            self._learner_unfinished = self._ledger.unfinished_steps
            return
        goes_on = self._work is None and len(collectors) == len(counts["incarnations"]) == self.online.num_runners
        if self._work is None:
            self._ledger.set_state(counts, goes_on=goes_on, drops_unfinished=drops)
        else:  # Why: the schedule would make those that are missing once more
            made = int(counts["updates"])
            assert made == self.num_updates, f"{made} updates in the checkpoint's counts, {self.num_updates} in its algorithm"
        self._collectors = collectors if goes_on else []
        self._saved_incarnations = list(self._ledger.incarnations)
        self._begin_session(counts)


_handed_over: ContextVar[Kept | None] = ContextVar("handed_over", default=None)


@contextlib.contextmanager
def taking_over(kept: Kept | None) -> Iterator[None]:
    """An algorithm that is built inside goes on with these runners, in place of new ones."""
    token = _handed_over.set(kept)
    try:
        yield
    finally:
        _handed_over.reset(token)


class TDMPC2(OnlineAlgorithm):
    """TD-MPC2."""


class IQSAC(OnlineAlgorithm):
    """IQ-Learn on soft actor-critic: imitation without a world model."""


class IQMPC(OnlineAlgorithm):
    """IQ-MPC: imitation by a world model without rewards."""
