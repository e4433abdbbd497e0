"""IQL-TD-MPC: offline model-based RL by TD-MPC's world model with IQL's losses (flat agent, Section IV).

Chitnis, Xu, Hashemi, Lehnert, Dogan, Zhu, Delalleau: IQL-TD-MPC: Implicit Q-Learning for Hierarchical Model Predictive Control.

What changes against `tdmpc.py`, its sibling: a value head V trained by an expectile loss (Eq. 1); the critic loss is TD-MPC's
or IQL's (Eq. 2); the policy is stochastic with a learned sigma and trained by advantage-weighted regression (Eq. 3); planning
keeps the best of the policy's own samples and refines nothing (n_r = 0).

Unspecified in the paper, decided here:
- V, like the policy, reads the rolled-out latents without sending gradient into the model, on an optimiser of its own; both
  average over the rollout with TD-MPC's weights rho^t;
- the advantage uses the minimum of the target critics, and V before its step (as CORL's IQL);
- expectile 0.7 and beta 3 (0.9 and 10 for antmaze), weights clipped at 100; V's network is as wide as the others;
- n_pi = 512, n_e = 64, one elite drawn by TD-MPC's scores; lr 3e-4; uniform sampling, no priorities;
- H = 5, gamma 0.99, rho 0.5, temperature 0.5 and L_f as a mean over the latent's dimensions, as TD-MPC's public code.
Deviates: squashed-Gaussian likelihoods take actions pulled inside the bounds (`action_margin`): data sits exactly on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Metrics, soft_update
from wmrl_ray.core.agents.latent import LatentAgent, LatentAgentConfig
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import (
    advantage_weight,
    expectile_loss,
    masked_mean,
    rescale_log_std,
    squashed_log_prob,
    squashed_sample,
    time_weights,
    weight_metrics,
)
from wmrl_ray.core.models.latent import LatentModel, TargetNetworks
from wmrl_ray.core.planner import PlanConfig


def policy_samples_only() -> PlanConfig:
    """n_r = 0: the best of the policy's samples, without refinement."""
    return PlanConfig(num_samples=0, num_policy=512, num_elites=64, iterations=1)


@dataclass(frozen=True)
class Config(LatentAgentConfig):
    plan: PlanConfig = field(default_factory=policy_samples_only)
    lr: float = 3e-4
    expectile: float = 0.7  # tau of Eq. 1
    beta: float = 3.0  # inverse temperature of Eq. 3
    largest_weight: float = 100.0  # of exp(beta A)
    critic_loss: Literal["tdmpc", "iql"] = "tdmpc"  # bootstrap from Q and pi, or from V; the paper reports the first as better
    log_std_min: float = -5.0  # pytorch_sac
    log_std_max: float = 2.0
    action_margin: float = 1e-3
    loss_clip: float = 1e4  # of each model loss of each window

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.expectile < 1, f"expectile = {self.expectile}; it must be in (0, 1)")
        check(0 < self.action_margin < 1, f"action_margin = {self.action_margin}; it must be in (0, 1)")


class IQLTDMPC(LatentAgent):
    """Latent planning over samples of an advantage-weighted policy."""

    Config = Config
    config: Config
    compiled_functions = (*LatentAgent.compiled_functions, "model_loss", "value_loss", "actor_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = LatentModel(self.config.model, self.obs_dim, self.action_dim, actor_dim=2 * self.action_dim, with_value=True)
        return model, TargetNetworks(model)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m = self.model
        assert m.value_head is not None
        world = [*m.encoder.parameters(), *m.dynamics.parameters(), *m.reward_head.parameters(), *m.critic.parameters()]
        groups = {"model": world, "value": list(m.value_head.parameters()), "actor": list(m.actor.parameters())}
        return {name: torch.optim.Adam(params, lr=self.config.lr, fused=True) for name, params in groups.items()}

    def distribution(self, actor: Tensor) -> tuple[Tensor, Tensor]:
        """What the actor's network says [..., 2 A] -> mean, log_std [..., A] of the Gaussian before the tanh."""
        mean, raw = actor.float().chunk(2, -1)
        return mean, rescale_log_std(raw, self.config.log_std_min, self.config.log_std_max)

    def sample(self, actor: Tensor, noise: Tensor) -> Tensor:
        return squashed_sample(*self.distribution(actor), noise)

    def model_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L = c_f L_f + c_R L_R + c_Q L_Q along a latent rollout, as TD-MPC, with either critic loss.

        Args:
            noise: [B, H, A] standard normal, for the policy's next action in TD-MPC's target.

        Returns:
            loss; zs [B, H+1, Z], the rollout, detached; info.
        """
        c = self.config
        zs = self.model.rollout(self.model.encode(batch.obs[:, 0]), batch.action)  # [B, H+1, Z]
        with torch.no_grad():
            z_target = self.target.encode(batch.obs[:, 1:])  # [B, H, Z]
            td_target = self.td_target(batch, noise)  # [B, H]
        reward = self.model.reward(zs[:, :-1], batch.action)  # [B, H]
        q = self.model.q(zs[:, :-1], batch.action)  # [Q, B, H]

        weights = time_weights(c.rho, batch.horizon, zs.device) * batch.valid  # [B, H]

        def window_loss(error: Tensor) -> Tensor:
            return (weights * error).sum(1).clamp(max=c.loss_clip).mean()

        consistency = window_loss(batch.observed * (zs[:, 1:] - z_target).float().square().mean(-1))  # L_f
        reward_loss = window_loss((reward.float() - self.scaled(batch.reward)).square())  # L_R
        critic = window_loss((q.float() - td_target).square().sum(0))  # L_Q, or Eq. 2
        loss = c.consistency_coef * consistency + c.reward_coef * reward_loss + c.critic_coef * critic
        info = {
            "loss/consistency": consistency,
            "loss/reward": reward_loss,
            "loss/critic": critic,
            "loss/model": loss,
            "q/mean": masked_mean(q.float().mean(0), batch.valid),
            "q/target_mean": masked_mean(td_target, batch.valid),
        }
        # Why 1/H: the public TD-MPC code scales the gradient so before it clips
        return loss / batch.horizon, zs.detach(), {name: value.detach() for name, value in info.items()}

    def td_target(self, batch: Batch, noise: Tensor) -> Tensor:
        """r + gamma Q_target(z', pi(z')) (L_Q), or r + gamma V(z') (Eq. 2); [B, H]. No bootstrap after a terminal step."""
        z_next = self.model.encode(batch.obs[:, 1:])
        if self.config.critic_loss == "iql":
            next_value = self.model.value(z_next).float()
        else:
            next_value = self.target.q(z_next, self.policy(z_next, noise)).float().amin(0)
        return self.scaled(batch.reward) + self.config.gamma * ~batch.terminated * next_value

    def value_loss(self, zs: Tensor, action: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L_V (Eq. 1): V follows an upper expectile of the target critics' minimum, over the data's actions.

        Args:
            zs: [B, H, Z] latents, without gradient. action: [B, H, A]. valid: [B, H], the steps that count.

        Returns:
            loss; advantage A = Q_target - V [B, H], without gradient; info.
        """
        with torch.no_grad():
            q_target = self.target.q(zs, action).float().amin(0)  # [B, H]
        v = self.model.value(zs).float()
        loss = self._over_rollout(expectile_loss(q_target - v, self.config.expectile), valid)
        advantage = q_target - v.detach()
        info = {
            "loss/value": loss,
            "v/mean": masked_mean(v, valid),
            "advantage/mean": (mean := masked_mean(advantage, valid)),
            "advantage/std": masked_mean((advantage - mean).square(), valid).sqrt(),
        }
        return loss, advantage, {name: value.detach() for name, value in info.items()}

    def actor_loss(self, zs: Tensor, action: Tensor, advantage: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi (Eq. 3): the likelihood of the data's actions [B, H, A] at zs [B, H, Z], weighted by exp(beta A) [B, H]."""
        c = self.config
        weight = advantage_weight(advantage, c.beta, c.largest_weight)
        log_prob = squashed_log_prob(*self.distribution(self.model.actor(zs)), action, c.action_margin)
        loss = -self._over_rollout(weight * log_prob, valid)
        info = {
            "loss/actor": loss,
            "actor/log_prob": masked_mean(log_prob, valid),
            **weight_metrics(weight, c.largest_weight, valid),
        }
        return loss, {name: value.detach() for name, value in info.items()}

    def _over_rollout(self, error: Tensor, valid: Tensor) -> Tensor:
        """[B, H] -> the mean over the batch of the average over time that weighs valid step t by rho^t and others by 0."""
        weights = time_weights(self.config.rho, error.shape[1], error.device)
        return (weights / weights.sum() * valid * error).sum(1).mean()

    def update(self, batch: Batch) -> Metrics:
        batch = batch.to(self.device)
        noise = torch.randn(batch.action.shape, generator=self.update_generator, device=self.device)
        with self.autocast():
            loss, zs, info = self.model_loss(batch, noise)
            zs, info = self.kept(zs, info)
            zs = zs[:, :-1]  # the latents at which the data has an action
            value_loss, advantage, value_info = self.value_loss(zs, batch.action, batch.valid)
            advantage, value_info = self.kept(advantage, value_info)
            actor_loss, actor_info = self.actor_loss(zs, batch.action, advantage, batch.valid)
        info["grad_norm/model"] = self.optimize("model", loss, self.config.grad_clip)
        info["grad_norm/value"] = self.optimize("value", value_loss, self.config.grad_clip)
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, self.config.grad_clip)
        self.num_updates += 1
        if self.num_updates % self.config.target_every == 0:
            soft_update(self.target.encoder, self.model.encoder, self.config.tau)
            soft_update(self.target.critic, self.model.critic, self.config.tau)
        return info | value_info | actor_info
