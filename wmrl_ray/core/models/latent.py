"""The TD-MPC family's world model: a task-oriented latent dynamics model (TOLD).

Hansen, Wang, Su: Temporal Difference Learning for Model Predictive Control (2203.04955), components as in Section III-B of the
IQL-TD-MPC paper. Sizes and initialisation follow the authors' public code, which the papers' texts leave out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.nets import Ensemble, Normalizer, critic_mlp, mlp, orthogonal_init, zero_last


@dataclass(frozen=True)
class LatentModelConfig:
    latent_dim: int = 50  # d
    encoder_dim: int = 256
    hidden_dim: int = 512
    num_critics: int = 2
    normalize_obs: bool = False  # by the dataset's mean and standard deviation; TD-MPC does not

    def __post_init__(self) -> None:
        for name in ("latent_dim", "encoder_dim", "hidden_dim", "num_critics"):
            check(getattr(self, name) >= 1, f"model.{name} = {getattr(self, name)}; it must be at least 1")


class LatentModel(nn.Module):
    """encoder h, dynamics f, reward R, critic Q, actor pi, and value V where IQL needs it. `...` is any batch shape."""

    def __init__(self, config: LatentModelConfig, obs_dim: int, action_dim: int, *, actor_dim: int, with_value: bool = False):
        super().__init__()
        z, hidden = config.latent_dim, [config.hidden_dim] * 2
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()
        self.encoder = mlp(obs_dim, [config.encoder_dim], z)
        self.dynamics = mlp(z + action_dim, hidden, z)
        self.reward_head = mlp(z + action_dim, hidden, 1)
        self.critic = Ensemble(critic_mlp(z + action_dim, config.hidden_dim) for _ in range(config.num_critics))
        self.actor = mlp(z, hidden, actor_dim)
        self.value_head = mlp(z, hidden, 1) if with_value else None
        orthogonal_init(self)
        heads = [self.reward_head, *self.critic, *([self.value_head] if self.value_head is not None else [])]
        for head in heads:
            zero_last(head)  # type: ignore[arg-type]

    def encode(self, obs: Tensor) -> Tensor:
        """[..., O] -> z [..., Z]."""
        return self.encoder(self.normalizer(obs))

    def next(self, z: Tensor, action: Tensor) -> Tensor:
        """z [..., Z], action [..., A] -> next z [..., Z]."""
        return self.dynamics(_join(z, action))

    def reward(self, z: Tensor, action: Tensor) -> Tensor:
        """z [..., Z], action [..., A] -> expected reward [...]."""
        return self.reward_head(_join(z, action)).squeeze(-1)

    def q(self, z: Tensor, action: Tensor) -> Tensor:
        """-> [Q, ...], one value per critic."""
        return self.critic(_join(z, action))

    def value(self, z: Tensor) -> Tensor:
        """V(z) -> [...]. Only for models built with a value head."""
        assert self.value_head is not None
        return self.value_head(z).squeeze(-1)

    def rollout(self, z: Tensor, action: Tensor) -> Tensor:
        """z [B, Z], action [B, H, A] -> zs [B, H+1, Z]: zs[:, 0] = z, zs[:, t+1] = f(zs[:, t], action[:, t])."""
        zs = [z]
        for t in range(action.shape[1]):
            zs.append(self.next(zs[-1], action[:, t]))
        return torch.stack(zs, 1)


class TargetNetworks(nn.Module):
    """Slow copies of what targets are computed from: the encoder (consistency) and the critics (TD)."""

    def __init__(self, model: LatentModel):
        super().__init__()
        self.normalizer = copy.deepcopy(model.normalizer)
        self.encoder = copy.deepcopy(model.encoder)
        self.critic = copy.deepcopy(model.critic)

    def encode(self, obs: Tensor) -> Tensor:
        return self.encoder(self.normalizer(obs))

    def q(self, z: Tensor, action: Tensor) -> Tensor:
        return self.critic(_join(z, action))


def _join(z: Tensor, action: Tensor) -> Tensor:
    return torch.cat([z, action.to(z.dtype)], -1)
