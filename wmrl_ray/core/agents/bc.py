"""Behaviour cloning: the baseline that every planner has to beat.

Hyper-parameters are CORL's BC (the BC column of Table II of the IQL-TD-MPC paper): a deterministic tanh policy, mean squared
error, 256 x 2 ReLU, Adam 3e-4, observations normalised by the dataset's statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import masked_mean
from wmrl_ray.core.nets import Normalizer, mlp


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256
    lr: float = 3e-4
    normalize_obs: bool = True
    grad_clip: float | None = None  # CORL does not clip


class BC(Agent):
    """Clones the data's actions."""

    Config = Config
    config: Config
    compiled_functions = ("step",)

    def build(self) -> tuple[nn.Module, None]:
        normalizer = Normalizer(self.obs_dim) if self.config.normalize_obs else nn.Identity()
        actor = mlp(self.obs_dim, [self.config.hidden_dim] * 2, self.action_dim, nn.ReLU)
        return nn.Sequential(normalizer, actor, nn.Tanh()), None

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": torch.optim.Adam(self.model.parameters(), lr=self.config.lr, fused=True)}

    def actor_loss(self, batch: Batch) -> Tensor:
        """mean (pi(s) - a)^2 over the batch's valid steps and the action's dimensions."""
        error = (self.model(batch.obs[:, :-1]).float() - batch.action).square().mean(-1)
        return masked_mean(error, batch.valid)

    def step(self, batch: Batch) -> Metrics:
        with self.autocast():
            loss = self.actor_loss(batch)
        if self.config.grad_clip is None:
            self.descend("actor", loss)
            return {"loss/actor": loss.detach()}
        norm = self.optimize("actor", loss, self.config.grad_clip)
        return {"loss/actor": loss.detach(), "grad_norm/actor": norm}

    def update(self, batch: Batch) -> Metrics:
        info = self.step(batch.to(self.device))
        self.num_updates += 1
        return info

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Metrics]:
        with self.autocast():
            return self.model(obs).float(), None, {}
