"""A few lines of plain numpy (float64) that the losses are checked against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from wmrl_ray.core.batch import Batch
from wmrl_ray.core.nets import LinearReLU, StackedLinear


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def two_hot(x: np.ndarray, num_bins: int, low: float, high: float) -> np.ndarray:
    """[...] -> [..., C]: how near symlog(x) is to each of the even bins, 1 on it, 0 from a neighbour on."""
    place = np.clip(np.sign(x) * np.log1p(np.abs(x, dtype=np.float64)), low, high)
    width = (high - low) / (num_bins - 1)
    return np.maximum(0, 1 - np.abs(place[..., None] - np.linspace(low, high, num_bins)) / width)


def apply(network: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """The network's layers, one by one, in numpy."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            x = x @ array(layer.weight).T + array(layer.bias)
            x = np.maximum(x, 0) if isinstance(layer, LinearReLU) else x
        elif isinstance(layer, StackedLinear):  # [B, in] or [Q, B, in] -> [Q, B, out]
            x = x @ array(layer.weight) + array(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            centred = x - x.mean(-1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps) * array(layer.weight) + array(layer.bias)
        elif isinstance(layer, nn.ELU):
            x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        elif isinstance(layer, nn.Tanh):
            x = np.tanh(x)
        else:
            raise TypeError(f"no numpy version of {layer}")
    return x


def q_min(critic: nn.ModuleList, z: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.min([apply(member, np.concatenate([z, action], -1))[..., 0] for member in critic], axis=0)


def latent_model_loss(agent: Any, batch: Batch, td_target: np.ndarray) -> tuple[float, dict[str, float]]:
    """TD-MPC's loss along a latent rollout (Section III-B of the IQL-TD-MPC paper), step by step: (loss, its parts)."""
    c, m, t = agent.config, agent.model, agent.target
    obs, action, valid = array(batch.obs), array(batch.action), array(batch.valid)
    reward = c.reward_scale * array(batch.reward) + c.reward_shift
    B, H = reward.shape
    z = apply(m.encoder, obs[:, 0])
    consistency, reward_loss, critic = np.zeros(B), np.zeros(B), np.zeros(B)
    for k in range(H):
        weight, za = valid[:, k] * c.rho**k, np.concatenate([z, action[:, k]], -1)
        for member in m.critic:
            critic += weight * (apply(member, za)[:, 0] - td_target[:, k]) ** 2
        reward_loss += weight * (apply(m.reward_head, za)[:, 0] - reward[:, k]) ** 2
        z = apply(m.dynamics, za)
        consistency += weight * ((z - apply(t.encoder, obs[:, k + 1])) ** 2).mean(-1)
    windows = {"consistency": consistency, "reward": reward_loss, "critic": critic}
    parts = {name: np.minimum(loss, c.loss_clip).mean() for name, loss in windows.items()}
    return sum(getattr(c, f"{name}_coef") * part for name, part in parts.items()) / H, parts


def reached(model: nn.Module, loss: torch.Tensor) -> set[str]:
    """The modules of `model` that the loss sends a gradient to."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def spy_on(agent: Any, *names: str) -> dict[str, list[tuple[Any, ...]]]:
    """From now on, the arguments of each call of these methods of `agent`."""
    seen: dict[str, list[tuple[Any, ...]]] = {name: [] for name in names}
    for name in names:
        method = getattr(agent, name)
        setattr(agent, name, lambda *args, name=name, method=method: seen[name].append(args) or method(*args))
    return seen


def normal_log_prob(mean: np.ndarray, std: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Summed over the last axis."""
    return (-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)


def random_batch(B: int = 2, H: int = 3, O: int = 5, A: int = 6, seed: int = 0) -> Batch:  # noqa: E741
    """Sizes are all different, so that a swapped axis fails. The first window ends in a terminal step, and the second, when
    longer than one step, a step before the window does.
    """
    g = torch.Generator().manual_seed(seed)
    terminated = torch.zeros(B, H, dtype=torch.bool)
    terminated[0, -1] = True
    valid = torch.ones(B, H, dtype=torch.bool)
    valid[1:2, max(H - 1, 1) :] = False
    return Batch(
        obs=torch.randn(B, H + 1, O, generator=g),
        action=torch.rand(B, H, A, generator=g) * 2 - 1,
        reward=torch.randn(B, H, generator=g),
        terminated=terminated,
        valid=valid,
        time=torch.arange(B) * 3,
        return_to_go=torch.randn(B, H, generator=g),
        is_expert=torch.arange(B) % 2 == 0,
    )


def shake(module: nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Random weights everywhere: heads that start at zero would make most checks trivial."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
