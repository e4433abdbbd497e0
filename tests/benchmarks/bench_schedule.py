"""Where an asynchronous run first gets stuck: driver, learners, weights or runners, for 8, 32 and 128 runners.

python -m tests.benchmarks.bench_schedule

A discrete-event simulation around the real `wmrl_ray.schedule`; no such cluster is started. Its constants are measured
here, with two actors of a local Ray (what a message and 20 MB of weights cost), or assumed and printed as such (planning, a
GPU's update, the network between nodes). Requests are as long as `Limits.pace` makes them from the seconds of a step.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import heapq
import itertools
import queue
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.benchmarks.harness import machine, table
from wmrl_ray.run.config import OnlineConfig
from wmrl_ray.schedule import ANSWER_S, Call, Delivery, Limits, Request, Schedule

WEIGHTS_MB = 20  # TD-MPC2's 5M parameters
UPDATES_PER_CALL = 16


@dataclass(frozen=True)
class Costs:
    """Seconds. The first six are measured; the rest is the scenario."""

    send: float  # the driver submits one request
    answer: float  # the driver takes one answer
    latency: float  # a message under way, one direction
    call: float  # the driver starts a call of the learners and takes its result
    put: float  # a learner publishes its weights
    load: float  # a runner on the same node takes them
    ingest: float  # a learner takes one packet of episodes
    plan: float = 0.060  # one vector step: planning and environment; a GPU's or a small model's
    update: float = 0.015
    transfer: float = 0.016  # of the weights to another node: 20 MB at 10 Gbit/s, one after another from the learner's
    runners_per_node: int = 16


@dataclass(frozen=True)
class Outcome:
    """Per second, and busy shares of the time simulated."""

    steps: float
    updates: float
    driver: float
    learner: float
    uplink: float
    runners: float
    lag: float
    request: int  # steps, in the end

    @property
    def bottleneck(self) -> str:
        shares = {"driver": self.driver, "learner": self.learner, "network": self.uplink, "runners": self.runners}
        return max(shares, key=lambda name: shares[name])


class Simulation:
    """One run: the driver serves one message at a time; the learners' calls and the runners go on beside it."""

    def __init__(self, limits: Limits, costs: Costs, episode_steps: int = 500, num_envs: int = 1) -> None:
        self.schedule, self.limits, self.costs = Schedule(limits), limits, costs
        self.episode_steps, self.num_envs = episode_steps, num_envs
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.busy: dict[str, float] = defaultdict(float)
        self.driver_free = self.uplink_free = 0.0
        self.held = [0] * limits.num_runners  # version that each runner holds
        self.on_node: dict[tuple[int, int], float] = {}  # (node, version): when it is there
        self.progress = [i * episode_steps // limits.num_runners for i in range(limits.num_runners)]  # not all end at once
        self.reported = [0] * limits.num_runners

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), what))

    def drive(self, seconds: float) -> float:
        """The driver works for so long, after all it has to do before. Returns when it is ready."""
        self.driver_free = max(self.driver_free, self.now) + seconds
        self.busy["driver"] += seconds
        return self.driver_free

    def begin(self) -> None:
        """All that the schedule allows now."""
        while (request := self.schedule.next_request()) is not None:
            self._start(request, self.drive(self.costs.send) + self.costs.latency)
        if (call := self.schedule.next_call()) is not None:
            self._call(call, self.drive(self.costs.call) + self.costs.latency)

    def _start(self, request: Request, arrives: float) -> None:
        c, runner = self.costs, request.runner
        ready = arrives
        if request.version > self.held[runner]:
            self.held[runner] = request.version
            ready = self._weights_on(runner // c.runners_per_node, request.version, arrives) + c.load
        working = request.steps / self.num_envs * c.plan
        self.busy["runners"] += working + ready - arrives
        self.at(ready + working + c.latency, lambda: self._answered(request))

    def _weights_on(self, node: int, version: int, when: float) -> float:
        if node == 0:  # the learner's own
            return when
        if (node, version) not in self.on_node:
            self.uplink_free = max(self.uplink_free, when) + self.costs.transfer
            self.busy["uplink"] += self.costs.transfer
            self.on_node[node, version] = self.uplink_free
        return max(when, self.on_node[node, version])

    def _answered(self, request: Request) -> None:
        steps, runner = request.steps, request.runner
        episodes = []
        self.progress[runner] += steps
        self.reported[runner] += steps
        if ended := self.progress[runner] // (self.episode_steps * self.num_envs):  # all its environments end together
            self.progress[runner] -= ended * self.episode_steps * self.num_envs
            episodes = [Delivery(None, self.reported[runner] - self.progress[runner])]
            self.reported[runner] = self.progress[runner]
        self.at(self.drive(self.costs.answer), lambda: self._take(request, steps, episodes))

    def _take(self, request: Request, steps: int, episodes: list[Delivery]) -> None:
        self.schedule.receive(request.number, steps, episodes, seconds=steps / self.num_envs * self.costs.plan)
        self.begin()

    def _call(self, call: Call, arrives: float) -> None:
        c = self.costs
        working = len(call.deliveries) * c.ingest + call.num_updates * c.update + (c.put if call.num_updates else 0.0)
        self.busy["learner"] += working
        self.at(arrives + working + c.latency, self._called)

    def _called(self) -> None:
        self.schedule.finish_call()
        self.begin()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        self.begin()
        while self.events and self.events[0][0] <= end:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = end


def simulate(limits: Limits, costs: Costs, *, num_envs: int = 1, warmup: float = 300.0, seconds: float = 300.0) -> Outcome:
    """The steady state: the seed phase is short, and what happens before `warmup` does not count."""
    simulation = Simulation(limits, costs, num_envs=num_envs)
    simulation.run(warmup)
    counts = simulation.schedule.counts
    before = (counts.steps, counts.updates)
    simulation.busy.clear()
    simulation.schedule.take_lags()
    simulation.run(seconds)
    busy = {name: value / seconds for name, value in simulation.busy.items()}
    return Outcome(
        steps=(counts.steps - before[0]) / seconds,
        updates=(counts.updates - before[1]) / seconds,
        driver=busy.get("driver", 0.0),
        learner=busy.get("learner", 0.0),
        uplink=busy.get("uplink", 0.0),
        runners=busy.get("runners", 0.0) / limits.num_runners,
        lag=simulation.schedule.take_lags().metrics()["online/policy_lag_mean"],
        request=simulation.schedule.request_steps,
    )


# -- constants of this machine ----------------------------------------------------------------------------------------------


class Echo:
    """A runner that does nothing: what is left is the cost of asking it."""

    def collect(self, order: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        return {"steps": 1, "statistics": dict.fromkeys("abcdefgh", 0.0)}, []

    def load(self, reference: list[Any]) -> float:
        import ray

        started = time.perf_counter()
        held = np.array(ray.get(reference[0]))
        assert held.nbytes > 0
        return time.perf_counter() - started

    def publish(self) -> float:
        import ray

        weights = np.zeros(WEIGHTS_MB * 250_000, np.float32)
        started = time.perf_counter()
        reference = ray.put(weights)
        elapsed = time.perf_counter() - started
        del reference
        return elapsed

    def ingest(self, references: list[Any]) -> float:
        import ray

        started = time.perf_counter()
        ray.get(references)
        return time.perf_counter() - started


def measure(repetitions: int = 200) -> Costs:
    """Medians, with two actors of a Ray that is started and stopped here."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        first, second = (ray.remote(num_cpus=1)(Echo).remote() for _ in range(2))
        order = {"steps": 25, "random": False, "version": 1, "weights": [ray.put(np.zeros(8))]}
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask(actor: Any) -> None:
            answer, _ = actor.collect.options(num_returns=2).remote(order)
            answer.future().add_done_callback(lambda future: ended.put((actor, future)))

        trips, sends = [], []
        for _ in range(repetitions + 20):  # one at a time: how long a message takes
            t0 = time.perf_counter()
            ask(first)
            t1 = time.perf_counter()
            ended.get()
            sends.append(t1 - t0)
            trips.append(time.perf_counter() - t1)
        for actor in (first, second):
            ask(actor)
        began = time.process_time()  # of all threads, Ray's too: at 128 runners the driver does nothing else
        for _ in range(10 * repetitions):
            actor, future = ended.get()
            future.result()
            ask(actor)
        exchange = (time.process_time() - began) / (10 * repetitions)
        for _ in range(2):
            ended.get()
        weights = ray.put(np.zeros(WEIGHTS_MB * 250_000, np.float32))
        episode = ray.put([{"obs": np.zeros((501, 24), np.float32), "action": np.zeros((500, 6), np.float32)}])
        loads = [ray.get(second.load.remote([weights])) for _ in range(30)]
        puts = [ray.get(second.publish.remote()) for _ in range(30)]
        ingests = [ray.get(second.ingest.remote([episode])) for _ in range(30)]
    finally:
        ray.shutdown()
    middle = statistics.median
    send = min(middle(sends), exchange)
    answer = exchange - send
    # Why twice: a call of the learners is a request and an answer, and its results are merged into RLlib's metrics
    return Costs(send, answer, middle(trips) / 2, 2 * (send + answer), middle(puts), middle(loads), middle(ingests))


def loop_cost(num_runners: int, answers: int = 4000) -> float:
    """Seconds of our own loop for one request and its answer, without Ray: it must not grow with the runners."""
    from wmrl_ray.collect import Statistics
    from wmrl_ray.rllib.at_once import AtOnce
    from wmrl_ray.rllib.sampling import Answer

    pending: deque[concurrent.futures.Future[Any]] = deque()

    class Fakes:
        def ask(self, runner: int, order: Any) -> tuple[concurrent.futures.Future[Any], None]:
            pending.append(concurrent.futures.Future())
            return pending[-1], None

        def deadline(self, runner: int) -> float:
            return time.monotonic() + 3600.0

        def answer(self, runner: int, future: concurrent.futures.Future[Any], deadline: float) -> Any:
            return future.result(0)

    runners: Any = Fakes()
    work = AtOnce(runners, lambda request: request, lambda packets, updates: [], lambda answer: None)  # type: ignore[arg-type, return-value]
    work.begin(Schedule(Limits(num_runners, 25, UPDATES_PER_CALL, max_steps_ahead=10**9, seed_steps=10**9)))
    work._ask()
    started = time.perf_counter()
    for _ in range(answers):
        pending.popleft().set_result(Answer([], Statistics(steps=25, act_s=1.5, acts=25)))
        (future,) = work._next()
        work._receive(future)
        work._ask()
    work.stop()
    return (time.perf_counter() - started) / answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument(
        "--plan-ms",
        type=float,
        nargs="*",
        default=[1.0, 10.0, 60.0, 125.0, 311.0],
        help="planning and one step; see RESULTS.md's speeds",
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="simulated, after as many of warm-up")
    arguments = parser.parse_args()
    loops = ", ".join(f"{1e6 * loop_cost(runners):.0f} at {runners}" for runners in (4, 32, 128))
    print(f"our own loop, us for a request and its answer: {loops} runners")
    costs = measure()
    exchange = costs.send + costs.answer
    print(f"with Ray: {1e3 * exchange:.2f} ms of this process; `schedule.ANSWER_S` says {1e3 * ANSWER_S:.2f}")
    print(f"{machine()}\nmeasured here, ms: " + ", ".join(f"{name} {1e3 * getattr(costs, name):.2f}" for name in MEASURED))
    print(
        f"assumed: {1e3 * costs.transfer:.0f} ms for the weights to another node, {costs.runners_per_node} runners on each; "
        "episodes of 500 steps\n"
    )
    lines = []
    for plan_ms, (update, rate, steps) in itertools.product(arguments.plan_ms, SCENARIOS):
        for runners in arguments.runners:
            limits = Limits(runners, steps, UPDATES_PER_CALL, rate, max_updates_ahead=OnlineConfig().max_updates_ahead)
            scenario = replace(costs, update=update, plan=plan_ms / 1e3)
            found = simulate(limits, scenario, warmup=arguments.seconds, seconds=arguments.seconds)
            shares = [f"{share:.1%}" for share in (found.driver, found.learner, found.uplink, found.runners)]
            name = f"{plan_ms:g} ms, {1e3 * update:g} ms, U = {rate:g}, n = {steps}"
            lines.append([name, runners, found.request, f"{found.steps:.0f}", *shares, f"{found.lag:.0f}", found.bottleneck])
    print(
        table(
            [
                "plan, update, rate, least request",
                "runners",
                "request",
                "steps/s",
                "driver",
                "learner",
                "network",
                "runners",
                "lag",
                "first",
            ],
            lines,
        )
    )


HEADS = ("plan, update, rate, least request", "runners", "request", "steps/s")
MEASURED = ("send", "answer", "latency", "call", "put", "load", "ingest")
SCENARIOS = [  # seconds of an update, U, n
    (0.015, 1.0, 25),
    (0.015, 1 / 16, 25),
    (0.002, 1 / 16, 25),
    (0.002, 1 / 16, 1),
]

if __name__ == "__main__":
    main()
