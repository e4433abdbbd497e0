"""Small stand-ins for agents, whose behaviour a test can predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class FakeAgent:
    """Acts by a function of the observation, plus noise from its own stream; its plan state counts steps since the reset.

    law: obs [W, O] -> action [W, A]. calls: (obs, is_first, plan_state) of every call to `act`.
    """

    def __init__(self, law: Callable[[Tensor], Tensor], noise: float = 0.0, seed: int = 0):
        self.law, self.noise = law, noise
        self.device = torch.device("cpu")
        self.act_generator = torch.Generator().manual_seed(seed)
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        assert not explore
        self.calls.append((obs.clone(), is_first.clone(), plan_state))
        before = torch.zeros(len(obs)) if plan_state is None else plan_state
        age = torch.where(is_first, torch.zeros(()), before + 1)
        action = self.law(obs)
        action = action + self.noise * torch.randn(action.shape, generator=self.act_generator)
        return action.clamp(-1, 1), age, {"plan/age_mean": age.mean()}


def constant(*action: float) -> Callable[[Tensor], Tensor]:
    """A law that ignores the observation."""
    return lambda obs: torch.tensor(action).expand(len(obs), -1)
