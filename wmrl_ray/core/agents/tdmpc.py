"""TD-MPC, trained on a fixed dataset.

Hansen, Wang, Su: Temporal Difference Learning for Model Predictive Control (2203.04955); as the baseline of Table I of the
IQL-TD-MPC paper, whose Section III-B numbers the losses below follow. Sizes, coefficients and the mean over the latent's
dimensions in L_f (the text: a squared norm) are the authors' public code's.

Deviates, for offline training (what Table I's TD-MPC column needs and its text leaves out):
- the schedules of exploration noise and of the horizon (1 to 5 over 25k steps) are dropped: nothing is explored;
- windows are sampled uniformly, not by priority; batch 256 as in the paper's Section VI;
- terminal steps do not bootstrap, and windows that pass an episode's end are masked there (the public code meets neither).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.core.agents.base import Metrics, frozen, soft_update
from wmrl_ray.core.agents.latent import LatentAgent, LatentAgentConfig
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import masked_mean, time_weights, truncated_noise
from wmrl_ray.core.models.latent import LatentModel, TargetNetworks


@dataclass(frozen=True)
class Config(LatentAgentConfig):
    policy_std: float = 0.05  # sigma of pi, fixed
    policy_noise_clip: float = 0.3
    loss_clip: float = 1e4  # of each loss of each window


class TDMPC(LatentAgent):
    """Latent planning with a deterministic policy plus fixed noise."""

    Config = Config
    config: Config
    compiled_functions = (*LatentAgent.compiled_functions, "model_loss", "actor_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = LatentModel(self.config.model, self.obs_dim, self.action_dim, actor_dim=self.action_dim)
        return model, TargetNetworks(model)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m = self.model
        world = [*m.encoder.parameters(), *m.dynamics.parameters(), *m.reward_head.parameters(), *m.critic.parameters()]
        groups = {"model": world, "actor": list(m.actor.parameters())}
        return {name: torch.optim.Adam(params, lr=self.config.lr, fused=True) for name, params in groups.items()}

    def sample(self, actor: Tensor, noise: Tensor) -> Tensor:
        mean = torch.tanh(actor.float())
        return truncated_noise(mean, self.config.policy_std, noise, self.config.policy_noise_clip)

    def model_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L = c_f L_f + c_R L_R + c_Q L_Q along a latent rollout.

        Args:
            noise: [B, H, A] standard normal, for the policy's next action in the TD target.

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
        critic = window_loss((q.float() - td_target).square().sum(0))  # L_Q
        loss = c.consistency_coef * consistency + c.reward_coef * reward_loss + c.critic_coef * critic
        info = {
            "loss/consistency": consistency,
            "loss/reward": reward_loss,
            "loss/critic": critic,
            "loss/model": loss,
            "q/mean": masked_mean(q.float().mean(0), batch.valid),
            "q/target_mean": masked_mean(td_target, batch.valid),
        }
        # Why 1/H: the public code scales the gradient so before it clips
        return loss / batch.horizon, zs.detach(), {name: value.detach() for name, value in info.items()}

    def td_target(self, batch: Batch, noise: Tensor) -> Tensor:
        """r + gamma min_Q Q_target(z', pi(z')) [B, H], with z' from the online encoder; no bootstrap after a terminal step."""
        z_next = self.model.encode(batch.obs[:, 1:])
        q_next = self.target.q(z_next, self.policy(z_next, noise)).float().amin(0)
        return self.scaled(batch.reward) + self.config.gamma * ~batch.terminated * q_next

    def actor_loss(self, zs: Tensor, alive: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi = -min_Q Q(z, pi(z)) along the rollout zs [B, H+1, Z], its last latent included; noise [B, H+1, A].

        alive: [B, H+1] bool, which latents count (`Batch.alive`).
        """
        q = self.model.q(zs, self.policy(zs, noise)).float().amin(0)  # [B, H+1]
        loss = -(time_weights(self.config.rho, zs.shape[1], zs.device) * alive * q).sum(1).mean()
        return loss, {"loss/actor": loss.detach()}

    def update(self, batch: Batch) -> Metrics:
        batch = batch.to(self.device)
        B, H, A = batch.action.shape
        noise = torch.randn(B, 2 * H + 1, A, generator=self.update_generator, device=self.device)
        with self.autocast():
            loss, zs, info = self.model_loss(batch, noise[:, :H])
        zs, info = self.kept(zs, info)
        info["grad_norm/model"] = self.optimize("model", loss, self.config.grad_clip)
        with frozen(self.model.critic), self.autocast():
            actor_loss, actor_info = self.actor_loss(zs, batch.alive, noise[:, H:])
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, self.config.grad_clip)
        self.num_updates += 1
        if self.num_updates % self.config.target_every == 0:
            soft_update(self.target.encoder, self.model.encoder, self.config.tau)
            soft_update(self.target.critic, self.model.critic, self.config.tau)
        return info | actor_info
