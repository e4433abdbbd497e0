"""TD-MPC2's building blocks: normed layers, latents on simplices, ensembles of which only some heads are computed, pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.math import exp_by_squaring, simnorm
from wmrl_ray.core.nets import Linear, stacked_product

INIT_STD = 0.02
IMAGE_SIDE = 64
LAYER_NORM_EPS = 1e-5  # torch's own
PIXEL_FEATURES = 16  # per channel: what four convolutions leave of 64 x 64


def mish_by_exp(x: Tensor, exp: Callable[[Tensor], Tensor] = torch.exp) -> Tensor:
    """x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2), in float32: one exp where torch's form takes three.

    Why clamped: e^20 squared is still finite, and from there on the quotient is 1.
    """
    exact = x.float()
    e = exp(exact.clamp(max=20.0))
    n = e * (e + 2)
    return (exact * (n / (n + 2))).to(x.dtype)


class _MishByExp(torch.autograd.Function):
    """The same with few passes over the memory, for eager code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = x.float()
        e = exact.clamp(max=20.0).exp_()
        n = torch.addcmul(2 * e, e, e)
        ratio = n.div_(e.copy_(n).add_(2))
        ctx.save_for_backward(x, ratio)
        return (exact * ratio).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, ratio = ctx.saved_tensors  # tanh(softplus(x)), whose derivative is (1 - ratio^2) sigmoid(x)
        exact = x.float()
        if torch.is_grad_enabled():  # a gradient penalty differentiates this again
            ratio = F.softplus(exact).tanh()
            return ((ratio + exact * exact.sigmoid() * (1 - ratio * ratio)) * grads[0]).to(x.dtype)
        slope = torch.addcmul(ratio, exact.sigmoid().mul_(exact), 1 - ratio * ratio)
        return slope.mul_(grads[0]).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """torch's `mish`, in 0.7 of its time on a CPU; compiled, with the LayerNorm before it, in less than half."""
    if torch.compiler.is_compiling():
        return mish_by_exp(x)
    return _MishByExp.apply(x) if x.device.type == "cpu" else F.mish(x)  # type: ignore[return-value]


def mish_before_rounding(x: Tensor) -> Tensor:
    """`mish` for compiled code whose results are rounded to bfloat16 next; x is a LayerNorm's.

    Why a LayerNorm's: what e^-30 leaves of x is not nothing for an x of -1e15.
    """
    return mish_by_exp(x, exp_by_squaring)


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mish(x)

    def before_rounding(self, x: Tensor) -> Tensor:
        return mish_before_rounding(x)


class SimNorm(nn.Module):
    """A softmax over groups of `group` features (`math.simnorm`). [..., D] -> [..., D]; D is a multiple of the group."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return simnorm(x, self.group)

    before_rounding = forward


def rounded_once(x: Tensor, parameter: Tensor) -> bool:
    """Whether x goes into a kernel compiled for a CPU that computes in float32 between products with bfloat16 `parameter`s.

    Such a plan spends a third to a half of its time there. Training never does: under autocast weights are float32.
    """
    return torch.compiler.is_compiling() and x.device.type == "cpu" and parameter.dtype == torch.bfloat16


def layer_norm_once(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`F.layer_norm` of float32 x over the last axis, for compiled code.

    1 / std (one number for a row), scale and shift (one for a column) are stored in float32, where the compiler would compute
    them again for every element.
    """
    centred = x - x.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return centred * written(inverse) * written(scale.float()) + written(shift.float())


def written(x: Tensor) -> Tensor:
    """x, written to memory by compiled code, which would else compute it anew in each step of the loop that reads it.

    `as_strided` takes memory, not an expression.
    """
    return x.as_strided(x.shape, x.stride())


class NormedLinear(nn.Module):
    """Linear, LayerNorm, then Mish or what is given instead."""

    def __init__(self, in_features: int, out_features: int, activation: SimNorm | None = None):
        super().__init__()
        self.linear = Linear(in_features, out_features)
        self.norm = nn.LayerNorm(out_features)
        self.activation = Mish() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        if rounded_once(x, self.linear.weight):  # Why in parts: a product with a bias first copies the bias to every row
            product = F.linear(x, self.linear.weight)
            return self._finish_in_float(product.float() + written(self.linear.bias.float())).to(x.dtype)
        return self.finish(self.linear(x))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the product, for callers that compute it in parts."""
        if rounded_once(x, self.norm.weight):
            return self._finish_in_float(x.float()).to(x.dtype)
        return self.activation(self.norm(x))

    def _finish_in_float(self, x: Tensor) -> Tensor:
        n = self.norm
        return self.activation.before_rounding(layer_norm_once(x, n.weight, n.bias, n.eps))


def normed_mlp(in_dim: int, hidden: Sequence[int], out_dim: int, last: SimNorm | None = None) -> nn.Sequential:
    """NormedLinear, ..., then a Linear; with `last`, a NormedLinear that ends in `last` instead of a Linear."""
    sizes = [in_dim, *hidden]
    layers: list[nn.Module] = [NormedLinear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    layers.append(Linear(sizes[-1], out_dim) if last is None else NormedLinear(sizes[-1], out_dim, last))
    return nn.Sequential(*layers)


class HeadEnsemble(nn.Module):
    """Q networks of normed layers on one input, as batched products; only the heads that are asked for are computed.

    Dropout follows the first product. Its mask is an argument (`dropout_mask`), so that a call is a pure function and the
    random stream is the agent's: without a mask nothing is dropped.
    """

    def __init__(self, num: int, in_dim: int, hidden: Sequence[int], out_dim: int):
        super().__init__()
        sizes = [in_dim, *hidden, out_dim]
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.num = num
        self.weights = nn.ParameterList(torch.empty(num, a, b) for a, b in pairs)
        self.biases = nn.ParameterList(torch.zeros(num, 1, b) for _, b in pairs)
        self.scales = nn.ParameterList(torch.ones(num, 1, b) for b in hidden)  # of the LayerNorms
        self.shifts = nn.ParameterList(torch.zeros(num, 1, b) for b in hidden)
        for weight in self.weights:
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, x: Tensor, heads: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [..., in] -> [k, ..., out] of the k heads with the indices `heads` [k], or of all.

        Args:
            mask: [k, N, hidden] factors on the first product's N = prod(...) rows.
        """
        return self.select(heads)(x, mask)

    def select(self, heads: Tensor | None = None) -> Heads:
        """The heads with the indices `heads` [k], or all: to be asked more than once, for their weights are copied here."""
        groups = (self.weights, self.biases, self.scales, self.shifts)
        return Heads(*([p if heads is None else p[heads] for p in parameters] for parameters in groups))


@dataclass(frozen=True)
class Heads:
    """k of an ensemble's heads: each layer's weights [k, in, out], biases, and LayerNorms' scales and shifts [k, 1, out]."""

    weights: list[Tensor]
    biases: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [..., in] -> [k, ..., out], where out = 1 in float32; mask as in `HeadEnsemble`."""
        y = self.begin(x.reshape(-1, x.shape[-1]))
        return self._finish(y if mask is None else y * mask).unflatten(1, x.shape[:-1])

    def begin(self, x: Tensor) -> Tensor:
        """x [N, n], the first n inputs of a row -> [k, N, hidden], their share of the first product."""
        weight = self.weights[0][:, : x.shape[-1]]
        return stacked_product(x.to(weight.dtype).expand(len(weight), -1, -1), weight, self.biases[0])

    def end(self, share: Tensor, x: Tensor) -> Tensor:
        """share [k, N, hidden] of `begin`, x [..., N, n], the last n inputs -> [k, ..., N, out]."""
        weight = self.weights[0][:, -x.shape[-1] :]
        flat = x.to(weight.dtype).reshape(-1, x.shape[-1]).expand(len(weight), -1, -1)
        y = torch.bmm(flat, weight).unflatten(1, x.shape[:-1]) + share.view(len(share), *[1] * (x.dim() - 2), *share.shape[1:])
        return self._finish(y.flatten(1, -2)).unflatten(1, x.shape[:-1])

    def _finish(self, y: Tensor) -> Tensor:
        """What follows the first product [k, N, hidden] -> [k, N, out]; one number per head is in float32."""
        for layer, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            if rounded_once(y, scale):
                y = mish_before_rounding(layer_norm_once(y.float(), scale, shift, LAYER_NORM_EPS)).to(y.dtype)
            else:
                y = mish(F.layer_norm(y, y.shape[-1:], eps=LAYER_NORM_EPS) * scale + shift)
            weight, bias = self.weights[layer + 1], self.biases[layer + 1]
            y = scalar_product(y, weight, bias) if weight.shape[-1] == 1 else stacked_product(y, weight, bias)
        return y


def scalar_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [k, N, n] W [k, n, 1] + b [k, 1, 1] -> [k, N, 1] in float32, also under autocast.

    Why: in bfloat16 a number near 100 is a multiple of 0.5, and actions are told apart by less than that.
    """
    with torch.autocast(x.device.type, enabled=False):
        return stacked_product(x.float(), weight.float(), bias.float())


def dropout_mask(shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
    """Factors 0, with probability `rate`, or 1 / (1 - rate), independent of each other.

    Why by gaps: what lies between two dropped places is geometrically distributed, so that a rate of 0.01 takes a hundredth of
    the draws (0.9 instead of 10.7 ms for 2 million places).
    """
    device = generator.device
    size = torch.Size(shape).numel()
    expected = size * rate
    count = min(size, int(expected + 10 * expected**0.5) + 10)  # gaps; that more are needed happens once in 10^20 masks
    gaps = torch.empty(count, device=device, dtype=torch.float64).geometric_(rate, generator=generator)
    places = gaps.cumsum(0).sub_(1).clamp_(max=size).long()
    mask = torch.full((size + 1,), 1 / (1 - rate), device=device)
    mask[places] = 0.0
    return mask[:size].view(*shape)


class PixelEncoder(nn.Module):
    """Four convolutions and SimNorm: uint8 [..., C, 64, 64] -> [..., 16 * channels]; 32 channels give 512 features.

    As in the public code a simplex is made of neighbouring places of one channel.

    Raises:
        ConfigError: images of another size than 64 x 64.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, group: int):
        super().__init__()
        in_channels, *sides = shape
        check(
            sides == [IMAGE_SIDE, IMAGE_SIDE],
            f"images of {sides[0]} x {sides[1]}; the encoder takes {IMAGE_SIDE} x {IMAGE_SIDE}",
        )
        self.group, self.num_features = group, PIXEL_FEATURES * channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 7, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=1),
        )

    def forward(self, obs: Tensor) -> Tensor:
        images = obs.reshape(-1, *obs.shape[-3:])
        scaled = images.to(self.layers[0].weight.dtype) / 255 - 0.5  # type: ignore[arg-type]
        neighbours = self.layers(scaled).view(len(images), -1, self.group)
        return simnorm(neighbours.transpose(1, 2).flatten(1), self.group).view(*obs.shape[:-3], -1)


def random_shift(images: Tensor, offset: Tensor, limit: int) -> Tensor:
    """Moves images [..., C, h, w] by whole pixels; what comes in repeats the border. Any dtype, kept.

    Why by windows of wider images: pixel by pixel it took four times as long, half of an update on a CPU.

    Args:
        offset: [..., 2] rows and columns, in [-limit, limit], of one shift per image; all its channels (frames) move together.
    """
    C, h, w = images.shape[-3:]
    flat, corner = images.reshape(-1, C, h, w), offset.reshape(-1, 2) + limit
    wider = _repeat_border(_repeat_border(flat, limit, -1), limit, -2)
    windows = wider.unfold(2, h, 1).unfold(3, w, 1)  # [N, C, 2 limit + 1, 2 limit + 1, h, w]
    each = torch.arange(len(flat), device=images.device)
    return windows[each, :, corner[:, 0], corner[:, 1]].view(images.shape)


def _repeat_border(images: Tensor, times: int, dim: int) -> Tensor:
    """Both ends along `dim` repeated `times` times."""
    first, last = images.narrow(dim, 0, 1), images.narrow(dim, -1, 1)
    shape = list(images.shape)
    shape[dim] = times
    return torch.cat([first.expand(shape), images, last.expand(shape)], dim)


def shift_images(obs: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Images [..., C, h, w] of a batch, each moved by its own whole number of pixels, at most `limit`, in either direction."""
    shape = (*obs.shape[:-3], 2)
    return random_shift(obs, torch.randint(-limit, limit + 1, shape, generator=generator, device=obs.device), limit)


def small_normal_init(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02 and zero biases for every linear layer inside; convolutions keep torch's.

    (The public code truncates that normal at +-2, a hundred standard deviations away.)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
