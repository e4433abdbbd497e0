"""The runner actor: RLlib's sampling loop for evaluations, with exact episode counts; our Collector for learning online."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wmrl_ray.collect import Collector
from wmrl_ray.envs import make_vector_env
from wmrl_ray.rllib.callbacks import CollectedEpisodes, EpisodeRecord, EpisodeRecorder
from wmrl_ray.rllib.environments import creator_of, id_of
from wmrl_ray.rllib.failures import Failure, guarded
from wmrl_ray.rllib.sampling import Answer, Order, Weights
from wmrl_ray.rllib.weights import load_weights
from wmrl_ray.rollout import episode_seed

if TYPE_CHECKING:
    from wmrl_ray.data.episode import Episode

STEPS_PER_CALL = 25  # vector steps between two looks at the recorder


class PlannerEnvRunner(SingleAgentEnvRunner):
    """Environments + `Agent.act`. `config.env` is an id for `wmrl_ray.envs.make_env`, or one that `creator_of` knows."""

    _listener: CollectedEpisodes | None = None  # of the collector

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):  # in its own process
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        self._collector: Collector | None = None
        self._session = ""  # of the collector
        self._held = ""  # the object whose weights the agent has
        self._answered: float | None = None
        # Why not the runner's own: what RLlib logs there counts episodes beyond those of an evaluation
        self.of_callbacks = MetricsLogger(stats_cls_lookup=config.stats_cls_lookup, root=False)
        super().__init__(config=config, **kwargs)
        self._users_callbacks = list(self._callbacks)
        self.recorder = EpisodeRecorder()
        self._callbacks.append(self.recorder)

    def make_env(self) -> None:
        """Why not RLlib's: ids go through our door, and every environment has our interface and takes seeds for its resets."""
        if not self.config.in_evaluation and self.config.learns_online:
            return  # this runner's environments are its collector's
        if self.env is not None:
            self.env.close()
        config, num_envs = self.config, self.config.num_envs_per_env_runner
        context = EnvContext(config.env_config, worker_index=self.worker_index or 0, num_workers=self.num_workers)
        creator = creator_of(config.env)
        if creator is None or config.learns_online:
            self.envs = make_vector_env(id_of(config.env), num_envs, **config.env_config)
        else:
            limit = config.env_config.get("max_episode_steps")
            self.envs = make_vector_env(lambda: creator(context), num_envs, max_episode_steps=limit)
        self.env = DictInfoToList(self.envs)
        self.num_envs = num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={"env_runner": self, "metrics_logger": self.of_callbacks, "env": self.envs, "env_context": context},
        )

    def _make_on_episode_callback(self, which: str, idx: int, episodes: list[Any]) -> None:
        """As RLlib's, but not of what an environment does when it has run its episodes; and with a logger of their own."""
        if self.recorder.has_all_of(idx):
            return
        kwargs = {"episode": episodes[idx], "env_runner": self, "metrics_logger": self.of_callbacks, "env_index": idx}
        kwargs |= {"env": self.env.unwrapped, "rl_module": self.module}
        if which == "on_episode_end":
            kwargs["prev_episode_chunks"] = self._ongoing_episodes_for_metrics[episodes[idx].id_]
        make_callback(which, self._callbacks, getattr(self.config, f"callbacks_{which}"), kwargs=kwargs)

    def run_episodes(self, numbers: range, seed: int, noise_seed: int) -> tuple[list[EpisodeRecord], dict[str, float], Any]:
        """The whole episodes `numbers` of an evaluation, each from its own seed as in `rollout.evaluate`.

        Why not `sample(num_episodes=...)`: it returns those that end first, and so prefers short episodes. Here environment i
        contributes the episodes i, i + W, ... of `numbers`, whenever they end.

        Returns:
            records in the order of `numbers`, the means of what the planner reported, and what callbacks logged.
        """
        envs: Any = self.envs.unwrapped  # behind it: without intents
        for i, env in enumerate(envs.envs):
            # Why without end: an environment that is done goes on while the others are not, and its rows count for the planner
            env.numbers = itertools.count(numbers.start + i, self.num_envs)
            env.seeds = (episode_seed(seed, k) for k in itertools.count(numbers.start + i, self.num_envs))
        num_episodes = len(numbers)
        self._needs_initial_reset = True
        self.module.reset_plan(noise_seed)
        self.recorder.expect(np.bincount(np.arange(num_episodes) % self.num_envs, minlength=self.num_envs).tolist())
        try:
            while not self.recorder.is_complete:
                self.sample(num_timesteps=STEPS_PER_CALL * self.num_envs)
        except RuntimeError as error:
            raise (error.__cause__ or error) from None  # Why: RLlib hides the environment's error behind an empty RuntimeError
        self._needs_initial_reset = True
        self.get_metrics()  # Why: RLlib keeps the episodes it has not reported
        return self.recorder.take(), self.module.plan_metrics(), self.of_callbacks.reduce()

    # -- learning online ------------------------------------------------------------------------------------------------------

    def collect(self, order: Order) -> tuple[Answer | Failure, list[Episode]]:
        """Takes the steps of `order` in this runner's environments, whose episodes go on from one order to the next, but none
        after the first with which an episode ends: what has ended leaves this process at once, and cannot die with it.

        Returns: what the driver reads, and the episodes that ended. An error is a value: the driver raises it.
        """
        result = guarded(self._collect)(order)
        self._answered = time.monotonic()
        return (result, []) if isinstance(result, Failure) else result

    def get_collector_state(self, session: str) -> Any:
        """None before the first order of `session`. An error is a value."""
        collector = self._collector
        return None if collector is None or self._session != session else guarded(collector.get_state)()

    def _collect(self, order: Order) -> tuple[Answer, list[Episode]]:
        wait_s = 0.0 if self._answered is None else time.monotonic() - self._answered
        collector = self._collector_for(order)
        begun = time.monotonic()
        if order.weights is not None:
            self._take(order.weights)
        load_s = time.monotonic() - begun
        episodes = collector.collect(None if order.weights is None else self.module.agent, order.num_steps, until_end=True)
        lengths = [len(episode) for episode in episodes]
        logged = None if self._listener is None else self._listener.metrics.reduce()
        return Answer(lengths, collector.take_statistics(), load_s, wait_s, collector.unfinished, logged), episodes

    def _collector_for(self, order: Order) -> Collector:
        """The one at work, or a new one where the order is for another."""
        if self._collector is not None:
            if order.session == self._session:
                return self._collector
            self._collector.close()
        config, run = self.config, self.config.run_config()
        assert run.env is not None
        self._listener = CollectedEpisodes.of(config, self.module, self._users_callbacks, self)
        self._collector = Collector(run.env, config.env_config, run.online.num_envs, order.seed, self._listener)
        self._session = order.session
        if order.collector is not None:
            state, replay_unfinished = order.collector
            self._collector.set_state(state, replay_unfinished=replay_unfinished)
        return self._collector

    def _take(self, weights: Weights) -> None:
        reference = weights.reference[0]
        if reference.hex() != self._held:
            load_weights(self.module.agent.model, ray.get(reference))
            self.module.agent.num_updates = weights.version
            self._held = reference.hex()
        if self.module.training:
            self.module.eval()
