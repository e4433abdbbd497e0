"""IQL: implicit Q-learning, an offline learner that never asks its critics about an action outside the data.

Kostrikov, Nair, Levine: Offline Reinforcement Learning with Implicit Q-Learning (arXiv 2110.06169), with CORL's settings
(the IQL column of Table II of the IQL-TD-MPC paper), which are expectile 0.7 and beta 3; 0.9 and 10, with reward_shift -1, for
the ant mazes; 0.5 and 6 for hopper-medium-expert; a deterministic actor, tau 0.001 and rewards divided by the range of returns
for hopper-medium and hopper-medium-replay.

As in CORL: all three losses are those of the parameters before the step (Q's target takes V before V's step, the policy's
weights come from the target critics and that same V), so that one backward pass and one optimiser serve all three; the target
critics move after the step. The policy is a Gaussian with tanh mean and a spread that does not depend on the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics, soft_update
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import advantage_weight, expectile_loss, gaussian_log_prob
from wmrl_ray.core.nets import Normalizer, mlp, stacked_mlp


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256  # two layers
    lr: float = 3e-4
    lr_steps: int | None = 1_000_000  # the actor's lr falls to 0 over so many updates, by a cosine; None: it does not fall
    gamma: float = 0.99
    tau: float = 0.005  # of the target critics
    expectile: float = 0.7  # tau of L_V
    beta: float = 3.0  # inverse temperature of L_pi
    largest_weight: float = 100.0  # of exp(beta A)
    deterministic_actor: bool = False  # weighted squared error in place of the weighted likelihood
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    normalize_obs: bool = True
    reward_scale: float = 1.0  # of the dataset's reward, before the shift
    reward_shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.lr_steps is None or self.lr_steps >= 1, f"lr_steps = {self.lr_steps}; it must be at least 1, or null")
        check(0 <= self.gamma <= 1, f"gamma = {self.gamma}; it must be in [0, 1]")
        check(0 < self.expectile < 1, f"expectile = {self.expectile}; it must be in (0, 1)")


class Model(nn.Module):
    """Policy, V, and two stacked critics Q, on normalised observations."""

    def __init__(self, config: Config, obs_dim: int, action_dim: int):
        super().__init__()
        hidden = [config.hidden_dim] * 2
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()
        self.actor = nn.Sequential(*mlp(obs_dim, hidden, action_dim, nn.ReLU), nn.Tanh())
        self.log_std = None if config.deterministic_actor else nn.Parameter(torch.zeros(action_dim))
        self.value = mlp(obs_dim, hidden, 1, nn.ReLU)
        self.critic = stacked_mlp(2, obs_dim + action_dim, hidden, 1)


class IQL(Agent):
    """Expectile values and advantage-weighted cloning."""

    Config = Config
    config: Config
    model: Model
    target: nn.Sequential
    compiled_functions = ("step",)

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = Model(self.config, self.obs_dim, self.action_dim)
        target = stacked_mlp(2, self.obs_dim + self.action_dim, [self.config.hidden_dim] * 2, 1)
        target.load_state_dict(model.critic.state_dict())
        return model, target

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m = self.model
        values = [*m.value.parameters(), *m.critic.parameters()]
        actor = [*m.actor.parameters(), *([] if m.log_std is None else [m.log_std])]
        groups = [{"params": values}, {"params": actor}]
        return {"all": torch.optim.Adam(groups, lr=self.config.lr, fused=True)}

    def value_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L_V: V follows an upper expectile of the target critics' minimum over the data's actions.

        Args:
            obs: [B, O], normalised. action: [B, A].

        Returns:
            loss; advantage A = Q_target - V [B], without gradient; info.
        """
        with torch.no_grad():
            q_target = self.target(torch.cat([obs, action], -1)).squeeze(-1).float().amin(0)  # [B]
        v = self.model.value(obs).squeeze(-1).float()
        difference = q_target - v
        loss = expectile_loss(difference, self.config.expectile).mean()
        advantage = difference.detach()
        info = {"loss/value": loss, "v/mean": v.mean(), "advantage/mean": advantage.mean()}
        return loss, advantage, {name: value.detach() for name, value in info.items()}

    def critic_loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor
    ) -> tuple[Tensor, Metrics]:
        """L_Q: both critics towards r + gamma V(s'); the mean over the two, as CORL. obs: [B, O], reward: [B]."""
        c = self.config
        with torch.no_grad():
            next_value = self.model.value(next_obs).squeeze(-1).float()
            td_target = c.reward_scale * reward + c.reward_shift + c.gamma * ~terminated * next_value  # [B]
        q = self.model.critic(torch.cat([obs, action], -1)).squeeze(-1).float()  # [2, B]
        loss = (q - td_target).square().mean()
        return loss, {"loss/critic": loss.detach(), "q/target_mean": td_target.mean()}

    def actor_loss(self, obs: Tensor, action: Tensor, advantage: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi: the data's actions [B, A], weighted by exp(beta A) [B]."""
        c = self.config
        weight = advantage_weight(advantage, c.beta, c.largest_weight)
        mean = self.model.actor(obs).float()
        if self.model.log_std is None:
            error = (mean - action).square().sum(-1)
        else:
            error = -gaussian_log_prob(mean, self.model.log_std.clamp(c.log_std_min, c.log_std_max), action)
        loss = (weight * error).mean()
        return loss, {"loss/actor": loss.detach(), "advantage/weight_mean": weight.mean()}

    def step(self, batch: Batch) -> Metrics:
        obs, next_obs = self.model.normalizer(batch.obs[:, :2]).unbind(1)
        action, reward, terminated = batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0]
        with self.autocast():
            value_loss, advantage, info = self.value_loss(obs, action)
            critic_loss, critic_info = self.critic_loss(obs, action, reward, terminated, next_obs)
            actor_loss, actor_info = self.actor_loss(obs, action, advantage)
        self.descend("all", value_loss + critic_loss + actor_loss)  # each parameter is in one of the three
        soft_update(self.target, self.model.critic, self.config.tau)
        return info | critic_info | actor_info

    def update(self, batch: Batch) -> Metrics:
        self._set_actor_lr()
        info = self.step(batch.to(self.device))
        self.num_updates += 1
        return info

    def _set_actor_lr(self) -> None:
        """The cosine schedule, from num_updates alone: nothing more to save."""
        c = self.config
        if c.lr_steps is not None:
            done = min(self.num_updates / c.lr_steps, 1.0)
            lr = c.lr * 0.5 * (1 + math.cos(math.pi * done))
            # Why a tensor: to torch.compile a new number is a new function
            self.optimizers["all"].param_groups[1]["lr"] = lr if c.compile == "off" else torch.tensor(lr)

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
        """The policy's mean."""
        with self.autocast():
            return self.model.actor(self.model.normalizer(obs)).float(), None, {}
