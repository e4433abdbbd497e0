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


def tanh_log_det(before: Tensor) -> Tensor:
    """Elementwise log(1 - tanh(u)^2), in the form that stays finite for large |u|."""
    return 2 * (math.log(2) - before - F.softplus(-2 * before))


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """[..., A] tanh(mean + std * noise), a sample of the squashed Gaussian for standard normal noise."""
    return torch.tanh(mean + log_std.exp() * noise)


def squashed_sample_log_prob(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sample [..., A] of the squashed Gaussian and its log density [...], without inverting the tanh: exact at +-1."""
    before = mean + log_std.exp() * noise
    normal = -0.5 * noise.square() - log_std - 0.5 * LOG_2PI
    return torch.tanh(before), (normal - tanh_log_det(before)).sum(-1)


def squashed_log_prob(mean: Tensor, log_std: Tensor, action: Tensor, margin: float) -> Tensor:
    """[...] log density of tanh(N(mean, std)) at `action` [..., A] in [-1, 1].

    margin: actions are pulled inside +-(1 - margin). Why: data from a clipped controller sits exactly on the bounds, where the
    density of a squashed Gaussian is not defined.
    """
    before = torch.atanh(action.clamp(-1 + margin, 1 - margin))
    normal = -0.5 * ((before - mean) * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI
    return (normal - tanh_log_det(before)).sum(-1)


def gaussian_log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """[...] log density of N(mean, std) at `action` [..., A]; log_std [A] or [..., A]."""
    return (-0.5 * ((action - mean) * (-log_std).exp()).square() - log_std - 0.5 * LOG_2PI).sum(-1)


def advantage_weight(advantage: Tensor, beta: float, largest: float) -> Tensor:
    """min(exp(beta A), largest), without gradient: the weight of advantage-weighted regression (IQL, Eq. 3)."""
    return (beta * advantage.detach()).exp().clamp(max=largest)


def weight_metrics(weight: Tensor, largest: float, mask: Tensor) -> dict[str, Tensor]:
    """Of `advantage_weight` where mask is true: its mean, the share at its bound, and that below 0.01, hardly learned from."""
    shares = {"clipped_frac": weight >= largest, "ignored_frac": weight < 0.01}
    return {
        "advantage/weight_mean": masked_mean(weight, mask),
        **{f"advantage/{name}": masked_mean(share.float(), mask) for name, share in shares.items()},
    }


def one_hot_sample(log_probs: Tensor, noise: Tensor) -> Tensor:
    """[..., C] one-hot draws from categorical distributions, for standard normal noise [..., C] (Gumbel's trick)."""
    uniform = (0.5 * torch.erfc(-noise / math.sqrt(2))).clamp(1e-7, 1 - 1e-7)
    choice = (log_probs - (-uniform.log()).log()).argmax(-1, keepdim=True)
    return torch.zeros_like(log_probs).scatter_(-1, choice, 1.0)  # F.one_hot would read the choices, to check them


def truncated_noise(mean: Tensor, std: float | Tensor, noise: Tensor, clip: float) -> Tensor:
    """mean + clipped Gaussian noise, kept inside (-1, 1) with a straight-through gradient (TD-MPC's policy sample)."""
    action = mean + (std * noise).clamp(-clip, clip)
    inside = action.clamp(-1 + 1e-6, 1 - 1e-6)
    return action + (inside - action).detach()


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): large numbers of either sign made small."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1), the inverse of symlog."""
    return x.sign() * x.abs().expm1()


def two_hot_parts(x: Tensor, num_bins: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Where symlog(x) [...] lies among `num_bins` even bins from low to high: the bin below, and the share of the one above.

    x is clamped to the bins' range. The bin below is at most num_bins - 2, so that the one above exists. Where x is not
    finite the bin is that of 0 and the share NaN. Why: NaN makes no index, and a loss that is NaN ends the run.
    """
    finite, x = x.isfinite(), x.float()
    place = (symlog(torch.where(finite, x, 0.0)).clamp(low, high) - low) * ((num_bins - 1) / (high - low))
    below = place.floor().clamp(max=num_bins - 2)
    return below.long(), torch.where(finite, place - below, torch.nan)


def two_hot_decode(logits: Tensor, low: float, high: float) -> Tensor:
    """[..., C] -> [...] symexp of the mean bin, in float32.

    Why no matrix product: autocast would make it one in bfloat16.
    """
    bins = torch.linspace(low, high, logits.shape[-1], device=logits.device)
    return symexp((logits.float().softmax(-1) * bins).sum(-1))


def two_hot_loss(logits: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Cross entropy [...] of the bins' distribution `logits` [..., C] against the two-hot code of x [...], in float32.

    x may lack leading axes of the logits (critics that share a target).
    """
    below, share = two_hot_parts(x, logits.shape[-1], low, high)
    shape = logits.shape[:-1]
    log_probs = logits.float().log_softmax(-1)
    below, share = below.expand(shape).unsqueeze(-1), share.expand(shape)
    at_below, at_above = (log_probs.gather(-1, index).squeeze(-1) for index in (below, below + 1))
    return -((1 - share) * at_below + share * at_above)


def simnorm(x: Tensor, group: int) -> Tensor:
    """[..., D] -> [..., D]: a softmax over groups of `group` features, so that x becomes a point on D / group simplices.

    Feature i is of simplex i mod (D / group). Why not neighbours: which features share a simplex is arbitrary before training,
    and across rows a softmax runs in wide registers: 0.3 instead of 5 ms for [512, 512].
    """
    return x.reshape(*x.shape[:-1], group, -1).softmax(-2).reshape(x.shape)


def exp_by_squaring(x: Tensor) -> Tensor:
    """e^x = (e^(x / 64))^64 for float32 x of at most 20, what is below -30 counting as that: four terms, six squarings.

    For results that are rounded to bfloat16, in compiled code: the relative error is below 1e-4 between -10 and 10 and 2% at
    -30, and the compiler makes a dozen instructions of it where `exp` is a call. (It squares for powers below 32; e * e, six
    times, it would write out as 64 factors.)
    """
    part = x.clamp(min=-30.0) / 64
    return (1 + part * (1 + part * (1 / 2 + part * (1 / 6 + part / 24)))).pow(8).pow(8)


def percentile_range(x: Tensor) -> Tensor:
    """[] from the 5th to the 95th percentile of x, between neighbours by linear interpolation; without gradient."""
    low, high = torch.quantile(x.detach().float(), torch.tensor([0.05, 0.95], device=x.device)).unbind()
    return high - low


def running_scale(scale: Tensor, x: Tensor, rate: float) -> Tensor:
    """`scale` [] moved by `rate` towards the percentiles' range of x, which counts as at least 1: what TD-MPC2 divides Q by."""
    return scale.lerp(percentile_range(x).clamp(min=1.0), rate)


def sample_pair(noise: Tensor) -> Tensor:
    """[Q] independent noise -> [2] two different indices below Q, every pair being equally likely; of one, [1]."""
    return noise.topk(min(2, len(noise))).indices
