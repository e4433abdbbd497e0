"""Room on the cluster for a run's actors: found before they are made, and the run's own until it ends.

Why: where a resource is missing, RLlib waits for its actors for ever, and Ray says nothing. What is asked for here is also what
an autoscaler sees, all of it at once; so two runs never hold half of what each needs, and nobody takes the room between the
wait for it and the actors, nor while an actor that died is made again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Self, cast

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from wmrl_ray.core.agents import AGENTS
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.failures import ActorLostError, RemoteError

if TYPE_CHECKING:
    from wmrl_ray.rllib.config import AgentAlgorithmConfig

LOOK_EVERY_S = 0.1
TELL_AFTER_S = 5.0  # shorter waits are not worth a line: actors that have just ended give back what they had
TELL_EVERY_S = 60.0

LEARNER, RUNNER, EVALUATION = "learner", "runner", "evaluation runner"  # roles
Resources = dict[str, float]


def needs(settings: AgentAlgorithmConfig) -> list[tuple[str, Resources]]:
    """(role, resources) of every actor that a run makes, as RLlib and `sampling.Runners` ask for them."""
    gpus = max(0.0, settings.num_gpus_per_learner)
    cpus: Any = settings.num_cpus_per_learner
    learner = {"CPU": (0 if gpus else 1) if cpus == "auto" else cpus, "GPU": gpus, **settings.learner_resources}
    custom = dict(cast("Mapping[str, float]", settings.custom_resources_per_env_runner or {}))
    runner = {"CPU": settings.num_cpus_per_env_runner, "GPU": settings.num_gpus_per_env_runner, **custom}
    num_runners = settings.online.get("num_runners", 0) if settings.learns_online else 0
    num_evaluating = (settings.evaluation_num_env_runners or 0) if AGENTS[settings.agent_name].acts else 0
    actors = [(LEARNER, learner)] * (settings.num_learners or 0)
    actors += [(RUNNER, runner)] * num_runners + [(EVALUATION, runner)] * num_evaluating
    return [(role, {name: float(value) for name, value in each.items() if value}) for role, each in actors]


@ray.remote(num_cpus=0, max_retries=0)
def _here() -> None:
    """Runs where a node is there."""


class Room:
    """The placement group of one run, with a bundle for every actor that takes anything; given back when the block ends."""

    def __init__(self) -> None:
        self._asked: list[tuple[str, Resources]] = []
        self._group: PlacementGroup | None = None
        self._probes: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives everything back. Actors that still are in it are ended by Ray."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def strategy(self, role: str, number: int) -> PlacementGroupSchedulingStrategy | None:
        """How the actor `number`, from 0, of its role is scheduled: in its own bundle. None: as Ray likes, without a room or
        where it takes nothing.
        """
        taking = [each for each, resources in self._asked if resources]
        if self._group is None or role not in taking:
            return None
        return PlacementGroupSchedulingStrategy(self._group, taking.index(role) + number)

    def wait(
        self,
        asked: list[tuple[str, Resources]],
        limit_s: float,
        run_dir: Path,
        tell: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Waits until all of `asked` has its place, and keeps it; False when `should_stop` ended the wait.

        Called again for the same, after an actor was lost, it waits only for what was lost with a node.

        Args:
            tell: hears what is waited for, on one line: once, then every `TELL_EVERY_S`.

        Raises:
            RemoteError: there is none after `limit_s`; one line with what is asked for, what there is, and how to go on.
        """
        bundles = [resources for _, resources in asked if resources]
        if asked != self._asked:
            self.release()
            self._asked = list(asked)
        # Why not in a Tune trial: what it has was placed with it
        if not bundles or compat.in_local_mode() or ray.util.get_current_placement_group() is not None:
            return True
        doubted = self._group is not None  # Why: it takes Ray a while to learn that a node is gone, with bundles
        self._group, self._probes = self._group or placement_group(bundles), []
        started, next_told = time.monotonic(), min(TELL_AFTER_S, limit_s / 2)
        # Why not `group.wait(seconds)`: it counts whole ones, so less returns at once, and leaves its request open each time
        while not self._is_there(doubted):
            time.sleep(LOOK_EVERY_S)
            waited_s = time.monotonic() - started
            if should_stop():
                return False
            if waited_s > limit_s:
                raise RemoteError(
                    f"no room on the cluster after placement_timeout_s = {limit_s:g} s: {describe(asked)}. Add what is "
                    f"missing, or wait longer (--set placement_timeout_s=N), then go on from the newest checkpoint: "
                    f"wmrl train {quote(str(run_dir))} --resume"
                )
            if waited_s >= next_told:
                next_told = waited_s + TELL_EVERY_S
                tell(f"waiting for room on the cluster, {waited_s:.0f} of at most {limit_s:g} s: {describe(asked)}")
        return True

    def _is_there(self, doubted: bool) -> bool:
        """Whether every bundle has its place; doubted: as the nodes say themselves."""
        assert self._group is not None
        table = placement_group_table(self._group)
        if table.get("state") != "CREATED" or not doubted:
            self._probes = []
            return table.get("state") == "CREATED"
        if not self._probes:
            on_node = {node: bundle for bundle, node in table["bundles_to_node_id"].items()}
            strategies = [PlacementGroupSchedulingStrategy(self._group, bundle) for bundle in on_node.values()]
            self._probes = [_here.options(scheduling_strategy=strategy).remote() for strategy in strategies]
        if ray.wait(self._probes, num_returns=len(self._probes), timeout=0)[1]:
            return False
        try:
            ray.get(self._probes)
        except RayError:
            self._probes = []
        return bool(self._probes)

    @contextlib.contextmanager
    def used(self, limit_s: float) -> Iterator[None]:
        """An algorithm that is built inside puts its actors here, those too that it makes later.

        Raises:
            ActorLostError: it is not built after `limit_s`, and all in the room were ended. Why: RLlib would wait for ever.
        """
        token, places = _used.set(self), (lambda i: self.strategy(LEARNER, i), lambda i: self.strategy(EVALUATION, i))
        is_late = threading.Event()
        timer = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), lambda: (is_late.set(), self.release()))
        timer.daemon = True
        if self._group is not None:
            timer.start()
        try:
            with contextlib.nullcontext() if self._group is None else compat.placed(*places):
                yield
        except Exception as error:
            if not is_late.is_set():
                raise
            raise ActorLostError(f"learners or runners did not start within {limit_s:g} s: hanging or slow") from error
        finally:
            timer.cancel()
            _used.reset(token)


_used: ContextVar[Room] = ContextVar("room")


def room_in_use() -> Room:
    """That of the algorithm which is being built; without one, an empty one."""
    return _used.get(Room())


def describe(asked: list[tuple[str, Resources]]) -> str:
    """What is asked for, in all and for each actor, and what the cluster has of it."""
    total = Counter[str]()
    for _, resources in asked:
        total.update(resources)  # type: ignore[arg-type] - of floats
    shapes = Counter((role, _show(resources)) for role, resources in asked)
    each = ", ".join(f"{count} {role}{'s' * (count > 1)} of {shape}" for (role, shape), count in shapes.items())
    there, free = ray.cluster_resources(), ray.available_resources()
    has, left = ({name: found.get(name, 0.0) for name in total} for found in (there, free))
    missing = {name: value - has[name] for name, value in total.items() if value > has[name]}
    short = f", {_show(missing)} too little" if missing else ""
    return f"needs {_show(total)} ({each}), cluster has {_show(has)}{short}, {_show(left)} free"


def _show(resources: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {value:g}" for name, value in sorted(resources.items())) + "}"
