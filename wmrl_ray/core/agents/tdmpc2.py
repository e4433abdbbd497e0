"""TD-MPC2: a decoder-free world model, planned with and learned from in its latent space. One task, vectors or images.

Hansen, Su, Wang: TD-MPC2: Scalable, Robust World Models for Continuous Control (2310.16828); the text's losses with the
numbers of the authors' public code, where the 5M-parameter model is the default.

What changes against `tdmpc.py`, its sibling: latents on simplices; reward and critics are distributions over bins in symlog
space, learned by cross entropy; five critics with dropout, of which two are drawn for each target, policy loss and iteration of
planning; the policy is a squashed Gaussian, rewarded for entropy, whose Q is divided by a running scale; no slow encoder.

Unspecified in the paper, decided here:
- the entropy term (`entropy`): "gaussian" is the public code's of today, -A log N, without the tanh; "squashed" is that of its
  first versions and of IQ-MPC's, -(A log N - log det tanh).
Deviates:
- steps after a terminal one are masked, and none of them bootstraps (the public code refuses environments that terminate, or
  learns to predict termination);
- windows may pass an episode's truncated end too: they are masked there, and still count as one of the B windows and H steps
  that losses are divided by (the public code draws windows from inside episodes only);
- log det tanh of "squashed" is exact (`tanh_log_det`; in the public code log(relu(1 - tanh^2) + 1e-6), which is bounded);
- images are shifted at random in updates alone (the public code also shifts what it acts on);
- with several learners each has its own running scale of Q; the first one's is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Metrics, frozen, soft_update
from wmrl_ray.core.agents.simplicial import SimplicialAgent, SimplicialAgentConfig
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import LOG_2PI, masked_mean, running_scale, sample_pair, squashed_sample, tanh_log_det, time_weights
from wmrl_ray.core.models.simplicial import SimplicialModel, TargetCritic


@dataclass(frozen=True)
class Config(SimplicialAgentConfig):
    reward_coef: float = 0.1
    critic_coef: float = 0.1
    entropy: Literal["gaussian", "squashed"] = "gaussian"  # see above
    scale_rate: float = 0.01  # of the running scale of Q

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.model.num_bins >= 2, f"model.num_bins = {self.model.num_bins}; TD-MPC2's heads need at least 2")


class Target(TargetCritic):
    """The slow critics, and the running scale of Q in the policy's loss."""

    scale: Tensor

    def __init__(self, model: SimplicialModel):
        super().__init__(model)
        self.register_buffer("scale", torch.ones(()))


class TDMPC2(SimplicialAgent):
    """Latent planning with distributional rewards and critics."""

    Config = Config
    config: Config
    target: Target
    learns_online = True
    compiled_functions = (*SimplicialAgent.compiled_functions, "model_loss", "actor_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = self.build_model()
        return model, Target(model)

    def model_loss(
        self, obs: Tensor, batch: Batch, noise: Tensor, pair: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """20 L_consistency + 0.1 L_reward + 0.1 L_critic along a latent rollout.

        Args:
            obs: [B, H+1, ...], the batch's or its images shifted.
            noise: [B, H, A] standard normal, for the policy's next action in the TD target.
            pair: [Q] standard normal, which chooses the target's two critics.
            mask: [Q, B * H, mlp_dim] dropout of the critics.

        Returns:
            loss; zs [B, H+1, Z], the rollout, detached; info.
        """
        c, m = self.config, self.model
        with torch.no_grad():
            z_next = m.encode(obs[:, 1:])  # [B, H, Z]
            td_target = self.td_target(z_next, batch, noise, pair)  # [B, H]
        zs = m.rollout(m.encode(obs[:, 0]), batch.action)  # [B, H+1, Z]
        reward = m.reward_logits(zs[:, :-1], batch.action)  # [B, H, C]
        q = m.q_logits(zs[:, :-1], batch.action, mask=mask)  # [Q, B, H, C]

        weights = time_weights(c.rho, batch.horizon, zs.device) * batch.valid / batch.horizon  # [B, H]

        def window_loss(error: Tensor) -> Tensor:
            return (weights * error).sum(1).mean()

        consistency = window_loss(batch.observed * (zs[:, 1:] - z_next).float().square().mean(-1))
        reward_loss = window_loss(m.head_loss(reward, batch.reward))
        critic = window_loss(m.head_loss(q, td_target).mean(0))
        loss = c.consistency_coef * consistency + c.reward_coef * reward_loss + c.critic_coef * critic
        info = {
            "loss/consistency": consistency,
            "loss/reward": reward_loss,
            "loss/critic": critic,
            "loss/model": loss,
            "q/target_mean": masked_mean(td_target, batch.valid),
        }
        return loss, zs.detach(), {name: value.detach() for name, value in info.items()}

    def td_target(self, z_next: Tensor, batch: Batch, noise: Tensor, pair: Tensor) -> Tensor:
        """r + gamma min_{two critics} Q_target(z', pi(z')) [B, H]; no bootstrap after a terminal step."""
        action = squashed_sample(*self.model.policy(z_next), noise)
        q_next = self.target.q(z_next, action, sample_pair(pair)).amin(0)
        return batch.reward + self.config.discount * ~batch.terminated * q_next

    def actor_loss(
        self, zs: Tensor, alive: Tensor, noise: Tensor, pair: Tensor, mask: Tensor | None, scale: Tensor
    ) -> tuple[Tensor, Tensor, Metrics]:
        """L_pi = -mean_t rho^t (entropy_coef * entropy + Q(z, pi(z)) / scale), Q the mean of two critics with dropout.

        Args:
            zs: [B, H+1, Z] the rollout, its last latent included. alive: [B, H+1] bool, which latents count (`Batch.alive`).
            noise: [B, H+1, A]. pair: [Q]. mask: [2, B * (H+1), mlp_dim]. scale: [] of Q so far.

        Returns:
            loss; the new scale, which the loss already divides by; info.
        """
        c = self.config
        mean, log_std = self.model.policy(zs)
        action = squashed_sample(mean, log_std, noise)
        q = self.model.q(zs, action, sample_pair(pair), mask).mean(0)  # [B, H+1]
        scale = running_scale(scale, q[:, 0], c.scale_rate)
        entropy = self.entropy(mean, log_std, noise)
        weights = time_weights(c.rho, zs.shape[1], zs.device) * alive / zs.shape[1]
        loss = -(weights * (c.entropy_coef * entropy + q / scale)).sum(1).mean()
        info = {
            "loss/actor": loss,
            "actor/entropy": masked_mean(entropy, alive) / self.action_dim,
            "q/mean": masked_mean(q, alive),
            "q/scale": scale,
        }
        return loss, scale, {name: value.detach() for name, value in info.items()}

    def entropy(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        """[...] the entropy's one-sample estimate, times A as the public code scales it."""
        log_normal = (-0.5 * noise.square() - log_std - 0.5 * LOG_2PI).sum(-1)
        if self.config.entropy == "gaussian":
            return -self.action_dim * log_normal
        return tanh_log_det(mean + log_std.exp() * noise).sum(-1) - self.action_dim * log_normal

    def update(self, batch: Batch) -> Metrics:
        batch = batch.to(self.device)
        (B, H, A), Q = batch.action.shape, self.config.model.num_critics
        noise = torch.randn(B, 2 * H + 1, A, generator=self.update_generator, device=self.device)
        pairs = torch.randn(2, Q, generator=self.update_generator, device=self.device)
        with self.autocast():
            loss, zs, info = self.model_loss(self.shifted(batch.obs), batch, noise[:, :H], pairs[0], self.draw_mask(Q, B * H))
        zs, info = self.kept(zs, info)
        info["grad_norm/model"] = self.optimize("model", loss, self.config.grad_clip)
        mask = self.draw_mask(min(2, Q), B * (H + 1))
        with frozen(self.model.critic), self.autocast():
            actor_loss, scale, actor_info = self.actor_loss(zs, batch.alive, noise[:, H:], pairs[1], mask, self.target.scale)
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, self.config.grad_clip)
        self.target.scale.copy_(scale)
        soft_update(self.target.critic, self.model.critic, self.config.tau)
        self.num_updates += 1
        return info | actor_info
