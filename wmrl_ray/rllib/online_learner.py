"""The learner of an agent that takes its own steps: episodes come in between updates, and weights go out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.rllib.core import DEFAULT_MODULE_ID

from wmrl_ray import checkpoint
from wmrl_ray.collect import Collector, Statistics
from wmrl_ray.data.episode import DataError
from wmrl_ray.online import check_replay, make_clock, take_turns
from wmrl_ray.rllib.callbacks import CollectedEpisodes
from wmrl_ray.rllib.learner import STREAMS, AgentLearner
from wmrl_ray.rllib.sampling import Packet, Weights, fetch
from wmrl_ray.rllib.weights import flatten_weights
from wmrl_ray.train import finite_metrics, update_steps

COLLECTOR = "collector"  # component of the state
EPISODES = "online"  # where a replay's state keeps the episodes that were added
REPLAY = "replay"  # the part of a checkpoint


@dataclass(frozen=True)
class Report:
    """What one rank did in one call.

    metrics: RLlib's, of the last update. weights: the newest, from rank 0. replay_steps: of the agent's own episodes. The rest:
    seconds in this call, and since the last.
    statistics, num_steps, num_episodes, unfinished_steps, logged (by a user's callbacks): of the learner's own collector, if it
    has one. lost: lengths of the
    episodes that it was to take, and that are gone with a node.
    """

    metrics: Any
    weights: Weights | None
    replay_steps: int
    ingest_s: float = 0.0
    update_s: float = 0.0
    publish_s: float = 0.0
    wait_s: float = 0.0
    statistics: Statistics | None = None
    num_steps: int = 0
    num_episodes: int = 0
    unfinished_steps: int = 0
    logged: Any = None
    lost: tuple[int, ...] = ()


class OnlineLearner(AgentLearner):
    """One rank. Every rank keeps all episodes, and draws a batch of its own from all of them at every update, with its own
    stream: a gradient is the mean over `batch_size` windows of each rank.

    Deviates from the design's replay shards. Why: every rank's windows come from all episodes, also from the few that there are
    at first; the replay is the same on all ranks, so that a checkpoint holds it once, and a run goes on exactly, or with
    another number of learners. The cost: N ranks take N times the memory for episodes, and each episode crosses the network
    to every node that has a rank.

    Without runners (`online.num_runners` = 0) it takes the steps itself, in turn with its updates.
    """

    def build(self) -> None:
        if self._is_built:
            return
        super().build()
        run = self.config.run_config()
        self._returned: float | None = None
        self.collector: Collector | None = None
        self._listener: CollectedEpisodes | None = None
        if run.online.num_runners == 0:
            assert run.env is not None
            self.collector = self._new_collector(0)
            self._clock = make_clock(run, run.env)

    def _new_collector(self, incarnation: int) -> Collector:
        """The one of runner 0, whose steps this learner takes."""
        run = self.config.run_config()
        assert run.env is not None
        seed = (run.seed, 0, incarnation) if incarnation else (run.seed, 0)
        self._listener = CollectedEpisodes.of(self.config, self.agent_module)
        return Collector(run.env, run.env_config, run.online.num_envs, seed, self._listener)

    def take_turns(self, until: int) -> Report:
        """Steps and updates in turn, as in `online.train_online`, up to update `until`."""
        waited, collector, agent = self._waited(), self.collector, self.agent
        assert collector is not None
        self._train_mode()
        with self._lock:
            tensors, update_s = take_turns(
                agent, self.replay, collector, self._clock, agent.num_updates, until, self.config.batch_size
            )
            metrics = self._reduced(tensors)
        return self._report(
            metrics,
            wait_s=waited,
            update_s=update_s,
            statistics=collector.take_statistics(),
            num_steps=collector.num_steps,
            num_episodes=collector.num_episodes,
            unfinished_steps=collector.unfinished_steps,
            logged=None if self._listener is None else self._listener.metrics.reduce(),
        )

    def ingest_and_update(self, packets: Sequence[Packet], num_updates: int, num_steps: int, publish: bool) -> Report:
        """Adds the episodes, makes `num_updates` updates (the same number on every rank) and publishes the weights.

        Args:
            num_steps: taken so far, for the error when there is nothing to learn from.

        Raises:
            NonFiniteLossError: a metric is NaN or infinite; the message has all metrics.
            ObjectLostError: episodes are gone without which there is nothing to learn from.
        """
        waited, started, metrics = self._waited(), time.monotonic(), None
        self._train_mode()
        with self._lock:
            episodes, lost, cause = fetch(packets)
            for episode in episodes:
                self.replay.add(episode)
            if cause is not None:
                self._check_going_on(cause)
            ingested = time.monotonic()
            if num_updates:
                check_replay(self.replay, self.agent, num_steps)
                metrics = self._reduced(update_steps(self.agent, self.replay, num_updates, self.config.batch_size))
            updated = time.monotonic()
            weights = self._publish() if publish and self.rank == 0 else None
        return self._report(
            metrics,
            weights,
            wait_s=waited,
            ingest_s=ingested - started,
            update_s=updated - ingested,
            publish_s=time.monotonic() - updated,
            lost=tuple(lost),
        )

    def _check_going_on(self, lost: Exception) -> None:
        """Raises what episodes were lost with if there is nothing to learn from without them."""
        try:
            self.replay.check_window(self.agent.config.window)
        except DataError:
            raise lost from None

    def _reduced(self, tensors: Mapping[str, Any]) -> Any:
        self._weights_seq_no += 1  # Why: runners ignore weights that are not newer than theirs
        self.metrics.log_dict(finite_metrics(self.agent, tensors), key=DEFAULT_MODULE_ID, window=1)
        return self.metrics.reduce()

    def _publish(self) -> Weights:
        return Weights([ray.put(flatten_weights(self.agent.model))], self.agent.num_updates)

    def _report(self, metrics: Any, weights: Weights | None = None, **seconds: Any) -> Report:
        self._returned = time.monotonic()
        return Report(metrics, weights, self.replay.num_online_steps, **seconds)

    def _waited(self) -> float:
        """Seconds since the last call."""
        return 0.0 if self._returned is None else time.monotonic() - self._returned

    def _train_mode(self) -> None:
        if not self.agent_module.training:
            self.agent_module.train()

    # -- state ----------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path | None) -> dict[str, Any]:
        """As the offline learner's, and its collector. The replay, whose episodes all ranks share, is a part that rank 0 writes
        into `folder`; where its node does not see that, it goes home through the driver.
        """
        with self._lock:
            collector = None if self.collector is None else self.collector.get_state()
            writes = folder is not None and self.rank == 0 and folder.is_dir()
            streams = self.get_streams(episodes=self.rank == 0, copy=not writes)
            if writes and folder is not None:
                streams["replay"] = checkpoint.write_part(folder, REPLAY, streams["replay"])
            agent = self.agent.get_state() if self.rank == 0 else None
            return {"agent": agent, "streams": streams, "collector": collector}

    def load_online(
        self,
        agent_state: dict[str, Any],
        streams: list[dict[str, Any]],
        collector: dict[str, Any] | None,
        taken: tuple[int, int],
        incarnation: int,
    ) -> None:
        """Continues where a learner group stopped, as `load`; a rank that the saved group did not have gets its episodes.

        Args:
            collector: of a run without runners. taken: (steps, episodes) so far, by whomever. incarnation: of a collector that
                starts anew, which no runner had.
        """
        streams = [{**saved, "replay": _read(saved["replay"])} for saved in streams]
        own = self.replay.get_state(episodes=False) if self.rank >= len(streams) else None
        whole = [{**saved, "replay": with_episodes(saved["replay"], streams[0]["replay"])} for saved in streams]
        self.load(agent_state, whole)
        if own is not None:
            self.replay.set_state(with_episodes(own, streams[0]["replay"]))
        if self.collector is not None and collector is not None:
            self.collector.set_state(collector, replay_unfinished=self.config.run_config().online.replay_unfinished)
        elif self.collector is not None:
            self.collector.close()
            self.collector = self._new_collector(incarnation)  # Why: no runner's random streams may come again
            self.collector.num_steps, self.collector.num_episodes = taken

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if STREAMS in state and self.collector is not None:
            state[COLLECTOR] = self.collector.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if COLLECTOR in state and self.collector is not None:
            replay_unfinished = self.config.run_config().online.replay_unfinished
            self.collector.set_state(state[COLLECTOR], replay_unfinished=replay_unfinished)


def sees(part: checkpoint.Part) -> bool:
    """Whether this process can read it."""
    return part.folder is not None and (part.folder / part.file).is_file()


def _read(replay: Any) -> Any:
    return checkpoint.read_part(replay) if isinstance(replay, checkpoint.Part) else replay


def with_episodes(state: Any, source: Any) -> Any:
    """`state` with the episodes of `source`."""
    if not isinstance(state, Mapping):
        return state
    found = {key: with_episodes(value, source[key]) for key, value in state.items()}
    return {**found, EPISODES: source[EPISODES]} if EPISODES in source else found
