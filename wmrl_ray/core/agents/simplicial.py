"""What agents on the simplicial world model share outside their losses: acting by planning, also in bfloat16, and dropout."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmrl_ray.config import ConfigError, check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics
from wmrl_ray.core.blocks import dropout_mask, shift_images
from wmrl_ray.core.math import sample_pair, squashed_sample
from wmrl_ray.core.models.simplicial import SimplicialModel, SimplicialModelConfig, TargetCritic
from wmrl_ray.core.planner import PlanConfig, plan
from wmrl_ray.core.precision import LowPrecision

MANY_ACTIONS = 20  # action dimensions from which planning refines more often


def refined_often() -> PlanConfig:
    """512 trajectories over 3 steps, of which the policy's are 24; the mean forgets the iteration before."""
    return PlanConfig(horizon=3, num_samples=488, num_policy=24, momentum=0.0)


@dataclass(frozen=True)
class SimplicialAgentConfig(AgentConfig):
    model: SimplicialModelConfig = field(default_factory=SimplicialModelConfig)
    plan: PlanConfig = field(default_factory=refined_often)
    extra_iterations: int = 2  # of the plan, for an action_dim of 20 and more
    gamma: float | None = None  # discount; None: from episode_len
    episode_len: int | None = None  # T, steps of the agent in an episode; a run fills in its environment's step limit
    rho: float = 0.5  # weight of step t of a latent rollout is rho^t
    lr: float = 3e-4
    encoder_lr_scale: float = 0.3
    actor_eps: float = 1e-5  # of the policy's Adam
    grad_clip: float = 20.0  # norm
    tau: float = 0.01  # rate of the target critics
    consistency_coef: float = 20.0
    entropy_coef: float = 1e-4
    shift: int = 3  # pixels that images move at most, in updates

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.gamma is None or 0 < self.gamma <= 1, f"gamma = {self.gamma}; it must be in (0, 1], or None")
        check(self.episode_len is None or self.episode_len >= 1, f"episode_len = {self.episode_len}; it must be at least 1")
        check(self.extra_iterations >= 0, f"extra_iterations = {self.extra_iterations}; it must not be negative")

    @property
    def discount(self) -> float:
        """gamma, or (T/5 - 1) / (T/5) kept in [0.95, 0.995]: 0.99 for T = 500, 0.95 for T = 100.

        Raises:
            ConfigError: there is neither gamma nor episode_len, as before a run has filled it in.
        """
        if self.gamma is not None:
            return self.gamma
        if self.episode_len is None:
            raise ConfigError(
                "episode_len = None and gamma = None: set episode_len, steps in an episode, or gamma, the discount"
            )
        fifth = self.episode_len / 5
        return min(max((fifth - 1) / fifth, 0.95), 0.995)

    @property
    def window(self) -> int:
        return self.plan.horizon


class SimplicialAgent(Agent):
    """Acts by planning: `start`, `policy_actions` and `returns` are those of `planner.RedrawingPlanModel`.

    plan_config: of this agent's action_dim. With precision bfloat16 the planner reads a copy of the weights in bfloat16, and
    latents are bfloat16 too (their softmax as well, but where it is compiled for a CPU); what heads say, returns and actions
    are float32 (numbers of scalar critics from a last layer in float32, of bins from logits in bfloat16).
    """

    config: SimplicialAgentConfig
    model: SimplicialModel
    target: TargetCritic
    takes_images = True
    compiled_functions = ("policy_actions", "returns")

    def build_model(self, *, with_reward: bool = True) -> SimplicialModel:
        """The model, and what planning with it needs. Raises ConfigError: nothing tells the discount."""
        c = self.config
        _ = c.discount  # for its error, before anything is learned
        more = c.extra_iterations if self.action_dim >= MANY_ACTIONS and c.plan.num_samples > 0 else 0
        self.plan_config = dataclasses.replace(c.plan, iterations=c.plan.iterations + more)
        self.shared_draws = c.model.num_critics  # of the planner: they choose two critics
        model = SimplicialModel(c.model, self.obs_dim, self.action_dim, with_reward=with_reward)
        self.low_precision = LowPrecision(rounded(model)) if c.precision == "bfloat16" else None
        self.planned: SimplicialModel = model  # what planning reads: the model, or its copy in bfloat16
        return model

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for the model, whose encoder learns more slowly, and one for the policy."""
        c, m = self.config, self.model
        heads = [] if m.reward_head is None else list(m.reward_head.parameters())
        rest = [*m.dynamics.parameters(), *heads, *m.critic.parameters()]
        encoder = {"params": list(m.encoder.parameters()), "lr": c.lr * c.encoder_lr_scale}
        return {
            "model": torch.optim.Adam([encoder, {"params": rest}], lr=c.lr, fused=True),
            "actor": torch.optim.Adam(m.actor.parameters(), lr=c.lr, eps=c.actor_eps, fused=True),
        }

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
        self.planned = self.model if self.low_precision is None else self.low_precision.of(self.model)
        z = self.model.encode(obs)
        return plan(self, z, plan_state, is_first, self.plan_config, self.action_dim, self.act_generator, explore=explore)

    def draw_mask(self, num_heads: int, rows: int) -> Tensor | None:
        """Dropout of the critics' first layer."""
        c = self.config.model
        if c.dropout == 0:
            return None
        return dropout_mask((num_heads, rows, c.mlp_dim), c.dropout, self.update_generator)

    def shifted(self, obs: Tensor) -> Tensor:
        """Images moved at random, each by its own whole number of pixels; vectors as they are."""
        moves = obs.dim() > 3 and self.config.shift > 0
        return shift_images(obs, self.config.shift, self.update_generator) if moves else obs

    # -- RedrawingPlanModel ---------------------------------------------------------------------------------------------------

    def start(self, z: Tensor) -> Tensor:
        return self.planned.start(z)

    def policy_actions(self, z: Tensor, noise: Tensor) -> Tensor:
        m, actions, last = self.planned, [], noise.shape[1] - 1
        z = z.to(m.dtype)
        for t in range(last + 1):
            actions.append(squashed_sample(*m.policy(z), noise[:, t]))
            if t < last:
                z = m.next(z, actions[-1])
        return torch.stack(actions, 1)

    def returns(self, start: Tensor, actions: Tensor, noise: Tensor, shared: Tensor) -> Tensor:
        """sum_t gamma^t R(z_t, a_t) + gamma^H Q(z_H, a), a ~ pi(z_H), Q being the mean of the two critics of this draw."""
        m, gamma = self.planned, self.config.discount
        total, z = m.first_step(start, actions[:, 0])
        discount = gamma
        for t in range(1, actions.shape[1]):
            total = total + discount * m.reward(z, actions[:, t])
            z = m.next(z, actions[:, t])
            discount *= gamma
        action = squashed_sample(*m.policy(z), noise)
        return total + discount * m.q(z, action, sample_pair(shared)).mean(0)


def rounded(model: SimplicialModel) -> SimplicialModel:
    """A copy with weights in bfloat16; those of scalar critics' last layer in float32."""
    model = copy.deepcopy(model).bfloat16()
    if model.config.num_bins == 1:  # Why: a bias rounded to 8 bits moves Q, and weights its differences
        for last in (model.critic.weights[-1], model.critic.biases[-1]):
            last.data = last.data.float()
    return model
