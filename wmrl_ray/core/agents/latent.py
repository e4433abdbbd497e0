"""What the TD-MPC family shares outside its losses: acting by planning in the latent space."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics
from wmrl_ray.core.models.latent import LatentModel, LatentModelConfig, TargetNetworks
from wmrl_ray.core.planner import PlanConfig, plan
from wmrl_ray.core.precision import LowPrecision


@dataclass(frozen=True)
class LatentAgentConfig(AgentConfig):
    model: LatentModelConfig = field(default_factory=LatentModelConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    gamma: float = 0.99  # discount
    rho: float = 0.5  # weight of step t of a latent rollout is rho^t
    lr: float = 1e-3
    grad_clip: float = 10.0  # norm
    tau: float = 0.01  # rate of the target networks
    target_every: int = 2  # updates between two steps of the target networks
    consistency_coef: float = 2.0  # c_f
    reward_coef: float = 0.5  # c_R
    critic_coef: float = 0.1  # c_Q
    # Rewards become scale * r + shift. Returns and advantages scale along, which plan.temperature and beta multiply:
    # with twice the scale, half of each plans and clones as before. Large rewards make the latents grow.
    reward_scale: float = 1.0
    reward_shift: float = 0.0  # CORL's antmaze uses -1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.gamma <= 1, f"gamma = {self.gamma}; it must be in (0, 1]")
        check(self.target_every >= 1, f"target_every = {self.target_every}; it must be at least 1")

    @property
    def window(self) -> int:
        return self.plan.horizon


class LatentAgent(Agent):
    """Plans with the policy, the model's dynamics and reward, and the critics' minimum. Implements `planner.PlanModel`.

    With precision bfloat16 planning reads a copy of the weights that is rounded once for a plan.
    """

    config: LatentAgentConfig
    model: LatentModel
    target: TargetNetworks
    compiled_functions = ("returns", "policy_rollout")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.low_precision = LowPrecision(rounded(self.model)) if self.config.precision == "bfloat16" else None
        self.planned = self.model  # what planning reads: the model, or its copy in bfloat16

    def scaled(self, reward: Tensor) -> Tensor:
        """The rewards that are learned from, for those of the data; any shape."""
        return self.config.reward_scale * reward + self.config.reward_shift

    def sample(self, actor: Tensor, noise: Tensor) -> Tensor:
        """A sample of pi(. | z) [..., A] for what the actor's network says of z [..., actor_dim] and standard normal noise."""
        raise NotImplementedError

    def policy(self, z: Tensor, noise: Tensor) -> Tensor:
        """A sample of pi(. | z) [..., A] for standard normal noise [..., A]."""
        return self.sample(self.model.actor(z), noise)

    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Metrics]:
        return self.plan(obs, plan_state, is_first, self.act_generator, explore=explore)

    @torch.no_grad()
    def plan(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        explore: bool = False,
    ) -> tuple[Tensor, Tensor, Metrics]:
        """`planner.plan` at obs [W, O]."""
        self.planned = self.model if self.low_precision is None else self.low_precision.of(self.model)
        with self.autocast():
            z = self.model.encode(obs).float()
            return plan(self, z, plan_state, is_first, self.config.plan, self.action_dim, generator, explore=explore)

    # -- PlanModel ----------------------------------------------------------------------------------------------------------

    def policy_rollout(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        m, actions, total, discount = self.planned, [], 0.0, 1.0
        for t in range(self.config.plan.horizon):
            actions.append(self.sample(m.actor(z), noise[:, t]).float())
            total = total + discount * m.reward(z, actions[-1]).float()
            z = m.next(z, actions[-1])
            discount *= self.config.gamma
        return torch.stack(actions, 1), total + discount * self._terminal_value(z, noise[:, -1])

    def returns(self, z: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        m, total, discount = self.planned, 0.0, 1.0
        for t in range(self.config.plan.horizon):
            total = total + discount * m.reward(z, actions[:, t]).float()
            z = m.next(z, actions[:, t])
            discount *= self.config.gamma
        return total + discount * self._terminal_value(z, noise)

    def _terminal_value(self, z: Tensor, noise: Tensor) -> Tensor:
        m = self.planned
        return m.q(z, self.sample(m.actor(z), noise)).amin(0).float()


def rounded(model: LatentModel) -> LatentModel:
    """A copy whose linear layers are in bfloat16, as autocast has them; those with a single output may be summed in float32."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > 1:
            layer.bfloat16()
    return model
