"""Learning from the agent's own steps, in one process and without Ray: the reference loop that the RLlib algorithms translate.

Random steps at first; then, in turns, steps of the exploring agent and updates from the replay that its episodes go into.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmrl_ray import checkpoint
from wmrl_ray.collect import Collector, Statistics
from wmrl_ray.config import ConfigError, check
from wmrl_ray.core.agents import Agent, agent_config
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.replay import DemonstrationReplay, Replay
from wmrl_ray.rollout import step_limit
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.events import OnEvent
from wmrl_ray.run.lock import alone_in_run_dir
from wmrl_ray.train import (
    Progress,
    Session,
    build_agent,
    build_replay,
    evaluation_env,
    finite_metrics,
    open_run,
    update_steps,
    with_device,
    with_episode_len,
    with_recorded_env,
)


@dataclass(frozen=True)
class Turn:
    """What comes next: `steps` of every environment, then `updates`. random: the steps are the first ones, of no agent."""

    steps: int
    updates: int
    random: bool = False


@dataclass(frozen=True)
class Clock:
    """The schedule of a synchronous run: the first `seed_steps` steps are random; then update u waits until u / U steps have
    been taken. So the first U x seed_steps updates follow at once, and U updates every step after that.
    """

    config: OnlineConfig
    seed_steps: int

    def turn(self, update: int, num_steps: int, until: int) -> Turn:
        """The next turn of a run that has made `update` updates and taken `num_steps` steps, all environments together; its
        updates end at `until` at the latest, which is a multiple of a turn's.
        """
        c, missing = self.config, self.seed_steps - num_steps
        if missing > 0:
            return Turn(-(-missing // c.total_envs), 0, random=True)
        updates = round(c.updates_per_turn)
        missing = math.ceil((update + updates) / c.updates_per_step - 1e-9) - num_steps
        if missing > 0:
            return Turn(-(-missing // c.total_envs), updates)
        turns = int(num_steps * c.updates_per_step + 1e-9 - update) // updates
        return Turn(0, min(turns * updates, until - update))


def make_clock(config: RunConfig, env_id: str) -> Clock:
    """Of a run in this environment. By default TD-MPC2's max(1000, 5 T) random steps, T the step limit, and at least one
    episode of every environment.

    Raises:
        ConfigError: as `make_env`, or the replay has no room for a whole episode.
    """
    steps, limit = config.online.seed_steps, step_limit(env_id, config.env_config)
    capacity = config.online.capacity
    check(
        capacity >= limit,
        f"online.capacity = {capacity}, but an episode of {env_id} has up to {limit} steps; use at least as many",
    )
    if steps is None:
        steps = max(1000, 5 * limit, limit * config.online.total_envs)
    return Clock(config.online, steps)


@alone_in_run_dir
def train_online(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and records one run of an agent that takes its own steps, as `train.train` does offline.

    Args, returns, and what a stopped run continues with: as there. A resumed run is the one that was never stopped: replay,
    random streams, plans and unfinished episodes are in the checkpoint.
    """
    torch.set_num_threads(1)  # Why: one core per process; runs share the machine
    agent_config(config.algorithm, config.agent)  # for its errors, before anything is read or made
    check_in_process(config)
    config = with_device(config, run_dir, resume)
    dataset = None if config.dataset is None else open_dataset(config.dataset)
    config = with_recorded_env(config, dataset)
    env_id = evaluation_env(config, dataset)
    assert env_id is not None
    config = with_episode_len(config, env_id)
    clock = make_clock(config, env_id)
    agent, replay = build_agent(config, dataset), build_replay(config, dataset)
    collector = Collector(env_id, config.env_config, config.online.num_envs, seed=(config.seed, 0))
    try:
        run = open_run(run_dir, config, dataset, resume)
        progress = Progress(config)
        if (newest := run.newest_checkpoint()) is not None:
            tree, meta = checkpoint.load(newest)
            agent.set_state(tree["agent"])
            replay.set_state(tree["replay"])
            collector.set_state(tree["collector"], replay_unfinished=config.online.replay_unfinished)
            progress.update = meta["update"]
            del tree  # Why: it holds a second replay
        session = Session(config, run, progress, agent, dataset, env_id, on_event, should_stop)
        update_s = 0.0
        while not progress.finished:
            until = progress.update + config.updates_per_call
            tensors, seconds = take_turns(agent, replay, collector, clock, progress.update, until, config.batch_size)
            progress.update, update_s = until, update_s + seconds
            metrics = finite_metrics(agent, tensors)
            if progress.due(config.log_every):
                metrics |= online_metrics(collector.take_statistics(), collector.num_steps, collector.num_episodes, replay)
                session.log(metrics | {"time/update_s": update_s})
                update_s = 0.0
            if progress.evaluation_due:
                session.assess()
            stopping = session.stopping
            if progress.due(config.checkpoint_every) or stopping:
                session.save(
                    {"agent": agent.get_state(), "replay": replay.get_state(), "collector": collector.get_state()},
                    must=progress.finished or stopping,
                )
            if stopping:
                break
        return session.end({"steps": collector.num_steps, "episodes": collector.num_episodes})
    finally:
        collector.close()


def take_turns(
    agent: Agent,
    replay: Replay | DemonstrationReplay,
    collector: Collector,
    clock: Clock,
    update: int,
    until: int,
    batch_size: int,
) -> tuple[Mapping[str, Tensor], float]:
    """Steps and updates in turn, from `update` updates made to `until`.

    Returns: the metrics of the last update, which no device has waited for; the seconds that updates took.
    """
    tensors: Mapping[str, Tensor] = {}
    update_s = 0.0
    while update < until:
        turn = clock.turn(update, collector.num_steps, until)
        for episode in collector.collect(None if turn.random else agent, turn.steps):
            replay.add(episode)
        started = time.monotonic()
        if turn.updates:
            check_replay(replay, agent, collector.num_steps)
            tensors = update_steps(agent, replay, turn.updates, batch_size)
        update_s += time.monotonic() - started
        update += turn.updates
    return tensors, update_s


def check_in_process(config: RunConfig) -> None:
    """Raises ConfigError for an agent that does not learn online, or a run that needs actors."""
    check(
        config.learns_online,
        f"algorithm = {config.algorithm!r} takes no steps of its own; train it with train.train",
    )
    check(
        config.online.num_runners == 0,
        f"online.num_runners = {config.online.num_runners} are Ray actors; train with Ray (without --no-ray), or set it to 0",
    )


def check_replay(replay: Replay | DemonstrationReplay, agent: Agent, num_steps: int) -> None:
    """Raises ConfigError when nothing can be learned from yet: no episode, or none as long as a window."""
    try:
        replay.check_window(agent.config.window)
    except DataError as error:
        raise ConfigError(f"after {num_steps:,} steps: {error}; or raise online.seed_steps so that episodes end") from None


def online_metrics(
    statistics: Statistics, num_steps: int, num_episodes: int, replay: Replay | DemonstrationReplay
) -> dict[str, float]:
    """Of the agent's own steps: all of them so far, and the episodes that ended since the last log."""
    counts = {"online/steps": num_steps, "online/episodes": num_episodes, "online/replay_steps": replay.num_online_steps}
    return {name: float(count) for name, count in counts.items()} | statistics.metrics()
