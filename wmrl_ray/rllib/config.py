"""`IQLTDMPCConfig().dataset(uri).training(agent={...})`: RLlib's fluent configuration, with RLlib's silent typos refused.

An agent that takes its own steps: `.environment(id).training(agent={...}, online={"num_runners": 2})`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.util.debug import log_once

from wmrl_ray.config import ConfigError, check, did_you_mean, from_dict, to_dict
from wmrl_ray.core.agents import AGENTS, agent_config
from wmrl_ray.data.datasets import check_compatible, open_dataset, plain_env_id
from wmrl_ray.envs.recorded import recorded_config
from wmrl_ray.online import make_clock
from wmrl_ray.rllib import algorithm as algorithms
from wmrl_ray.rllib import compat, settings
from wmrl_ray.rllib.env_runner import PlannerEnvRunner
from wmrl_ray.rllib.environments import creator_of, id_of
from wmrl_ray.rllib.evaluation import evaluate_on_runners
from wmrl_ray.rllib.learner import AgentLearner
from wmrl_ray.rllib.module import AddIsFirst, AgentModule
from wmrl_ray.rllib.online import IQMPC, IQSAC, TDMPC2, OnlineAlgorithm, make_limits
from wmrl_ray.rllib.online_learner import OnlineLearner
from wmrl_ray.rollout import action_repeat, env_dims
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import with_episode_len


class AgentAlgorithmConfig(AlgorithmConfig):
    """RLlib's settings keep RLlib's names; ours are the dataset, `agent`, `batch_size` (of each learner), `updates_per_call`,
    and `online` (the keys of `wmrl_ray.run.config.OnlineConfig`) for an agent that takes its own steps.

    Offline there is nothing to sample while training: `num_env_runners` counts runners for evaluation too. Online it is another
    name of `online["num_runners"]`. Either way `num_envs_per_env_runner` is that of evaluations.
    """

    agent_name: ClassVar[str]
    default_algo_class: ClassVar[type]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or self.default_algo_class)
        self.agent: dict[str, Any] = {}
        self.online: dict[str, Any] = {}
        self.learner_resources: dict[str, float] = {}
        self.batch_size = 256
        self.updates_per_call = 100
        self.call_timeout_s = 3600.0
        self.dataset_uri: str | None = None
        self.run_record: dict[str, Any] | None = None
        self.seed = 0
        self._is_online = False  # Why: RLlib's only switch for "no training runners"; ours are in `sampling.Runners`
        self.env_runner_cls = PlannerEnvRunner
        self.num_envs_per_env_runner = 10
        self.normalize_actions = False  # Why: agents and environments share [-1, 1]; RLlib's scaling would only round
        self.evaluation_duration = 20
        self.custom_evaluation_function = evaluate_on_runners
        self.restart_failed_env_runners = False  # Why: an error should stop a run with its cause, not repeat after a minute

    # -- fluent ---------------------------------------------------------------------------------------------------------------

    def training(
        self,
        *,
        agent: Mapping[str, Any] = NotProvided,  # type: ignore[assignment]
        online: Mapping[str, Any] = NotProvided,  # type: ignore[assignment]
        batch_size: int = NotProvided,  # type: ignore[assignment]
        updates_per_call: int = NotProvided,  # type: ignore[assignment]
        call_timeout_s: float = NotProvided,  # type: ignore[assignment]
        **kwargs: Any,
    ) -> Self:
        """`agent`, `online`: what differs from the defaults. `updates_per_call`: K, updates in one iteration. `call_timeout_s`:
        a learner or a runner that has not answered a call by then is taken for dead.

        Raises:
            ConfigError: a key that does not exist, or one of RLlib's that has no effect here.
        """
        known = inspect.signature(AlgorithmConfig.training).parameters
        for key, value in kwargs.items():
            settings.check_value(key, value, _defaults(type(self)))
            if key not in known:
                ours = ("agent", "online", "batch_size", "updates_per_call", "call_timeout_s")
                raise ConfigError(f"training() has no key {key!r}{did_you_mean(key, [*ours, *known])}; ours: {', '.join(ours)}")
        super().training(**kwargs)
        given = {"agent": agent, "online": online, "batch_size": batch_size, "updates_per_call": updates_per_call}
        given["call_timeout_s"] = call_timeout_s
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def dataset(self, uri: str) -> Self:
        """The dataset that every learner maps, in any form that `open_dataset` reads; its environment is the default one."""
        self.dataset_uri = uri
        return self

    @classmethod
    def from_run(cls, run: RunConfig) -> Self:
        """The same training as `wmrl_ray.train.train(run)`, or `wmrl_ray.online.train_online(run)`."""
        # Why ERROR: RLlib warns of evaluation without an interval, which we start ourselves
        config = cls().debugging(seed=run.seed, log_level="ERROR")
        if run.dataset is not None:
            config.dataset(run.dataset)
        if run.learns_online:
            config.training(online=to_dict(run.online))
        config.training(agent=run.agent, batch_size=run.batch_size, updates_per_call=run.updates_per_call)
        config.learners(num_learners=run.num_learners)
        config.learner_resources = dict(run.learner_resources)
        config.environment(run.env, env_config=run.env_config)
        config.env_runners(
            num_envs_per_env_runner=run.envs_per_runner, custom_resources_per_env_runner=dict(run.runner_resources)
        )
        config.evaluation(evaluation_num_env_runners=run.num_eval_runners, evaluation_duration=run.eval_episodes)
        config.call_timeout_s = run.call_timeout_s
        config.run_record = to_dict(run)
        return config

    def run_config(self, device: str = "cpu") -> RunConfig:
        """This configuration in the terms of the loop without Ray."""
        # Why not offline: it is of no use outside Ray, and may be made with what JSON cannot hold
        k, is_made = self.updates_per_call, creator_of(self.env) is not None
        schedule = {name: k for name in ("num_updates", "checkpoint_every", "log_every")} | {"eval_every": 0}
        live = {
            "algorithm": self.agent_name,
            "dataset": self.dataset_uri,
            "env": None if is_made and not self.learns_online else id_of(self.env),
            "env_config": {} if is_made and not self.learns_online else dict(self.env_config),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "updates_per_call": k,
            "eval_episodes": self.evaluation_duration,
            "device": device,
            "num_learners": self.num_learners,
            "num_eval_runners": self.evaluation_num_env_runners,
            "envs_per_runner": self.num_envs_per_env_runner,
            "learner_resources": dict(self.learner_resources),
            "runner_resources": dict(cast("dict[str, float]", self.custom_resources_per_env_runner or {})),
            "call_timeout_s": self.call_timeout_s,
            "online": dict(self.online),
            "agent": dict(self.agent),
        }
        return from_dict(RunConfig, {**(self.run_record or schedule), **live})  # what was set last counts

    @property
    def learns_online(self) -> bool:
        return AGENTS[self.agent_name].learns_online

    # -- RLlib's hooks --------------------------------------------------------------------------------------------------------

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=AgentModule)

    def get_default_learner_class(self) -> type[AgentLearner]:
        return OnlineLearner if self.learns_online else AgentLearner

    def get_evaluation_config_object(self) -> Self | None:
        """Why: RLlib's own explores in evaluations as in training, unless it is told not to."""
        found = super().get_evaluation_config_object()
        if found is not None:
            found.explore = (self.evaluation_config or {}).get("explore", False)  # type: ignore[union-attr]
        return found  # type: ignore[return-value]

    def build_learner_group(self, *args: Any, **kwargs: Any) -> Any:
        with compat.learner_resources(self.learner_resources):
            return super().build_learner_group(*args, **kwargs)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        device = "cuda" if self.num_gpus_per_env_runner > 0 else "cpu"  # of runners; a learner builds its agent on its own
        own = {"algorithm": self.agent_name, "agent": dict(self.agent), "device": device}
        return {**super()._model_config_auto_includes, **own}

    def build_env_to_module_connector(self, env: Any = None, spaces: Any = None, device: Any = None) -> Any:
        pipeline = super().build_env_to_module_connector(env=env, spaces=spaces, device=device)
        pipeline.prepend(AddIsFirst())
        return pipeline

    def validate(self) -> None:
        """Raises ConfigError or DataError: one line about the first thing that is wrong."""
        known = _defaults(type(self))
        settings.check_settings(self, known)
        if not self.in_evaluation:
            settings.check_evaluation_config(self.evaluation_config, known)
            self._check_honoured()
        compile_mode = agent_config(self.agent_name, self.agent).compile
        check(
            self.num_learners < 2 or compile_mode == "off" or not AGENTS[self.agent_name].compiles_steps(),
            f"agent.compile = {compile_mode!r} makes one graph of a whole step of {self.agent_name}, in which the gradients of "
            f"num_learners = {self.num_learners} cannot be averaged; use compile = 'off', or one learner",
        )
        needs_dataset = not self.learns_online or AGENTS[self.agent_name].needs_demonstrations
        missing = needs_dataset and self.dataset_uri is None
        check(not missing, f"no dataset: add .dataset('<uri>') to {type(self).__name__}()")
        check(isinstance(self.seed, int), f"seed = {self.seed!r}; a whole number is needed: .debugging(seed=0)")
        if not self.in_evaluation:
            self._place_runners()
        compat.fit_to_mode(self)  # Why now: it takes away runners, by whichever name
        if not self.learns_online:
            self.run_config()  # checks batch_size, updates_per_call and env_config
        if self.dataset_uri is not None:
            self._fill_from_dataset()
        if self.learns_online:
            run = self.run_config()
            self._check_online(run)
            self.agent = with_episode_len(run, run.env).agent
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")  # Why: else RLlib warns that this is how it works now
        super().validate()

    def _place_runners(self) -> None:
        """Makes RLlib's `num_env_runners`, for which Tune reserves CPUs, and ours say the same."""
        if not self.learns_online:
            if self.num_env_runners > 0:
                self.evaluation_num_env_runners = max(self.num_env_runners, self.evaluation_num_env_runners)
                self.num_env_runners = 0
            return
        num_runners = self.online.get("num_runners", self.num_env_runners)
        check(
            self.num_env_runners in (0, num_runners),
            f"num_env_runners = {self.num_env_runners}, but online['num_runners'] = {num_runners}; set one of the two",
        )
        self.online, self.num_env_runners = {**self.online, "num_runners": num_runners}, num_runners

    def _check_online(self, run: RunConfig) -> None:
        name = type(self).__name__
        check(run.env is not None, f"env = {self.env!r}; {name} takes its steps in .environment('<id>')")
        assert run.env is not None
        env_dims(run.env, run.env_config)  # for its errors
        clock = make_clock(run, run.env)
        if run.online.schedule == "asynchronous":
            make_limits(run, clock)
        check(
            self.num_learners < 2 or run.online.num_runners >= 1,
            f"num_learners = {self.num_learners} with online.num_runners = 0: one learner would take the steps while the "
            "others wait; use at least 1 runner, or one learner",
        )
        check(
            issubclass(self.algo_class or object, OnlineAlgorithm),
            f"{name}.default_algo_class = {self.algo_class} does not learn online; derive it from OnlineAlgorithm",
        )

    def _check_honoured(self) -> None:
        """Settings that are honoured, with values that are not."""
        check(
            self.explore is True,
            f"explore = {self.explore!r} has no effect here: an agent explores as it collects, and not as it is evaluated; "
            "the latter changes with .evaluation(evaluation_config={'explore': True})",
        )
        duration = self.evaluation_duration
        check(
            isinstance(duration, int) and duration >= 1,
            f"evaluation_duration = {duration!r}; evaluations here run a whole number of episodes, at least 1",
        )
        check(
            self.learns_online or not self.min_sample_timesteps_per_iteration,
            f"min_sample_timesteps_per_iteration = {self.min_sample_timesteps_per_iteration}, but {type(self).__name__} takes "
            "no steps; set min_train_timesteps_per_iteration",
        )
        for key, own, base in (
            ("env_runner_cls", self.env_runner_cls, PlannerEnvRunner),
            ("learner_class", self._learner_class or self.get_default_learner_class(), self.get_default_learner_class()),
        ):
            fits = isinstance(own, type) and issubclass(own, base)
            check(fits, f"{key} = {own!r}; derive it from {base.__module__}.{base.__name__}")

    def _fill_from_dataset(self) -> None:
        """Environment and spaces that were left out."""
        assert self.dataset_uri is not None
        dataset = open_dataset(self.dataset_uri)
        card = dataset.card
        if not AGENTS[self.agent_name].acts:  # then there is nothing to run in an environment
            self.env, self.evaluation_num_env_runners = None, 0
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (card.obs_dim,), np.float32)
            self.action_space = gym.spaces.Box(-1.0, 1.0, (card.action_dim,), np.float32)
            return
        if self.env is None and card.env_id is not None:
            self.env = card.env_id
        if isinstance(self.env, str) and creator_of(self.env) is None:
            if card.env_id is not None and plain_env_id(self.env) == plain_env_id(card.env_id):
                self.env_config = {**recorded_config(self.env, card.env_spec, self.env_config), **self.env_config}
            repeat = action_repeat(self.env, self.env_config)
            check_compatible(dataset, *env_dims(self.env, self.env_config), self.env, repeat)
        if self.env is None and self.observation_space is None:
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (card.obs_dim,), np.float32)
            self.action_space = gym.spaces.Box(-1.0, 1.0, (card.action_dim,), np.float32)


@functools.cache
def _defaults(config_class: type[AgentAlgorithmConfig]) -> dict[str, Any]:
    return {**vars(config_class()), "class": config_class}  # "class": what RLlib's `from_state` leaves behind


class BCConfig(AgentAlgorithmConfig):
    agent_name = "bc"
    default_algo_class = algorithms.BC


class IQLConfig(AgentAlgorithmConfig):
    agent_name = "iql"
    default_algo_class = algorithms.IQL


class TD3BCConfig(AgentAlgorithmConfig):
    agent_name = "td3_bc"
    default_algo_class = algorithms.TD3BC


class AWACConfig(AgentAlgorithmConfig):
    agent_name = "awac"
    default_algo_class = algorithms.AWAC


class CQLConfig(AgentAlgorithmConfig):
    agent_name = "cql"
    default_algo_class = algorithms.CQL


class DTConfig(AgentAlgorithmConfig):
    agent_name = "dt"
    default_algo_class = algorithms.DT


class TDMPCConfig(AgentAlgorithmConfig):
    agent_name = "tdmpc"
    default_algo_class = algorithms.TDMPC


class TDMPC2Config(AgentAlgorithmConfig):
    agent_name = "tdmpc2"
    default_algo_class = TDMPC2


class IQLTDMPCConfig(AgentAlgorithmConfig):
    agent_name = "iql_tdmpc"
    default_algo_class = algorithms.IQLTDMPC


class ManagerConfig(AgentAlgorithmConfig):
    agent_name = "manager"
    default_algo_class = algorithms.Manager


class IQSACConfig(AgentAlgorithmConfig):
    agent_name = "iq_sac"
    default_algo_class = IQSAC


class IQMPCConfig(AgentAlgorithmConfig):
    agent_name = "iq_mpc"
    default_algo_class = IQMPC


CONFIGS: dict[str, type[AgentAlgorithmConfig]] = {
    c.agent_name: c
    for c in (
        BCConfig,
        IQLConfig,
        TD3BCConfig,
        AWACConfig,
        CQLConfig,
        DTConfig,
        TDMPCConfig,
        TDMPC2Config,
        IQLTDMPCConfig,
        ManagerConfig,
        IQSACConfig,
        IQMPCConfig,
    )
}
