"""Small stand-ins for agents and environments, whose behaviour a test can predict."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from wmrl_ray.core.agents import AGENTS
from wmrl_ray.core.agents.base import Agent, AgentConfig
from wmrl_ray.core.agents.tdmpc import TDMPC
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


class OnlineTDMPC(TDMPC):
    """TD-MPC learning from its own steps."""

    learns_online = True


class Imitator(OnlineTDMPC):
    """Needs demonstrations; reports the share of its batch that they are."""

    needs_demonstrations = True

    def update(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.is_expert is not None
        return super().update(dataclasses.replace(batch, is_expert=None)) | {"batch/expert": batch.is_expert.float().mean()}


class ImageActor(Agent):
    """Acts and learns on images uint8: a linear map of their mean colours, fitted to the rewards."""

    Config = AgentConfig
    learns_online = True
    takes_images = True

    def build(self) -> tuple[nn.Module, nn.Module | None]:
        return nn.Linear(self.obs_dim[0], self.action_dim), None

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": torch.optim.Adam(self.model.parameters(), lr=1e-2)}

    def colours(self, obs: Tensor) -> Tensor:
        assert obs.dtype == torch.uint8
        return obs.float().mean((-2, -1)) / 255

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(self.device)
        predicted = self.model(self.colours(batch.obs[:, 0])).mean(-1)
        loss = (predicted - batch.reward[:, 0]).square().mean()
        self.optimize("model", loss, None)
        self.num_updates += 1
        return {"loss/model": loss.detach()}

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        action = self.model(self.colours(obs))
        if explore:
            action = action + torch.randn(action.shape, generator=self.act_generator, device=self.device)
        return action.clamp(-1, 1), None, {}


@contextlib.contextmanager
def registered(**agents: type[Agent]) -> Iterator[None]:
    """These agents are known by these names inside."""
    AGENTS.update(agents)
    try:
        yield
    finally:
        for name in agents:
            del AGENTS[name]


class Drift(gym.Env):
    """A point that drifts at random to where it is pushed: deterministic given its seed, quick, of episodes of many lengths.

    It terminates far out; the reward is nearness to 0.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.np_random.standard_normal(3)
        return self.obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at = self.at + 0.3 * self.np_random.standard_normal(3)
        self.at[:2] += 0.5 * action
        distance = float(np.abs(self.at).max())
        return self.obs(), 1.0 - distance, distance > 4, False, {"success": distance < 0.5}

    def obs(self) -> np.ndarray:
        return self.at.astype(np.float32)


class DriftImages(Drift):
    """The same, seen as 3 planes of 4 x 4 uint8."""

    observation_space = gym.spaces.Box(0, 255, (3, 4, 4), np.uint8)

    def obs(self) -> np.ndarray:
        return np.broadcast_to((self.at * 20 + 128).clip(0, 255).astype(np.uint8)[:, None, None], (3, 4, 4))


gym.register("Drift-v0", entry_point=Drift, max_episode_steps=20)
gym.register("DriftImages-v0", entry_point=DriftImages, max_episode_steps=20)


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
