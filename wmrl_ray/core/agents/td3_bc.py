"""TD3+BC: TD3 with a cloning term in the policy's loss.

Fujimoto, Gu: A Minimalist Approach to Offline Reinforcement Learning (arXiv 2106.06860), with CORL's settings (the TD3+BC
column of Table II of the IQL-TD-MPC paper); the ant mazes take reward_shift -1.

As in CORL: the policy and all targets move in every second update; the policy's loss asks the first critic, after its step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics, frozen, soft_update
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.nets import Normalizer, mlp, stacked_mlp


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256  # two layers
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005  # of the targets
    alpha: float = 2.5  # how much Q counts beside cloning
    policy_noise: float = 0.2  # std of the noise on the target policy's action
    noise_clip: float = 0.5
    policy_every: int = 2  # d, updates of the critics to one of the policy and the targets
    normalize_obs: bool = True
    reward_scale: float = 1.0  # of the dataset's reward, before the shift
    reward_shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.gamma <= 1, f"gamma = {self.gamma}; it must be in [0, 1]")
        check(self.alpha >= 0, f"alpha = {self.alpha}; it must not be negative")
        check(self.policy_every >= 1, f"policy_every = {self.policy_every}; it must be at least 1")


class ActorCritic(nn.Module):
    """A deterministic policy and two stacked critics, on normalised observations."""

    def __init__(self, hidden_dim: int, obs_dim: int, action_dim: int):
        super().__init__()
        self.actor = nn.Sequential(*mlp(obs_dim, [hidden_dim] * 2, action_dim, nn.ReLU), nn.Tanh())
        self.critic = stacked_mlp(2, obs_dim + action_dim, [hidden_dim] * 2, 1)


class Model(ActorCritic):
    def __init__(self, config: Config, obs_dim: int, action_dim: int):
        super().__init__(config.hidden_dim, obs_dim, action_dim)
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()


class TD3BC(Agent):
    """Twin critics and a policy between them and the data."""

    Config = Config
    config: Config
    model: Model
    target: ActorCritic
    compiled_functions = ("critic_step", "actor_step")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = Model(self.config, self.obs_dim, self.action_dim)
        target = ActorCritic(self.config.hidden_dim, self.obs_dim, self.action_dim)
        target.actor.load_state_dict(model.actor.state_dict())
        target.critic.load_state_dict(model.critic.state_dict())
        return model, target

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        groups = {"critic": self.model.critic.parameters(), "actor": self.model.actor.parameters()}
        return {name: torch.optim.Adam(params, lr=self.config.lr, fused=True) for name, params in groups.items()}

    def critic_loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """TD3's: both critics towards r + gamma min Q_target(s', pi_target(s') + clipped noise); the sum over the two.

        Args:
            obs, next_obs: [B, O], normalised. action: [B, A]. reward, terminated: [B].
            noise: [B, A] standard normal.
        """
        c = self.config
        with torch.no_grad():
            noise = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            next_action = (self.target.actor(next_obs).float() + noise).clamp(-1, 1)
            next_q = self.target.critic(torch.cat([next_obs, next_action], -1)).squeeze(-1).float().amin(0)
            td_target = c.reward_scale * reward + c.reward_shift + c.gamma * ~terminated * next_q  # [B]
        q = self.model.critic(torch.cat([obs, action], -1)).squeeze(-1).float()  # [2, B]
        loss = (q - td_target).square().mean(1).sum()
        return loss, {"loss/critic": loss.detach(), "q/target_mean": td_target.mean()}

    def actor_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Metrics]:
        """-lambda Q_1(s, pi(s)) + (pi(s) - a)^2, lambda = alpha / mean |Q_1|, at obs [B, O], action [B, A]."""
        policy_action = self.model.actor(obs).float()
        first = torch.cat([obs, policy_action], -1).unsqueeze(0)  # one input, so that only the first critic is asked
        q = self.model.critic(first).squeeze(-1).float()  # [1, B]
        weight = self.config.alpha / q.detach().abs().mean()
        cloning = (policy_action - action).square().mean()
        loss = cloning - weight * q.mean()
        return loss, {"loss/actor": loss.detach(), "loss/cloning": cloning.detach()}

    def critic_step(self, batch: Batch, noise: Tensor) -> Metrics:
        obs, next_obs = self.model.normalizer(batch.obs[:, :2]).unbind(1)
        with self.autocast():
            loss, info = self.critic_loss(obs, batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0], next_obs, noise)
        self.descend("critic", loss)
        return info

    def actor_step(self, batch: Batch) -> Metrics:
        """The policy, then all targets."""
        with self.autocast():
            loss, info = self.actor_loss(self.model.normalizer(batch.obs[:, 0]), batch.action[:, 0])
        self.descend("actor", loss)
        soft_update(self.target.critic, self.model.critic, self.config.tau)
        soft_update(self.target.actor, self.model.actor, self.config.tau)
        return info

    def update(self, batch: Batch) -> Metrics:
        """The policy's losses are among the metrics of the updates that move it."""
        batch = batch.to(self.device)
        noise = torch.randn(batch.action[:, 0].shape, generator=self.update_generator, device=self.device)
        info = self.critic_step(batch, noise)
        self.num_updates += 1
        if self.num_updates % self.config.policy_every == 0:
            with frozen(self.model.critic):
                info |= self.actor_step(batch)
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
            return self.model.actor(self.model.normalizer(obs)).float(), None, {}
