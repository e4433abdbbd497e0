"""The record that every agent learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wmrl_ray.core.shapes import expect


@dataclass(frozen=True)
class Batch:
    """B windows of H steps, each of one episode. A window that starts near its episode's end is padded: `valid` says where.

    Why padded: windows that have to fit hold an episode's last step once where they hold others H times, and always at
    t = H-1. Terminal steps, which anchor every value, would hardly be seen.

    obs: [B, H+1, O] f32, or images [B, H+1, C, h, w] u8; obs[:, t+1] follows action[:, t].
    action: [B, H, A] f32 in [-1, 1].
    reward: [B, H] f32, the result of action[:, t].
    terminated: [B, H] bool, the true end of the MDP: no bootstrap. (A truncated step bootstraps and is not marked here.)
    valid: [B, H] bool, the step is of the episode; true at t = 0. After the end the last observation repeats, the rest is 0,
        and no loss may see it.
    time: [B] i64, the place of the window's first step in its episode; None unless asked for.
    return_to_go: [B, H] f32, the sum of rewards from this step to the episode's end, undiscounted; None unless asked for.
    is_expert: [B] bool, the row comes from demonstrations; None where there are none.
    next_obs_known: [B, H] bool, false where obs[:, t+1] is not what followed action[:, t] but only repeats obs[:, t], as after
        a terminal step of data without terminal observations; None where all are known.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    valid: Tensor
    time: Tensor | None = None
    return_to_go: Tensor | None = None
    is_expert: Tensor | None = None
    next_obs_known: Tensor | None = None

    def __post_init__(self) -> None:
        B, H = self.action.shape[:2]
        expect(self.action, "B H A")
        expect(self.obs, "B H+1 O" if self.obs.dim() == 3 else "B H+1 C h w", B=B, H=H)
        expect(self.reward, "B H", B=B, H=H)
        expect(self.terminated, "B H", B=B, H=H)
        expect(self.valid, "B H", B=B, H=H)
        if self.time is not None:
            expect(self.time, "B", B=B)
        if self.return_to_go is not None:
            expect(self.return_to_go, "B H", B=B, H=H)
        if self.is_expert is not None:
            expect(self.is_expert, "B", B=B)
        if self.next_obs_known is not None:
            expect(self.next_obs_known, "B H", B=B, H=H)

    def to(self, device: torch.device | str) -> Batch:
        if self.obs.device == torch.device(device):
            return self
        return self.each(lambda x: x.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch of what `change` makes of each of its tensors."""
        fields = {name: x for name in self.__dataclass_fields__ if (x := getattr(self, name)) is not None}
        return Batch(**{name: change(x) for name, x in fields.items()})

    @property
    def alive(self) -> Tensor:
        """[B, H+1] bool: an action would follow obs[:, t]: it is of the episode and not after its terminal step."""
        return torch.cat([torch.ones_like(self.valid[:, :1]), self.valid & ~self.terminated], 1)

    @property
    def observed(self) -> Tensor:
        """[B, H] bool: the step is of the episode, and obs[:, t+1] is what followed: dynamics may learn from it."""
        return self.valid if self.next_obs_known is None else self.valid & self.next_obs_known

    @property
    def horizon(self) -> int:
        return self.action.shape[1]
