"""Building blocks. They take numbers, never a config."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 16  # output features below which a plain matrix product beats oneDNN's set-up cost


FASTER_WITH_ONEDNN = {26}  # families of AMD processors, by tests/benchmarks/bench_products.py: Zen 5, and not 25, Zen 4


def amd_family() -> int | None:
    """This processor's family, if it is one of AMD's: 25 is Zen 3 and 4, 26 is Zen 5."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return None
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = fields.get("cpu family", "")
    return int(family) if fields.get("vendor_id") == "AuthenticAMD" and family.isdigit() else None


# Why by a table of what was measured, and not measured in every process: the two sum in different orders, and a run that is
# resumed, or whose learners should agree, must sum as before. On processors that nobody measured torch's own route is taken.
ONEDNN = torch.backends.mkldnn.is_available() and amd_family() in FASTER_WITH_ONEDNN


class _OneDnnLinear(torch.autograd.Function):
    """x W^T + b through oneDNN, forward and backward.

    Why: torch sends float32 products on a CPU to MKL, which runs at half of oneDNN's rate on AMD's Zen 5 (112 against 258
    GFLOP/s on one core); on Zen 4 and on Intel's it is as fast or faster. Same arithmetic up to the order of sums.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        to_x, to_weight, to_bias = ctx.needs_input_grad
        product = F.linear if torch.is_grad_enabled() else _product  # Why: oneDNN's has no second derivative
        return (
            product(grad_rows, weight.t(), None).view_as(x) if to_x else None,
            _weight_gradient(rows, grad_rows, product) if to_weight else None,
            grad_rows.sum(0) if to_bias and ctx.has_bias else None,
        )


def _weight_gradient(x: Tensor, grad: Tensor, product: Callable[..., Tensor]) -> Tensor:
    """grad^T x [out, in] for x [N, in], grad [N, out]."""
    if x.shape[1] < grad.shape[1]:  # the narrower side as rows: twice as fast
        return product(x.t(), grad.t(), None).t().contiguous()
    return product(grad.t(), x.t(), None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (_opaque_product if torch.compiler.is_compiling() else _onednn)(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """Why copied: where neither rows nor columns lie side by side in memory, as in the expanded gradient of a plain sum or in a
    slice, oneDNN takes a weight through its reference kernel: 430 instead of 0.3 ms for 256 x 256.
    """
    dense = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, dense, bias, then, [], "")


@torch.library.custom_op("wmrl_ray::onednn_product", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same call, which torch.compile leaves alone (its own lowering of the op wants weights packed beforehand)."""
    return _onednn(x, weight, bias)


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` in the fastest way that this processor and torch.compile have: x [..., in], weight [out, in], bias [out]."""
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if ONEDNN and exact and min(weight.shape) >= NARROW and x.device.type == "cpu":
        return _OneDnnLinear.apply(x, weight, bias)  # type: ignore[return-value]
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return _fused_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """For torch.compile, which makes the bias, and a product with one column, part of the kernels around it.

    Why unsqueeze: it hides the sum from torch, whose product with a bias first copies the bias to every row.
    """
    if len(weight) == 1 and not torch.is_grad_enabled():
        return (x.float() * weight[0]).sum(-1, keepdim=True) + bias
    product = F.linear(x.unsqueeze(0), weight)
    return (product + bias.to(product.dtype)).squeeze(0)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`, which is faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        return linear(input, self.weight, self.bias)


class _OneDnnLinearReLU(torch.autograd.Function):
    """relu(x W^T + b) for x [N, in]: the sum, the bias and the ReLU in one pass over the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = _onednn(x, weight, bias, "relu")
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grads[0], y, 0)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        product = _onednn if ONEDNN else F.linear
        return (
            product(grad, weight.t(), None) if to_x else None,
            _weight_gradient(x, grad, product) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


class LinearReLU(Linear):
    """`Linear` and a ReLU: [N, in] -> [N, out]. On a CPU in one kernel: two passes over the memory less."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        plain = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
        if plain and self.bias is not None and input.device.type == "cpu" and torch.backends.mkldnn.is_available():
            return _OneDnnLinearReLU.apply(input, self.weight, self.bias)  # type: ignore[return-value]
        return relu(super().forward(input))


class _CompiledReLU(torch.autograd.Function):
    """max(x, 0), whose gradient is read from its values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * y.sign()  # not a comparison, which would be kept as bools again


def relu(x: Tensor) -> Tensor:
    """`F.relu`, which a compiled loss on a CPU also computes fast in bfloat16.

    Why: for torch's own gradient a compiled loss keeps one bool per number, and kernels that mix bools and bfloat16 take 5 to
    9 ns for each (torch 2.13): three quarters of an update of CQL. The values are kept anyway, for the next product. Not needed
    in agents that compile whole steps: what they compute goes from forward to backward in one graph.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu" and torch.is_grad_enabled():
        return _CompiledReLU.apply(x)  # type: ignore[return-value]
    return F.relu(x)


class ReLU(nn.ReLU):
    """`nn.ReLU` through `relu`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.ReLU's name
        return relu(input)


class _FastELU(torch.autograd.Function):
    """max(x, min(exp(x) - 1, 0)), computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = x.float()
        if torch.compiler.is_compiling():
            y = torch.maximum(exact, ((exact / math.log(2)).exp2() - 1).clamp(max=0)).to(x.dtype)  # exp2 is faster than exp
        else:
            negative = exact.exp().sub_(1).clamp_(max=0)
            y = torch.maximum(exact, negative, out=negative).to(x.dtype)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.ops.aten.elu_backward(grads[0], 1, 1, 1, True, *ctx.saved_tensors)


class ELU(nn.ELU):
    """`nn.ELU` in two thirds of its time on a CPU, where it was a quarter of planning; torch.compile's own takes expm1 too.

    Why: torch's vectorised expm1 takes 6 times as long as its exp. What exp(x) - 1 loses next to 0 is below 1e-7.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.ELU's name
        if input.device.type != "cpu":
            return super().forward(input)
        return _FastELU.apply(input)  # type: ignore[return-value]


def mlp(in_dim: int, hidden: Sequence[int], out_dim: int, activation: type[nn.Module] = ELU) -> nn.Sequential:
    """Linear, activation, ..., Linear."""
    sizes = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [Linear(a, b), activation()]
    return nn.Sequential(*layers, Linear(sizes[-1], out_dim))


def critic_mlp(in_dim: int, hidden_dim: int) -> nn.Sequential:
    """TD-MPC's Q head: its first layer is normalised and bounded (LayerNorm, Tanh), which keeps Q from growing along z."""
    return nn.Sequential(
        Linear(in_dim, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.Tanh(),
        Linear(hidden_dim, hidden_dim),
        ELU(),
        Linear(hidden_dim, 1),
    )


class Ensemble(nn.ModuleList):
    """Members with a scalar head each, on the same input: [..., D] -> [Q, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x).squeeze(-1) for member in self])


class StackedLinear(nn.Module):
    """Q independent linear layers of equal size as one batched product, initialised as `nn.Linear`.

    x [B, in] goes to every member; of x [q, B, in], q <= Q, x[i] goes to member i. Returns [Q or q, B, out].
    """

    def __init__(self, num: int, in_features: int, out_features: int):
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(num, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if x.dim() == 2:
            x = x.expand(len(weight), -1, -1)
        elif len(x) < len(weight):
            weight, bias = weight[: len(x)], bias[: len(x)]
        return stacked_product(x, weight, bias)


def stacked_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [q, B, in], weight [q, in, out], bias [q, 1, out] -> x[i] weight[i] + bias[i], [q, B, out]."""
    exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if ONEDNN and min(weight.shape[1:]) >= NARROW and exact and x.device.type == "cpu":
        members = zip(x.unbind(), weight.unbind(), bias.unbind(), strict=True)
        return torch.stack([_OneDnnLinear.apply(a, w.t(), b[0]) for a, w, b in members])
    if torch.compiler.is_compiling():  # Why: the sum becomes part of what follows; baddbmm first copies the bias to every row
        product = torch.bmm(x, weight)
        return product + bias.to(product.dtype)
    return torch.baddbmm(bias, x, weight)


def stacked_mlp(num: int, in_dim: int, hidden: Sequence[int], out_dim: int) -> nn.Sequential:
    """Q independent ReLU networks on one input, in fewer and larger operations than an Ensemble: [B, in] -> [Q, B, out]."""
    sizes = [in_dim, *hidden]
    layers: list[nn.Module] = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [StackedLinear(num, a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, StackedLinear(num, sizes[-1], out_dim))


class Normalizer(nn.Module):
    """(obs - mean) / std with fixed statistics of the dataset, kept with the weights; the identity until they are set."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


def orthogonal_init(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases for every linear layer inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)


def zero_last(network: nn.Sequential) -> None:
    """Makes a head predict 0 at first."""
    nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
