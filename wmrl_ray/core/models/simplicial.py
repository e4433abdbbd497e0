"""TD-MPC2's world model: latents that are points on simplices, normed layers, an ensemble of critics.

Hansen, Su, Wang: TD-MPC2: Scalable, Robust World Models for Continuous Control (2310.16828), single task. Sizes and
initialisation are the authors' public code's. IQ-MPC takes the same model without a reward head and with scalar critics.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.blocks import HeadEnsemble, PixelEncoder, SimNorm, normed_mlp, small_normal_init
from wmrl_ray.core.math import rescale_log_std, two_hot_decode, two_hot_loss


@dataclass(frozen=True)
class SimplicialModelConfig:
    """The defaults are the 5M-parameter model."""

    latent_dim: int = 512
    encoder_dim: int = 256  # of the state encoder's one hidden layer
    mlp_dim: int = 512
    num_channels: int = 32  # of the pixel encoder
    num_critics: int = 5
    simnorm_dim: int = 8  # features per simplex
    dropout: float = 0.01  # of the critics' first layer
    num_bins: int = 101  # of reward and Q; 1: Q is one plain number
    vmin: float = -10.0  # the bins' range, in symlog space
    vmax: float = 10.0
    log_std_min: float = -10.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        for name in ("latent_dim", "encoder_dim", "mlp_dim", "num_channels", "num_critics", "simnorm_dim", "num_bins"):
            check(getattr(self, name) >= 1, f"model.{name} = {getattr(self, name)}; it must be at least 1")
        check(
            self.latent_dim % self.simnorm_dim == 0,
            f"model.latent_dim = {self.latent_dim}; it must be a multiple of simnorm_dim = {self.simnorm_dim}",
        )
        check(0 <= self.dropout < 1, f"model.dropout = {self.dropout}; it must be in [0, 1)")
        check(self.vmin < self.vmax, f"model.vmin = {self.vmin}, vmax = {self.vmax}; the first must be smaller")
        check(
            self.log_std_min < self.log_std_max,
            f"model.log_std_min = {self.log_std_min}, log_std_max = {self.log_std_max}; the first must be smaller",
        )


class SimplicialModel(nn.Module):
    """encoder h, dynamics d, reward R where it is asked for, critics Q, policy prior p. `...` is any batch shape.

    obs_dim: O, or (C, h, w) of images.
    """

    def __init__(
        self,
        config: SimplicialModelConfig,
        obs_dim: int | tuple[int, int, int],
        action_dim: int,
        *,
        with_reward: bool = True,
    ):
        super().__init__()
        self.config = c = config
        hidden, joint = [c.mlp_dim] * 2, c.latent_dim + action_dim
        if isinstance(obs_dim, int):
            self.encoder: nn.Module = normed_mlp(obs_dim, [c.encoder_dim], c.latent_dim, SimNorm(c.simnorm_dim))
        else:
            self.encoder = _pixel_encoder(c, obs_dim)
        self.dynamics = normed_mlp(joint, hidden, c.latent_dim, SimNorm(c.simnorm_dim))
        self.reward_head = normed_mlp(joint, hidden, c.num_bins) if with_reward else None
        self.critic = HeadEnsemble(c.num_critics, joint, hidden, c.num_bins)
        self.actor = normed_mlp(c.latent_dim, hidden, 2 * action_dim)
        small_normal_init(self)
        # Why: at first every reward and value is symexp(0) = 0
        nn.init.zeros_(self.critic.weights[-1])
        if self.reward_head is not None:
            nn.init.zeros_(self.reward_head[-1].weight)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and latents."""
        return self.critic.weights[0].dtype

    @property
    def device(self) -> torch.device:
        return self.critic.weights[0].device

    def encode(self, obs: Tensor) -> Tensor:
        """[..., O], or images uint8 [..., C, h, w] -> z [..., Z]."""
        return self.encoder(obs)

    def next(self, z: Tensor, action: Tensor) -> Tensor:
        """z [..., Z], action [..., A] -> next z [..., Z]."""
        return self.dynamics(join(z, action))

    def start(self, z: Tensor) -> Tensor:
        """z [..., Z] -> [..., S], its share of the first products of reward head and dynamics, for `first_step`."""
        assert self.reward_head is not None
        return torch.cat([share_of_latent(network, z) for network in (self.reward_head, self.dynamics)], -1)

    def first_step(self, start: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """start [..., S], action [..., A] -> `reward` [...] and `next` [..., Z] of the latent that `start` was made of."""
        assert self.reward_head is not None
        to_reward, to_dynamics = start.chunk(2, -1)
        reward = self.decode(with_action(self.reward_head, to_reward, action))
        return reward, with_action(self.dynamics, to_dynamics, action)

    def reward_logits(self, z: Tensor, action: Tensor) -> Tensor:
        """z [..., Z], action [..., A] -> [..., C]. Only for models built with a reward head."""
        assert self.reward_head is not None
        return self.reward_head(join(z, action))

    def reward(self, z: Tensor, action: Tensor) -> Tensor:
        """z [..., Z], action [..., A] -> expected reward [...], in float32."""
        return self.decode(self.reward_logits(z, action))

    def q_logits(self, z: Tensor, action: Tensor, heads: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """-> [k, ..., C] of the critics `heads` [k], or of all; mask as in `HeadEnsemble`."""
        return self.critic(join(z, action), heads, mask)

    def q(self, z: Tensor, action: Tensor, heads: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """-> [k, ...], one value in float32 per critic in `heads` [k], or per critic."""
        return self.decode(self.q_logits(z, action, heads, mask))

    def policy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] -> mean, log_std [..., A] of the Gaussian before the tanh, in float32."""
        mean, raw = self.actor(z).float().chunk(2, -1)
        return mean, rescale_log_std(raw, self.config.log_std_min, self.config.log_std_max)

    def rollout(self, z: Tensor, action: Tensor) -> Tensor:
        """z [B, Z], action [B, H, A] -> zs [B, H+1, Z]: zs[:, 0] = z, zs[:, t+1] = d(zs[:, t], action[:, t])."""
        zs = [z]
        for t in range(action.shape[1]):
            zs.append(self.next(zs[-1], action[:, t]))
        return torch.stack(zs, 1)

    def decode(self, logits: Tensor) -> Tensor:
        """What a head [..., C] says, as a number [...] in float32."""
        return decode(self.config, logits)

    def head_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy [...] of a head [..., C] against target [...], which may lack leading axes. Not for scalar heads."""
        return two_hot_loss(logits, target, self.config.vmin, self.config.vmax)


class TargetCritic(nn.Module):
    """Slow copies of the critics, for TD targets; never with dropout."""

    def __init__(self, model: SimplicialModel):
        super().__init__()
        self.config = model.config
        self.critic = copy.deepcopy(model.critic)

    def q(self, z: Tensor, action: Tensor, heads: Tensor | None = None) -> Tensor:
        """-> [k, ...], one value in float32 per critic in `heads` [k], or per critic."""
        return decode(self.config, self.critic(join(z, action), heads))


def decode(config: SimplicialModelConfig, logits: Tensor) -> Tensor:
    """[..., C] bins, or one plain number -> [...] float32."""
    return logits.float().squeeze(-1) if config.num_bins == 1 else two_hot_decode(logits, config.vmin, config.vmax)


def join(z: Tensor, action: Tensor) -> Tensor:
    return torch.cat([z, action.to(z.dtype)], -1)


def share_of_latent(network: nn.Sequential, z: Tensor) -> Tensor:
    """The first product of `network`, which takes latent and action, without the action's columns."""
    first: Any = network[0]
    weight = first.linear.weight
    return F.linear(z.to(weight.dtype), weight[:, : z.shape[-1]], first.linear.bias)


def with_action(network: nn.Sequential, share: Tensor, action: Tensor) -> Tensor:
    """`network` on a latent, whose share of the first product is given, and an action."""
    first: Any = network[0]
    columns = first.linear.weight[:, -action.shape[-1] :]
    return network[1:](first.finish(share + F.linear(action.to(share.dtype), columns)))


def _pixel_encoder(config: SimplicialModelConfig, shape: tuple[int, int, int]) -> PixelEncoder:
    encoder = PixelEncoder(shape, config.num_channels, config.simnorm_dim)
    check(
        config.latent_dim == encoder.num_features,
        f"model.latent_dim = {config.latent_dim}; of images it is 16 * num_channels = {encoder.num_features}",
    )
    return encoder
