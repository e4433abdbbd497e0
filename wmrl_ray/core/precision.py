"""Planning in bfloat16: with a copy of the weights that is rounded once for a whole plan."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class LowPrecision(Generic[M]):
    """A copy of a model whose weights have a lower precision; every call of `of` fills it anew.

    Why a copy: rounding the weights anew in each of a plan's iterations took a fifth of TD-MPC's plan. Why filled each time: it
    takes a hundredth of a plan, and nothing tells that weights have changed (torch counts versions of parameters, but fused
    optimisers and `parameter.data` go past that count).
    """

    def __init__(self, copy: M):
        self._copy = copy.requires_grad_(False)

    @torch.no_grad()
    def of(self, model: M) -> M:
        """`model`, laid out as the copy, in the copy's precision."""
        weights: list[torch.Tensor] = [*model.parameters()]
        self._copy.to(weights[0].device)
        torch._foreach_copy_([*self._copy.parameters()], weights)
        return self._copy
