"""An agent's weights as one flat vector, which costs half of what a dictionary of tensors costs to send."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def flatten_weights(module: nn.Module) -> np.ndarray:
    """Every parameter and buffer of `module` as bytes [n] u8, on the CPU; a copy."""
    parts = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in _tensors(module)]
    return torch.cat(parts).cpu().numpy()


@torch.no_grad()
def load_weights(module: nn.Module, flat: np.ndarray) -> None:
    """The inverse: copies `flat` into a module of the same architecture. Raises ValueError if its size differs."""
    tensors = _tensors(module)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    if flat.nbytes != sum(sizes):
        raise ValueError(f"weights of {flat.nbytes} bytes for a module of {sum(sizes)}: another agent, or other settings")
    source = torch.from_numpy(np.array(flat)).to(tensors[0].device)  # a copy: what Ray shares is read-only
    for tensor, part in zip(tensors, source.split(sizes), strict=True):
        tensor.copy_(part.view(tensor.dtype).view_as(tensor))


def _tensors(module: nn.Module) -> list[Tensor]:
    """Widest elements first. Why: a part of the vector can be read as float32 only where its offset is a multiple of 4."""
    return sorted(module.state_dict(keep_vars=True).values(), key=lambda tensor: -tensor.element_size())
