"""IQ-Learn on soft actor-critic, "IQL+SAC" in the IQ-MPC paper: imitation by inverse soft-Q learning, without a world model.

Garg, Chakraborty, Cundy, Song, Ermon: IQ-Learn: Inverse soft-Q Learning for Imitation (2106.12142), with the chi^2 regulariser;
equations are numbered as in the IQ-MPC paper. Sizes and rates are those of the authors' MuJoCo runs: one critic, a fixed
temperature (0.01; 0.001 for ant, 1 for humanoid), `objective` "value" for cheetah and ant, "v0" for hopper, walker, humanoid.
Their batches are 256 rows of each kind, learning starts after 1,280 steps (a run's `online.seed_steps`), and a time limit is
not a terminal step.

The critic's losses are those before its step, the policy's are those after it, as in the authors' code.

The chi^2 term takes the batch's actions in behaviour rows too, as Eq. 12 writes it and as the authors' newest code does (one
commit of theirs before it, 1f08bf3, took the policy's there).

Deviates: before learning starts actions are uniformly random, and as many updates as steps were taken follow at once. This is
TD-MPC2's schedule, which all agents share here; in the authors' code the untrained policy acts, and no updates make up for it.
Unspecified: how the encoder of images, IQ-MPC's, that the IQ-MPC paper adds to this baseline learns. Here by the critic's loss
alone, with its learning rate; policy and target critic read it without gradient. Images are shifted at random in updates.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics, demonstration_rows, frozen, soft_update
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.blocks import PixelEncoder, shift_images
from wmrl_ray.core.math import rescale_log_std, squashed_sample, squashed_sample_log_prob
from wmrl_ray.core.nets import Ensemble, mlp, orthogonal_init


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256  # two layers
    num_critics: int = 1  # where there are more, V is that of the lowest, and the loss is their mean
    lr: float = 3e-4  # of the critic
    actor_lr: float = 3e-5
    gamma: float = 0.99
    tau: float = 0.005  # of the target critic, at every update
    temperature: float = 0.01  # of the entropy, fixed; beta of the IQ-MPC paper
    alpha: float = 0.5  # of the chi^2 regulariser; a smaller alpha keeps the decoded rewards smaller
    # The second term of Eq. 6: V(s) - gamma V(s') over both buffers, or (1 - gamma) V over the expert's states
    objective: Literal["value", "v0"] = "value"
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    num_channels: int = 32  # of the encoder of images
    simnorm_dim: int = 8  # features per simplex, likewise
    shift: int = 3  # pixels that images move at most, in updates

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_critics", "num_channels", "simnorm_dim"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        check(self.alpha > 0, f"alpha = {self.alpha}; it must be positive")
        check(0 <= self.gamma < 1, f"gamma = {self.gamma}; it must be in [0, 1)")
        check(self.temperature >= 0, f"temperature = {self.temperature}; it must not be negative")


class Model(nn.Module):
    """Policy and critics on observations, or on what `encoder` makes of images; linear layers are orthogonal at first."""

    def __init__(self, config: Config, obs_dim: int | tuple[int, int, int], action_dim: int):
        super().__init__()
        hidden = [config.hidden_dim] * 2
        if isinstance(obs_dim, int):
            self.encoder, features = nn.Identity(), obs_dim
        else:
            self.encoder = PixelEncoder(obs_dim, config.num_channels, config.simnorm_dim)
            features = self.encoder.num_features
        self.actor = mlp(features, hidden, 2 * action_dim, nn.ReLU)
        self.critic = Ensemble(mlp(features + action_dim, hidden, 1, nn.ReLU) for _ in range(config.num_critics))
        orthogonal_init(self)


class IQSAC(Agent):
    """A soft actor-critic whose critic learns from demonstrations instead of from rewards."""

    Config = Config
    config: Config
    learns_online = True
    needs_demonstrations = True
    takes_images = True
    model: Model
    target: Ensemble
    compiled_functions = ("critic_step", "actor_step")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = Model(self.config, self.obs_dim, self.action_dim)
        return model, copy.deepcopy(model.critic)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m, c = self.model, self.config
        critic = [*m.encoder.parameters(), *m.critic.parameters()]
        groups = {"critic": (critic, c.lr), "actor": (m.actor.parameters(), c.actor_lr)}
        return {name: torch.optim.Adam(params, lr=lr, fused=True) for name, (params, lr) in groups.items()}

    def policy(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A sample of pi(. | s) [..., A] for standard normal noise [..., A], and its log density [...]."""
        return squashed_sample_log_prob(*self.distribution(z), noise)

    def distribution(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded observations [..., Z] -> mean, log_std [..., A] of the Gaussian before the tanh."""
        mean, raw = self.model.actor(z).float().chunk(2, -1)
        return mean, rescale_log_std(raw, self.config.log_std_min, self.config.log_std_max)

    def value(self, critic: Ensemble, z: Tensor, noise: Tensor) -> Tensor:
        """V(s) = Q(s, a) - beta log pi(a | s) of one action a ~ pi(s), [...]; no gradient to the policy."""
        with torch.no_grad():
            action, log_prob = self.policy(z, noise)
        return q_of(critic, z, action).amin(0) - self.config.temperature * log_prob

    def critic_loss(self, batch: Batch, expert: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Eq. 6 with phi of the chi^2 regulariser, negated: with the decoded reward r = Q(s, a) - gamma V_target(s'),

        -E_expert[r] + (E[V(s) - gamma V_target(s')] or (1 - gamma) E_expert[V(s)]) + E[r^2] / (4 alpha).

        Args:
            expert: [E] indices of the expert's rows.
            noise: [2, B, A] standard normal, for the actions in V(s) and in V(s').
        """
        c, z = self.config, self.model.encoder(batch.obs[:, 0])
        with torch.no_grad():
            z_next = self.model.encoder(batch.obs[:, 1])
            discounted = c.gamma * ~batch.terminated[:, 0] * self.value(self.target, z_next, noise[1])  # [B]
        reward = q_of(self.model.critic, z, batch.action[:, 0]) - discounted  # [Q, B]
        if c.objective == "value":
            initial = (self.value(self.model.critic, z, noise[0]) - discounted).mean()
        else:
            initial = (1 - c.gamma) * self.value(self.model.critic, z[expert], noise[0, expert]).mean()
        expert_reward, chi2 = reward[:, expert].mean(), reward.square().mean() / (4 * c.alpha)
        loss = initial - expert_reward + chi2
        q = (reward + discounted).mean(0)
        info = {
            "loss/critic": loss,
            "loss/value": initial,
            "loss/chi2": chi2,
            "reward/expert_mean": expert_reward,
            "reward/mean": reward.mean(),
            "q/mean": q.mean(),
            "q/expert_mean": q[expert].mean(),
        }
        return loss, {name: value.detach() for name, value in info.items()}

    def actor_loss(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Eq. 13 without a horizon: mean over both buffers of beta log pi(a | s) - Q(s, a), a ~ pi(s); z [B, Z], encoded."""
        action, log_prob = self.policy(z, noise)
        loss = (self.config.temperature * log_prob - q_of(self.model.critic, z, action).amin(0)).mean()
        return loss, {"loss/actor": loss.detach(), "actor/log_prob": log_prob.mean().detach()}

    def critic_step(self, batch: Batch, expert: Tensor, noise: Tensor) -> Metrics:
        with self.autocast():
            loss, info = self.critic_loss(batch, expert, noise)
        self.descend("critic", loss)
        return info

    def actor_step(self, obs: Tensor, noise: Tensor) -> Metrics:
        """The policy, then the target critic."""
        with self.autocast():
            with torch.no_grad():
                z = self.model.encoder(obs)
            loss, info = self.actor_loss(z, noise)
        self.descend("actor", loss)
        soft_update(self.target, self.model.critic, self.config.tau)
        return info

    def update(self, batch: Batch) -> Metrics:
        expert, _ = demonstration_rows(batch, self.device)
        batch = batch.to(self.device)
        if batch.obs.dim() > 3 and self.config.shift > 0:
            batch = replace(batch, obs=shift_images(batch.obs, self.config.shift, self.update_generator))
        noise = torch.randn(3, *batch.action[:, 0].shape, generator=self.update_generator, device=self.device)
        info = self.critic_step(batch, expert, noise[:2])
        with frozen(self.model.critic):
            info |= self.actor_step(batch.obs[:, 0], noise[2])
        self.num_updates += 1
        return info

    @torch.no_grad()
    def decoded_reward(self, batch: Batch, num_actions: int = 16) -> Tensor:
        """r(s, a) = Q(s, a) - gamma E V(s') (Eq. 3) of every step, [B, H]; the same for the same batch.

        num_actions: samples of the policy for V.
        """
        generator = torch.Generator(self.device).manual_seed(0)
        batch = batch.to(self.device)
        noise = torch.randn(num_actions, *batch.action.shape, generator=generator, device=self.device)
        with self.autocast():
            z = self.model.encoder(batch.obs)
            z_next = z[:, 1:].expand(num_actions, *z[:, 1:].shape)
            v = self.value(self.model.critic, z_next, noise).mean(0)
            q = q_of(self.model.critic, z[:, :-1], batch.action).amin(0)
        return q - self.config.gamma * ~batch.terminated * v

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
        """A sample of the policy to explore, else the squashed mean."""
        with self.autocast():
            mean, log_std = self.distribution(self.model.encoder(obs))
        if not explore:
            return torch.tanh(mean), None, {}
        noise = torch.randn(mean.shape, generator=self.act_generator, device=self.device)
        return squashed_sample(mean, log_std, noise), None, {}


def q_of(critic: Ensemble, z: Tensor, action: Tensor) -> Tensor:
    """Encoded observations [..., Z], action [..., A] -> [Q, ...]."""
    return critic(torch.cat([z, action], -1)).float()
