"""Small stand-ins for agents, whose behaviour a test can predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wmrl_ray.core.agents import Agent
from wmrl_ray.core.batch import Batch


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


class Raft:
    """W points on a plane, to be brought to the origin: obs and action [W, 2]; a push moves a point at a right angle to it."""

    length = 12

    @staticmethod
    def start(num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, 2, generator=generator) * 2 - 1

    @staticmethod
    def step(obs: Tensor, action: Tensor) -> Tensor:
        return (obs + 0.25 * torch.stack([-action[:, 1], action[:, 0]], -1)).clamp(-2, 2)

    @staticmethod
    def expert(obs: Tensor) -> Tensor:
        return (3.0 * torch.stack([-obs[:, 1], obs[:, 0]], -1)).clamp(-1, 1)


def drift(act: Callable[[Tensor, bool], Tensor], num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`num` episodes of the raft under act(obs, is_first): obs [num, T+1, 2], action [num, T, 2]."""
    obs, action = [Raft.start(num, generator)], []
    for t in range(Raft.length):
        action.append(act(obs[-1], t == 0))
        obs.append(Raft.step(obs[-1], action[-1]))
    return torch.stack(obs, 1), torch.stack(action, 1)


def distance(obs: Tensor) -> float:
    """The mean distance from the origin over the second half of episodes obs [N, T+1, 2]."""
    return obs[:, Raft.length // 2 :].norm(dim=-1).mean().item()


def policy_of(agent: Agent, *, explore: bool) -> Callable[[Tensor, bool], Tensor]:
    """The agent's actions, for `drift`; it keeps the plans of all its environments."""
    plan_state: Tensor | None = None

    def act(obs: Tensor, first: bool) -> Tensor:
        nonlocal plan_state
        action, plan_state, _ = agent.act(obs, None if first else plan_state, torch.full((len(obs),), first), explore=explore)
        return action

    return act


def imitate(agent: Agent, *, rounds: int, updates: int, rows: int = 64, demonstrations: int = 16, seed: int = 0) -> None:
    """Online imitation in memory: first random episodes, then in every round 8 of the agent's own and `updates` updates."""
    generator = torch.Generator().manual_seed(seed)
    expert = drift(lambda obs, _: Raft.expert(obs), demonstrations, generator)
    own = [drift(lambda obs, _: torch.rand(len(obs), 2, generator=generator) * 2 - 1, 8, generator)]
    H = agent.config.window

    def windows(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        episode = torch.randint(len(obs), (rows, 1), generator=generator)
        step = torch.randint(Raft.length - H + 1, (rows, 1), generator=generator) + torch.arange(H + 1)
        return obs[episode, step], action[episode, step[:, :-1]]

    for _ in range(rounds):
        behaviour = tuple(torch.cat(part) for part in zip(*own, strict=True))
        for _ in range(updates):
            parts = zip(windows(*behaviour), windows(*expert), strict=True)
            obs, action = (torch.cat(part) for part in parts)
            full = torch.ones(2 * rows, H, dtype=torch.bool)
            agent.update(Batch(obs, action, torch.zeros(full.shape), ~full, full, is_expert=torch.arange(2 * rows) >= rows))
        own.append(drift(policy_of(agent, explore=True), 8, generator))
