"""The Agent as an RLModule: acting is `agent.act` on the whole vector environment; learning is the Learner's business."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.inference_only_api import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from wmrl_ray.core.agents import Agent, make_agent

IS_FIRST, LAST_REWARD = "is_first", "last_reward"


class AddIsFirst(ConnectorV2):
    """Adds `is_first` [W]: the environment has just been reset, so a planner must not warm-start from the last episode; and
    `last_reward` [W], what the previous action earned (0 at first).
    """

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], episodes: Any, **kwargs: Any) -> dict[str, Any]:
        for episode in self.single_agent_episode_iterator(episodes):
            is_first = episode.t_started == 0 and len(episode) == 0
            # a piece of an episode that goes on keeps the last step of the piece before
            reward = 0.0 if is_first else float(episode.get_rewards(-1))
            self.add_batch_item(batch, IS_FIRST, item_to_add=float(is_first), single_agent_episode=episode)
            self.add_batch_item(batch, LAST_REWARD, item_to_add=reward, single_agent_episode=episode)
        return batch


class AgentModule(TorchRLModule, InferenceOnlyAPI):
    """Holds an Agent. `model` and `target` are its modules, so RLlib syncs and saves their weights; runners have no `target`.

    The warm start of the planner is a plain attribute: neither in the weights nor in a checkpoint.
    """

    def setup(self) -> None:
        settings: Mapping[str, Any] = self.model_config  # type: ignore[assignment]
        shape, action_dim = self.observation_space.shape, math.prod(self.action_space.shape)
        self.obs_dim = tuple(shape) if len(shape) == 3 else math.prod(shape)  # (C, h, w) of images
        agent = dict(settings["agent"])
        if agent.get("compile") == "cuda_graphs" and settings["device"] == "cpu":
            agent["compile"] = "off"  # Why: that setting is for the learner's GPU; this runner has none
        self.adopt(make_agent(settings["algorithm"], agent, self.obs_dim, action_dim, device=settings["device"]))

    def adopt(self, agent: Agent) -> None:
        """Makes `agent` the one that acts and whose weights RLlib sees."""
        self.agent = agent
        self.model, self.target = agent.model, agent.target
        if self.inference_only:  # weights come from the learner, which alone needs the rest
            agent.target, agent.optimizers = None, {}
        self.train(self.training)
        self.reset_plan()

    def get_non_inference_attributes(self) -> list[str]:
        return ["target"]

    def reset_plan(self, seed: int | None = None) -> None:
        """Forgets the warm start and the plan statistics; with a seed, also restarts the random stream of acting."""
        self._plan_state: Tensor | None = None
        self._plan_sums: dict[str, Tensor] = {}
        self._num_plans = 0
        if seed is not None:
            self.agent.act_generator.manual_seed(seed)

    def plan_metrics(self) -> dict[str, float]:
        """Means since `reset_plan` of what `agent.act` reported, such as `plan/nan_frac`."""
        return {name: float(total) / self._num_plans for name, total in self._plan_sums.items()}

    def train(self, mode: bool = True) -> AgentModule:
        """Why: the target network never trains, and newer versions of RLlib switch modes in their forward methods."""
        super().train(mode)
        target = getattr(self, "target", None)
        if target is not None:
            target.eval()
        return self

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self._act(batch, explore=False)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self._act(batch, explore=True)

    @torch.no_grad()
    def _act(self, batch: dict[str, Any], explore: bool) -> dict[str, Tensor]:
        """Actions [W, A] in [-1, 1] for observations [W, O], or images [W, C, h, w].

        Without `is_first` each call stands for itself: it begins from no plan, and no episode. Who acts through episodes says
        where they begin, by `is_first` [W] and `last_reward` [W] (see `AddIsFirst`).
        """
        if self.training:
            self.eval()
        obs = torch.as_tensor(batch[Columns.OBS], device=self.agent.device)
        obs = obs.float().flatten(1) if isinstance(self.obs_dim, int) else obs
        is_first = torch.as_tensor(batch.get(IS_FIRST, torch.ones(len(obs))), device=obs.device).bool().flatten()
        reward = torch.as_tensor(batch.get(LAST_REWARD, torch.zeros(len(obs))), device=obs.device).float().flatten()
        if self._plan_state is not None and len(self._plan_state) != len(obs):
            self._plan_state = None
        action, self._plan_state, metrics = self.agent.act(obs, self._plan_state, is_first, explore=explore, reward=reward)
        if not action.isfinite().all():
            raise FloatingPointError(
                f"the agent's action is not finite: {action.tolist()}; its parameters have diverged: lower the learning "
                "rate or scale the rewards, and go on from an earlier checkpoint"
            )
        for name, value in metrics.items():
            self._plan_sums[name] = self._plan_sums.get(name, 0.0) + value
        self._num_plans += 1
        return {Columns.ACTIONS: action}
