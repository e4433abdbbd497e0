"""AWAC: advantage-weighted actor-critic, cloning that counts good actions more.

Nair, Gupta, Dalal, Levine: AWAC: Accelerating Online Reinforcement Learning with Offline Datasets (arXiv 2006.09359), with
CORL's settings (the AWAC column of Table II of the IQL-TD-MPC paper): temperature 0.1 for the mazes (the ant mazes with
reward_shift -1), 1/3 for locomotion.

As in CORL: V(s) is Q at one sample of the policy; a sample is clipped to the bounds; the policy's mean is not squashed and its
spread does not depend on the state; its weights come from the critics after their step.
Deviates: at evaluation the mean is clipped to [-1, 1] here; CORL leaves that to the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics, soft_update
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import advantage_weight, gaussian_log_prob
from wmrl_ray.core.nets import Normalizer, mlp, stacked_mlp


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256  # three layers
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005  # of the target critics
    temperature: float = 0.1  # lambda
    largest_weight: float = 100.0  # of exp(A / lambda)
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    normalize_obs: bool = True
    reward_scale: float = 1.0  # of the dataset's reward, before the shift
    reward_shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.gamma <= 1, f"gamma = {self.gamma}; it must be in [0, 1]")
        check(self.temperature > 0, f"temperature = {self.temperature}; it must be positive")


class Model(nn.Module):
    """A Gaussian policy and two stacked critics, on normalised observations."""

    def __init__(self, config: Config, obs_dim: int, action_dim: int):
        super().__init__()
        hidden = [config.hidden_dim] * 3
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()
        self.actor = mlp(obs_dim, hidden, action_dim, nn.ReLU)
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        self.critic = stacked_mlp(2, obs_dim + action_dim, hidden, 1)


class AWAC(Agent):
    """Off-policy critics and advantage-weighted cloning."""

    Config = Config
    config: Config
    model: Model
    target: nn.Sequential
    compiled_functions = ("step",)

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = Model(self.config, self.obs_dim, self.action_dim)
        target = stacked_mlp(2, self.obs_dim + self.action_dim, [self.config.hidden_dim] * 3, 1)
        target.load_state_dict(model.critic.state_dict())
        return model, target

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m = self.model
        groups = {"critic": [*m.critic.parameters()], "actor": [*m.actor.parameters(), m.log_std]}
        return {name: torch.optim.Adam(params, lr=self.config.lr, fused=True) for name, params in groups.items()}

    def log_std(self) -> Tensor:
        """[A]."""
        return self.model.log_std.clamp(self.config.log_std_min, self.config.log_std_max)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """An action [B, A] of the policy, clipped to the bounds, for standard normal noise [B, A]."""
        return (mean + self.log_std().exp() * noise).clamp(-1, 1)

    def q_min(self, critic: nn.Sequential, obs: Tensor, action: Tensor) -> Tensor:
        """[B] the smaller of the two critics."""
        return critic(torch.cat([obs, action], -1)).squeeze(-1).float().amin(0)

    def critic_loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor, noise: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Both critics towards r + gamma min Q_target(s', a'), a' of the policy; the sum over the two.

        Args:
            obs, next_obs: [B, O], normalised. action: [B, A]. reward, terminated: [B].
            noise: [B, A] standard normal, of a'.
        """
        c = self.config
        with torch.no_grad():
            next_action = self.sample(self.model.actor(next_obs).float(), noise)
            next_q = self.q_min(self.target, next_obs, next_action)
            td_target = c.reward_scale * reward + c.reward_shift + c.gamma * ~terminated * next_q  # [B]
        q = self.model.critic(torch.cat([obs, action], -1)).squeeze(-1).float()  # [2, B]
        loss = (q - td_target).square().mean(1).sum()
        return loss, {"loss/critic": loss.detach(), "q/target_mean": td_target.mean()}

    def actor_loss(self, obs: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """The likelihood of the data's actions weighted by exp(A / lambda), A = Q(s, a) - Q(s, one sample of pi).

        obs: [B, O], normalised. action: [B, A]. noise: [B, A] standard normal, of the sample.
        """
        c = self.config
        mean = self.model.actor(obs).float()
        with torch.no_grad():
            v = self.q_min(self.model.critic, obs, self.sample(mean, noise))
            advantage = self.q_min(self.model.critic, obs, action) - v
            weight = advantage_weight(advantage, 1 / c.temperature, c.largest_weight)
        loss = -(weight * gaussian_log_prob(mean, self.log_std(), action)).mean()
        info = {"advantage/mean": advantage.mean(), "advantage/weight_mean": weight.mean()}
        return loss, {"loss/actor": loss.detach(), **info}

    def step(self, batch: Batch, noise: Tensor) -> Metrics:
        """noise: [2, B, A] standard normal."""
        obs, next_obs = self.model.normalizer(batch.obs[:, :2]).unbind(1)
        action, reward, terminated = batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0]
        with self.autocast():
            critic_loss, info = self.critic_loss(obs, action, reward, terminated, next_obs, noise[0])
        self.descend("critic", critic_loss)
        with self.autocast():
            actor_loss, actor_info = self.actor_loss(obs, action, noise[1])
        self.descend("actor", actor_loss)
        soft_update(self.target, self.model.critic, self.config.tau)
        return info | actor_info

    def update(self, batch: Batch) -> Metrics:
        batch = batch.to(self.device)
        noise = torch.randn((2, *batch.action[:, 0].shape), generator=self.update_generator, device=self.device)
        info = self.step(batch, noise)
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
        """The policy's mean, inside the bounds."""
        with self.autocast():
            return self.model.actor(self.model.normalizer(obs)).float().clamp(-1, 1), None, {}
