"""One op each, tested on hand-written numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Elementwise L2^tau(u) = tau u^2 for u >= 0, (1 - tau) u^2 for u < 0 (IQL, Eq. 1)."""
    weight = torch.where(error >= 0, expectile, 1 - expectile)
    return weight * error.square()


def time_weights(rho: float, horizon: int, device: torch.device | None = None) -> Tensor:
    """[horizon] rho^0, rho^1, ...: later steps of a latent rollout count less."""
    return rho ** torch.arange(horizon, device=device, dtype=torch.float32)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x [...] where mask [...] is true; 0 if it is nowhere. (x is finite everywhere.)"""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def rescale_log_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Any real number to a log standard deviation in [low, high] by a tanh (pytorch_sac)."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """[..., A] tanh(mean + std * noise), a sample of the squashed Gaussian for standard normal noise."""
    return torch.tanh(mean + log_std.exp() * noise)


def squashed_sample_log_prob(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sample [..., A] of the squashed Gaussian and its log density [...], without inverting the tanh: exact at +-1."""
    before = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * LOG_2PI
    log_jacobian = 2 * (math.log(2) - before - F.softplus(-2 * before))
    return torch.tanh(before), (normal - log_jacobian).sum(-1)


def squashed_log_prob(mean: Tensor, log_std: Tensor, action: Tensor, margin: float) -> Tensor:
    """[...] log density of tanh(N(mean, std)) at `action` [..., A] in [-1, 1].

    margin: actions are pulled inside +-(1 - margin). Why: data from a clipped controller sits exactly on the bounds, where the
    density of a squashed Gaussian is not defined.
    """
    before = torch.atanh(action.clamp(-1 + margin, 1 - margin))
    normal = -0.5 * ((before - mean) * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI
    # log(1 - tanh(u)^2) in the form that stays finite for large |u|
    log_jacobian = 2 * (math.log(2) - before - F.softplus(-2 * before))
    return (normal - log_jacobian).sum(-1)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """[...] log density of N(mean, std) at `action` [..., A]; log_std [A] or [..., A]."""
    return (-0.5 * ((action - mean) * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI).sum(-1)


def advantage_weight(advantage: Tensor, beta: float, largest: float) -> Tensor:
    """min(exp(beta A), largest), without gradient: the weight of advantage-weighted regression (IQL, Eq. 3)."""
    return (beta * advantage.detach()).exp().clamp(max=largest)


def one_hot_sample(log_probs: Tensor, noise: Tensor) -> Tensor:
    """[..., C] one-hot draws from categorical distributions, for standard normal noise [..., C] (Gumbel's trick)."""
    uniform = (0.5 * torch.erfc(-noise / math.sqrt(2))).clamp(1e-7, 1 - 1e-7)
    choice = (log_probs - (-uniform.log()).log()).argmax(-1)
    return F.one_hot(choice, log_probs.shape[-1]).to(log_probs.dtype)


def truncated_noise(mean: Tensor, std: float | Tensor, noise: Tensor, clip: float) -> Tensor:
    """mean + clipped Gaussian noise, kept inside (-1, 1) with a straight-through gradient (TD-MPC's policy sample)."""
    action = mean + (std * noise).clamp(-clip, clip)
    inside = action.clamp(-1 + 1e-6, 1 - 1e-6)
    return action + (inside - action).detach()
