"""The runner actor: RLlib's stock sampling loop, with our environments and exact episode counts for evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from wmrl_ray.envs import make_vector_env
from wmrl_ray.rllib.callbacks import EpisodeRecord, EpisodeRecorder
from wmrl_ray.rollout import episode_seed

STEPS_PER_CALL = 25  # vector steps between two looks at the recorder


class PlannerEnvRunner(SingleAgentEnvRunner):
    """Environments + `Agent.act`. `config.env` is an id for `wmrl_ray.envs.make_env`, or a class that takes an EnvContext."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):  # in its own process
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        super().__init__(config=config, **kwargs)
        self.recorder = EpisodeRecorder()
        self._callbacks.append(self.recorder)

    def make_env(self) -> None:
        """Why not RLlib's: ids go through our door, and every environment has our interface and takes seeds for its resets."""
        if self.env is not None:
            self.env.close()
        config, num_envs = self.config, self.config.num_envs_per_env_runner
        context = EnvContext(config.env_config, worker_index=self.worker_index or 0, num_workers=self.num_workers)
        if isinstance(config.env, str):
            self.envs = make_vector_env(config.env, num_envs, **config.env_config)
        else:
            env_class: Any = config.env
            self.envs = make_vector_env(lambda: env_class(context), num_envs)
        self.env = DictInfoToList(self.envs)
        self.num_envs = num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={"env_runner": self, "metrics_logger": self.metrics, "env": self.envs, "env_context": context},
        )

    def run_episodes(self, numbers: range, seed: int, noise_seed: int) -> tuple[list[EpisodeRecord], dict[str, float]]:
        """The whole episodes `numbers` of an evaluation, each from its own seed as in `rollout.evaluate`.

        Why not `sample(num_episodes=...)`: it returns those that end first, and so prefers short episodes. Here environment i
        contributes the episodes i, i + W, ... of `numbers`, whenever they end.

        Returns:
            records in the order of `numbers`, and the means of what the planner reported.
        """
        envs: Any = self.envs.unwrapped  # behind it: without intents
        for i, env in enumerate(envs.envs):
            # Why without end: an environment that is done goes on while the others are not, and its rows count for the planner
            env.seeds = (episode_seed(seed, k) for k in itertools.count(numbers.start + i, self.num_envs))
        num_episodes = len(numbers)
        self._needs_initial_reset = True
        self.module.reset_plan(noise_seed)
        self.recorder.expect(np.bincount(np.arange(num_episodes) % self.num_envs, minlength=self.num_envs).tolist())
        try:
            while not self.recorder.is_complete:
                self.sample(num_timesteps=STEPS_PER_CALL * self.num_envs, explore=False)
        except RuntimeError as error:
            raise (error.__cause__ or error) from None  # Why: RLlib hides the environment's error behind an empty RuntimeError
        self._needs_initial_reset = True
        self.get_metrics()  # Why: RLlib keeps the episodes it has not reported
        return self.recorder.take(), self.module.plan_metrics()
