"""The whole system in one process, without Ray: the reference loop that the RLlib algorithms translate.

Offline: data -> Replay -> Agent.update, with evaluations and checkpoints on the way. What agents that take their own steps do
instead is in `online.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError, check, to_dict
from wmrl_ray.core.agents import AGENTS, Agent, agent_config, make_agent
from wmrl_ray.core.agents.base import ObsDim
from wmrl_ray.core.batch import Batch
from wmrl_ray.data.datasets import Dataset, check_compatible, open_dataset, plain_env_id
from wmrl_ray.data.replay import DemonstrationReplay, Replay
from wmrl_ray.envs.recorded import overridden, recorded_config
from wmrl_ray.intents import intended_states
from wmrl_ray.rollout import Evaluation, EvaluationStoppedError, action_repeat, env_dims, evaluate, step_limit
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event, OnEvent
from wmrl_ray.run.folder import RunDir
from wmrl_ray.run.lock import alone_in_run_dir


class NonFiniteLossError(RuntimeError):
    """Training diverged: a metric is NaN or infinite. The message holds all metrics of that update."""


def sizes(config: RunConfig, dataset: Dataset | None) -> tuple[ObsDim, int]:
    """(O, A) of the run: its dataset's, or its environment's. Raises ConfigError as `make_env`."""
    if dataset is not None:
        return dataset.card.obs_dim, dataset.card.action_dim
    assert config.env is not None
    return env_dims(config.env, config.env_config)


def with_recorded_env(config: RunConfig, dataset: Dataset | None) -> RunConfig:
    """The same run in the environment that its dataset names, with the arguments of that (`Origin.env_spec`) in env_config.

    What env_config sets itself stays. Every loop begins with this, so that config.json, checkpoints and runners say the same.
    """
    if dataset is None or not AGENTS[config.algorithm].acts:
        return config
    card = dataset.card
    if config.env is not None and (card.env_id is None or plain_env_id(config.env) != plain_env_id(card.env_id)):
        return config  # another environment, which `check_compatible` judges
    recorded = recorded_config(config.env or card.env_id, card.env_spec, config.env_config)
    return dataclasses.replace(config, env_config={**recorded, **config.env_config})


def with_episode_len(config: RunConfig, env_id: str | None) -> RunConfig:
    """The same run, whose agent knows T where its discount is made from it: the step limit of the environment `env_id`.

    Every loop begins with this, so that config.json, checkpoints, learners and runners say the same. Raises ConfigError as
    `make_env`.
    """
    agent = agent_config(config.algorithm, config.agent)
    if env_id is None or getattr(agent, "episode_len", 0) is not None or getattr(agent, "gamma", None) is not None:
        return config
    return dataclasses.replace(config, agent={**config.agent, "episode_len": step_limit(env_id, config.env_config)})


def build_agent(config: RunConfig, dataset: Dataset | None, rank: int = 0) -> Agent:
    """The run's agent, on its device, knowing the dataset's statistics. Same weights on every rank, own noise."""
    device = resolve_device(config.device)
    agent = make_agent(config.algorithm, config.agent, *sizes(config, dataset), seed=config.seed, device=device)
    if dataset is not None and isinstance(dataset.card.obs_dim, int):
        agent.set_obs_stats(torch.as_tensor(dataset.card.obs_mean), torch.as_tensor(dataset.card.obs_std))
    if rank:
        agent.update_generator.manual_seed(2 * (config.seed + 1_000_003 * rank))
    return agent


def build_replay(config: RunConfig, dataset: Dataset | None, rank: int = 0) -> Replay | DemonstrationReplay:
    """The run's replay over the memory-mapped dataset, with its own random stream per rank; of an agent that learns online,
    with room for its own episodes. Raises DataError if the dataset cannot give the agent a single window.
    """
    window, online = agent_config(config.algorithm, config.agent).window, config.online
    seed = [config.seed, rank]
    if not config.learns_online:
        replay = Replay(dataset, seed=seed)
        replay.check_window(window)
        return replay
    if dataset is not None and (num := online.num_demonstrations) is not None:
        check(
            num <= len(dataset),
            f"online.num_demonstrations = {num}, but dataset {config.dataset!r} has {len(dataset)} episodes",
        )
    obs_dim, action_dim = sizes(config, dataset)
    if not AGENTS[config.algorithm].needs_demonstrations:
        return Replay(
            dataset,
            num_episodes=online.num_demonstrations,
            obs_dim=obs_dim,
            action_dim=action_dim,
            capacity=online.capacity,
            seed=seed,
        )
    demonstrations = Replay(dataset, num_episodes=online.num_demonstrations, seed=[*seed, 1])
    demonstrations.check_window(window)
    return DemonstrationReplay(
        demonstrations, Replay(obs_dim=obs_dim, action_dim=action_dim, capacity=online.capacity, seed=seed)
    )


def resolve_device(device: str) -> str:
    """For "auto", "cuda" if there is one, else "cpu". Raises ConfigError for a device that torch does not have here."""
    gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if gpus else "cpu"
    kind, colon, index = device.partition(":")
    check(
        device == "cpu" or (kind == "cuda" and (not colon or index.isdecimal())),
        f"device = {device!r}; allowed: auto, cpu, cuda, cuda:N",
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    about = "" if visible is None else f" (CUDA_VISIBLE_DEVICES = {visible!r})"
    check(
        device == "cpu" or int(index or 0) < gpus,
        f"device = {device!r}, but torch sees {gpus} GPUs{about}; use device = 'cpu'",
    )
    return device


def recorded_device(config: RunConfig, run_dir: Path, resume: bool) -> str:
    """Of "auto", the device on which the run began that is resumed: a GPU that is lost does not quietly become the CPU."""
    run = RunDir(run_dir)
    return run.config().device if config.device == "auto" and resume and run.exists() else config.device


def with_device(config: RunConfig, run_dir: Path, resume: bool) -> RunConfig:
    """The same run on a device that is decided, once. Raises ConfigError as `resolve_device`."""
    return dataclasses.replace(config, device=resolve_device(recorded_device(config, run_dir, resume)))


def evaluation_env(config: RunConfig, dataset: Dataset | None) -> str | None:
    """The id of the environment to evaluate in, checked against the dataset if there is one. Raises ConfigError or DataError.

    None for an agent whose actions are not an environment's.
    """
    if not AGENTS[config.algorithm].acts:
        return None
    env_id = config.env or (None if dataset is None else dataset.card.env_id)
    if env_id is None:
        raise ConfigError(f"dataset {config.dataset!r} names no environment; set env = <gymnasium id> to evaluate in")
    found = env_dims(env_id, config.env_config)
    if dataset is not None:
        check_compatible(dataset, *found, env_id, action_repeat(env_id, config.env_config))
    return env_id


def update_many(agent: Agent, replay: Replay | DemonstrationReplay, num_updates: int, batch_size: int) -> dict[str, float]:
    """K gradient steps; the last step's metrics, converted once.

    Raises:
        NonFiniteLossError: with those metrics.
    """
    return finite_metrics(agent, update_steps(agent, replay, num_updates, batch_size))


def update_steps(agent: Agent, replay: Replay | DemonstrationReplay, num_updates: int, batch_size: int) -> Mapping[str, Tensor]:
    """K gradient steps; the last step's metrics, which no device has waited for."""
    metrics: Mapping[str, Tensor] = {}
    horizon = agent.config.window
    for _ in range(num_updates):
        batch: Batch = replay.sample(batch_size, horizon, return_to_go=agent.config.needs_return_to_go)
        metrics = agent.update(batch)
    return metrics


def finite_metrics(agent: Agent, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics of the agent's last update as numbers, converted at once. Raises NonFiniteLossError."""
    values = dict(zip(metrics, torch.stack([m.float() for m in metrics.values()]).tolist(), strict=True))
    if not all(math.isfinite(v) for v in values.values()):
        raise NonFiniteLossError(
            f"update {agent.num_updates} is not finite: {values}; lower agent.lr or check the dataset's rewards"
        )
    return values


def evaluation_metrics(evaluation: Evaluation, dataset: Dataset | None) -> dict[str, float]:
    """Returns, lengths, successes, and the score on the dataset's own scale where there is one."""
    returns = np.array(evaluation.returns)
    metrics = {
        "eval/return_mean": float(returns.mean()),
        "eval/return_std": float(returns.std()),
        "eval/length_mean": float(np.mean(evaluation.lengths)),
        "eval/episodes": float(len(returns)),
        **{name.replace("plan/", "eval/plan_"): value for name, value in evaluation.act_metrics.items()},
    }
    if evaluation.reports_success:
        metrics["eval/success_mean"] = float(np.mean(evaluation.successes))
    if dataset is not None and dataset.card.has_scale:
        scores = [dataset.normalized_score(r) for r in evaluation.returns]
        metrics |= {"eval/score_mean": float(np.mean(scores)), "eval/score_std": float(np.std(scores))}
    return metrics


def evaluate_run(
    run: RunDir,
    config: RunConfig,
    agent: Agent,
    env_id: str,
    dataset: Dataset | None,
    update: int,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float] | None:
    """The agent's evaluation, logged; its trajectories are kept where observations are vectors.

    None if a stop was asked for before its end: the checkpoint must not wait, and the run's next session repeats it.
    """
    of_vectors = isinstance(agent.obs_dim, int)
    try:
        evaluation = evaluate(
            agent,
            env_id,
            config.eval_episodes,
            env_config=config.env_config,
            num_envs=config.envs_per_runner,
            seed=config.seed,
            record=of_vectors,
            should_stop=should_stop,
        )
    except EvaluationStoppedError:
        return None
    metrics = evaluation_metrics(evaluation, dataset)
    run.log(update, metrics)
    if of_vectors:
        run.save_trajectories(evaluation, intended_states(evaluation.episodes, env_id))
    return metrics


def checkpoint_meta(config: RunConfig, dataset: Dataset | None, env_id: str | None, update: int) -> dict[str, Any]:
    """What a policy needs beside its tensors: algorithm, sizes, environment, and the scale of its scores."""
    obs_dim, action_dim = sizes(config, dataset)
    about = ("uri", "name", "sha256", "ref_min_score", "ref_max_score", "stand_in")
    return {
        "algorithm": config.algorithm,
        "agent": to_dict(agent_config(config.algorithm, config.agent)),
        "obs_dim": obs_dim,
        "action_dim": action_dim,
        "env": env_id,
        "env_config": dict(config.env_config),
        "update": update,
        "dataset": None if dataset is None else {k: getattr(dataset.card, k) for k in about},
        "run": to_dict(config.resolved()),
    }


def open_run(run_dir: Path, config: RunConfig, dataset: Dataset | None, resume: bool) -> RunDir:
    """The run folder: a new one, or the old one if it is resumed with settings that learn the same. Raises ConfigError."""
    run = RunDir(run_dir)
    if not (resume and run.exists()):
        return RunDir.create(run_dir, config, dataset)
    run.check_same(config)
    before = run.config().env_config
    if taken := {name: value for name, value in config.env_config.items() if name not in before}:
        warnings.warn(
            f"{run_dir} began without its dataset's environment: from here on it is evaluated with {taken}", stacklevel=2
        )
    run.extend(config.num_updates)
    run.write_config(config)
    return run


def data_warning(run: RunDir) -> str | None:
    """One line: what the reader of the run's dataset changed, dropped or could not know (its card's notes), and where the run's
    environment is another than the dataset's. None: nothing.
    """
    file = run.path / "dataset.json"
    card = json.loads(file.read_text()) if file.exists() else {}
    said, config = list(card.get("notes") or []), run.config().env_config
    if (changed := overridden(card.get("env_spec"), config)) is not None:
        said.append(f"{changed}; scores are still on the dataset's scale" if card.get("ref_min_score") is not None else changed)
    return f"dataset {card['name']}: {'; '.join(said)}" if said else None


@dataclass
class Progress:
    """Decides, between calls, what is due."""

    config: RunConfig
    update: int = 0

    @property
    def finished(self) -> bool:
        return self.update >= self.config.num_updates

    def due(self, every: int) -> bool:
        return self.finished or (every > 0 and self.update % every == 0)

    @property
    def evaluation_due(self) -> bool:
        """Never for an agent whose actions are not the environment's: a Manager is judged by its Workers."""
        return AGENTS[self.config.algorithm].acts and self.due(self.config.eval_every)


def lacks_evaluation(run: RunDir, progress: Progress) -> bool:
    """A stop broke off the evaluation of the weights at `progress.update`."""
    if not (progress.update and progress.evaluation_due):
        return False
    return not any(line["update"] == progress.update and "eval/return_mean" in line for line in run.read_metrics())


class Session:
    """What both loops do between their calls: tell, log, evaluate and save; and what they have come to in the end."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        progress: Progress,
        agent: Agent,
        dataset: Dataset | None,
        env_id: str | None,
        on_event: OnEvent | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """Of `config`, in `run`, from `progress.update` on; an evaluation that a stop broke off is repeated first."""
        self.config, self.run, self.progress, self.agent = config, run, progress, agent
        self.dataset, self.env_id = dataset, env_id
        self._on_event, self._should_stop = on_event, should_stop
        run.open_metrics(progress.update)
        self._tell("start", {})
        if warning := data_warning(run):
            self._tell("warning", {}, warning)
        self.last_eval = run.last_evaluation()
        self._since = (progress.update, time.monotonic())  # of the last line, moved on by the evaluations after it
        if lacks_evaluation(run, progress):
            self.assess()

    def log(self, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        metrics["time/updates_per_s"] = (self.progress.update - self._since[0]) / (now - self._since[1])
        self._since = (self.progress.update, now)
        self.run.log(self.progress.update, metrics)
        self._tell("update", metrics)

    def assess(self) -> None:
        """Evaluates the agent, unless a stop is asked for on the way."""
        assert self.env_id is not None
        begun, (run, update) = time.monotonic(), (self.run, self.progress.update)
        metrics = evaluate_run(run, self.config, self.agent, self.env_id, self.dataset, update, self._should_stop)
        self._since = (self._since[0], self._since[1] + time.monotonic() - begun)
        if metrics is not None:
            self.last_eval = metrics
            self._tell("eval", metrics)

    @property
    def stopping(self) -> bool:
        return self._should_stop is not None and self._should_stop()

    def save(self, tree: dict[str, Any], must: bool) -> None:
        """A checkpoint of `tree`; on a full disk a warning, or an error if there `must` be one."""
        meta = checkpoint_meta(self.config, self.dataset, self.env_id, self.progress.update)
        missed = self.run.save_checkpoint(self.progress.update, lambda path: checkpoint.save(path, tree, meta), must=must)
        self._tell("warning" if missed else "checkpoint", {}, missed or "")

    def end(self, totals: Mapping[str, int] | None = None) -> dict[str, Any]:
        """What the session came to, with `totals` of the loop's own; result.json if the run has finished."""
        finished = self.progress.finished and not lacks_evaluation(self.run, self.progress)
        result = {"updates": self.progress.update, "seconds": self.run.seconds(), "finished": finished}
        result |= {**(totals or {}), **self.last_eval}
        if finished:
            self.run.finish(result)
        self._tell("end", self.last_eval)
        return result

    def _tell(self, kind: Any, metrics: dict[str, float], message: str = "") -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, self.progress.update, self.config.num_updates, metrics, message))


@alone_in_run_dir
def train(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and records one run in this process.

    Args:
        resume: continue from the newest complete checkpoint of `run_dir`; start at 0 if there is none.
        should_stop: asked between calls; True writes a checkpoint and returns.

    Returns:
        What `result.json` holds: updates, seconds, updates_per_s, finished, and the last evaluation's metrics.
    """
    torch.set_num_threads(1)  # Why: one core per process; runs share the machine
    agent_config(config.algorithm, config.agent)  # for its errors, before anything is read or made
    config = with_device(config, run_dir, resume)
    check(
        not config.learns_online and config.dataset is not None,
        f"algorithm = {config.algorithm!r} takes its own steps; train it with online.train_online",
    )
    dataset = open_dataset(str(config.dataset))
    config = with_recorded_env(config, dataset)
    env_id = evaluation_env(config, dataset)
    config = with_episode_len(config, env_id)
    agent, replay = build_agent(config, dataset), build_replay(config, dataset)

    run = open_run(run_dir, config, dataset, resume)
    progress = Progress(config)
    if (newest := run.newest_checkpoint()) is not None:
        tree, meta = checkpoint.load(newest)
        agent.set_state(tree["agent"])
        replay.set_state(tree["replay"])
        progress.update = meta["update"]
    session = Session(config, run, progress, agent, dataset, env_id, on_event, should_stop)
    while not progress.finished:
        metrics = update_many(agent, replay, config.updates_per_call, config.batch_size)
        progress.update += config.updates_per_call
        if progress.due(config.log_every):
            session.log(metrics)
        if progress.evaluation_due:
            session.assess()
        stopping = session.stopping
        if progress.due(config.checkpoint_every) or stopping:
            session.save({"agent": agent.get_state(), "replay": replay.get_state()}, must=progress.finished or stopping)
        if stopping:
            break
    return session.end()
