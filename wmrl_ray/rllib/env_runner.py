"""The runner actor: RLlib's stock sampling loop, with our environments and exact episode counts for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from wmrl_ray.envs import make_vector_env
from wmrl_ray.rllib.callbacks import EpisodeRecord, EpisodeRecorder

STEPS_PER_CALL = 25  # vector steps between two looks at the recorder


class PlannerEnvRunner(SingleAgentEnvRunner):
    """Environments + `Agent.act`. A string `config.env` is an id for `wmrl_ray.envs.make_env`."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        if kwargs.get("worker_index"):  # in its own process
            torch.set_num_threads(max(1, int(config.num_cpus_per_env_runner)))
        super().__init__(config=config, **kwargs)
        self.recorder = EpisodeRecorder()
        self._callbacks.append(self.recorder)

    def make_env(self) -> None:
        if not isinstance(self.config.env, str):
            super().make_env()
            return
        if self.env is not None:
            self.env.close()
        envs = make_vector_env(self.config.env, self.config.num_envs_per_env_runner, **self.config.env_config)
        self.env = DictInfoToList(envs)
        self.num_envs = envs.num_envs
        self._needs_initial_reset = True

    def run_episodes(self, num_episodes: int, seed: int) -> tuple[list[EpisodeRecord], dict[str, float]]:
        """Exactly `num_episodes` whole episodes from fresh resets; the same ones for the same seed and weights.

        Why not `sample(num_episodes=...)`: it returns those that end first, and so prefers short episodes. Here environment i
        contributes its first n_i episodes, whenever they end.

        Returns:
            records in a fixed order, and the means of what the planner reported.
        """
        self._seed = seed
        self._needs_initial_reset = True
        self.module.reset_plan(seed)
        self.recorder.expect(np.bincount(np.arange(num_episodes) % self.num_envs, minlength=self.num_envs).tolist())
        try:
            while not self.recorder.is_complete:
                self.sample(num_timesteps=STEPS_PER_CALL * self.num_envs, explore=False)
        except RuntimeError as error:
            raise (error.__cause__ or error) from None  # Why: RLlib hides the environment's error behind an empty RuntimeError
        self._needs_initial_reset = True
        self.get_metrics()  # Why: RLlib keeps the episodes it has not reported
        return self.recorder.take(), self.module.plan_metrics()
