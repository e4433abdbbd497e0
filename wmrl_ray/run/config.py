"""What a run is asked to do: the fields of a training YAML."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from wmrl_ray.config import ConfigError, check, to_dict
from wmrl_ray.core.agents import AGENTS, agent_config
from wmrl_ray.data.source import absolute

if TYPE_CHECKING:
    from wmrl_ray.core.agents import Agent


@dataclass(frozen=True)
class OnlineConfig:
    """How an agent takes its own steps. A step is one action of the agent in one environment, whatever its action repeat."""

    num_runners: int = 0  # actors that plan and step while learners train; 0: in the learner's process, in turn
    num_envs: int = 1  # W, environments of each runner, planned for in one call
    schedule: Literal["synchronous", "asynchronous"] = "synchronous"
    # of every environment between two turns of the learner (1: the papers' loop); asynchronous: in one request of a runner, or
    # as many more as keep the driver's share of its time low (`schedule.Limits.pace`)
    steps_per_turn: int = 1
    seed_steps: int | None = None  # random ones at first; None: see `online.Clock`
    updates_per_step: float = 1.0  # U
    capacity: int = 1_000_000  # steps in the replay; the oldest whole episodes leave
    num_demonstrations: int | None = None  # the first episodes of `dataset`; None: all
    replay_unfinished: bool = True  # when resumed; False drops the unfinished episodes of simulators that cannot repeat them
    # asynchronous: how far runners and learners may get away from each other
    # steps taken beyond what the updates so far are due for; None: room for a request of each runner and a call, twice
    max_steps_ahead: int | None = None
    max_updates_ahead: int = 100  # updates made beyond what the steps so far are due for
    max_queued_episodes: int = 64  # ended, not yet in a learner's replay

    def __post_init__(self) -> None:
        counts = ("num_envs", "steps_per_turn", "capacity", "max_updates_ahead", "max_queued_episodes")
        for name in counts:
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        check(self.num_runners >= 0, f"num_runners = {self.num_runners}; it must not be negative")
        check(self.updates_per_step > 0, f"updates_per_step = {self.updates_per_step}; it must be positive")
        for name in ("seed_steps", "num_demonstrations", "max_steps_ahead"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} = {value}; it must be at least 1, or None")
        check(
            self.schedule == "synchronous" or self.num_runners >= 1,
            "schedule = 'asynchronous' with num_runners = 0; it needs at least 1 runner of its own",
        )

    @property
    def total_envs(self) -> int:
        """Of all runners."""
        return max(1, self.num_runners) * self.num_envs

    @property
    def updates_per_turn(self) -> float:
        return self.updates_per_step * self.steps_per_turn * self.total_envs


@dataclass(frozen=True)
class RunConfig:
    """What a training YAML holds. Times are counted in updates."""

    algorithm: str
    dataset: str | None = None  # URI: a Minari id, a file or a folder; None: the agent learns from its own steps alone
    env: str | None = None  # evaluation environment, and where an online agent steps; None: the dataset's own
    env_config: dict[str, Any] = field(default_factory=dict)  # its arguments, such as max_episode_steps
    seed: int = 0
    num_updates: int = 100_000
    batch_size: int = 256
    updates_per_call: int = 100  # K, gradient steps per call of a learner
    eval_every: int = 10_000  # 0: only at the end
    eval_episodes: int = 20
    checkpoint_every: int = 5_000
    num_to_keep: int = 2  # the newest checkpoints
    log_every: int = 500
    device: str = "auto"  # cpu, cuda, cuda:N; "auto": cuda if there is one, else cpu, decided when the run begins
    learner_resources: dict[str, float] = field(default_factory=dict)  # custom ones of Ray, for each learner actor: its nodes
    runner_resources: dict[str, float] = field(default_factory=dict)  # the same for each runner actor, of evaluations too
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # beside the run folder's own records
    num_learners: int = 0  # 0: in the driver process; 2 or more: data parallel
    num_eval_runners: int = 1  # actors that plan and step environments; 0: in the driver process
    envs_per_runner: int = 10
    max_failures: int = 3  # learners and runners lost without a new checkpoint in between; one more stops the run
    call_timeout_s: float = 3600.0  # seconds; an actor that has not answered a call or an evaluation by then is taken for dead
    placement_timeout_s: float = 600.0  # seconds; of waiting for room for the actors, when they are made or made again
    online: OnlineConfig = field(default_factory=OnlineConfig)  # of agents that learn online
    agent: dict[str, Any] = field(default_factory=dict)  # the agent's Config

    def __post_init__(self) -> None:
        periods = ("num_updates", "checkpoint_every", "log_every")
        for name in (*periods, "num_to_keep", "batch_size", "updates_per_call", "eval_episodes", "envs_per_runner"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("call_timeout_s", "placement_timeout_s"):
            check(getattr(self, name) > 0, f"{name} = {getattr(self, name)}; it must be positive")
        for name in ("eval_every", "num_learners", "num_eval_runners", "seed", "max_failures"):
            check(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}; it must not be negative")
        for name in (*periods, "eval_every"):
            value = getattr(self, name)
            check(
                value % self.updates_per_call == 0,
                f"{name} = {value} is not a multiple of updates_per_call = {self.updates_per_call}; loops stop between calls",
            )
        try:
            json.dumps(self.env_config, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"env_config = {self.env_config} cannot be recorded ({error}); use what JSON can hold") from None
        if self.algorithm in AGENTS:  # Why: an unknown one has an error of its own
            self._check_data(AGENTS[self.algorithm])

    @property
    def learns_online(self) -> bool:
        return AGENTS[self.algorithm].learns_online

    def _check_data(self, agent: type[Agent]) -> None:
        """What an agent learns from is there, and fits it."""
        name = f"algorithm = {self.algorithm!r}"
        if not agent.learns_online:
            check(self.dataset is not None, f"{name} learns from a dataset; set dataset = <Minari id, file or folder>")
            changed = [key for key in to_dict(self.online) if getattr(self.online, key) != getattr(OnlineConfig(), key)]
            check(not changed, f"{name} takes no steps of its own; drop online.{', online.'.join(changed)}")
            return
        if self.dataset is None:
            check(
                not agent.needs_demonstrations,
                f"{name} imitates; set dataset = <demonstrations>, such as those of `wmrl data make expert:TASK`",
            )
            check(self.env is not None, f"{name} steps in an environment; set env = <gymnasium id>")
            number = self.online.num_demonstrations
            check(number is None, f"online.num_demonstrations = {number}, but no dataset to take them from; set dataset")
        if self.online.schedule == "synchronous":
            turn = self.online.updates_per_turn
            check(
                abs(turn - round(turn)) < 1e-9 and round(turn) >= 1,  # Why not equal: 1/3 x 3 in floating point
                f"online.updates_per_step = {self.online.updates_per_step:g} makes {turn:g} updates in a turn of "
                f"{self.online.steps_per_turn * self.online.total_envs} steps; choose online.steps_per_turn so that "
                "updates_per_step x steps_per_turn x num_envs x runners is a whole number",
            )
            check(
                self.updates_per_call % round(turn) == 0,
                f"updates_per_call = {self.updates_per_call} is not a multiple of the {turn:g} updates of a turn "
                "(online: updates_per_step x steps_per_turn x num_envs x runners); loops stop between calls",
            )

    def resolved(self) -> RunConfig:
        """The same run from whatever folder it is read, with every default of the agent written out: what config.json keeps."""
        dataset = None if self.dataset is None else absolute(self.dataset)
        return replace(self, dataset=dataset, agent=to_dict(agent_config(self.algorithm, self.agent)))


# Settings of the agent that a run takes from its environment where they are None.
FROM_ENVIRONMENT = frozenset(["episode_len"])
