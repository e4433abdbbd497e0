"""Taking an agent's own steps: environments that never stop, and the episodes that end in them.

Without Ray one `Collector` steps in turn with the learner; every RLlib runner has one of its own.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import check
from wmrl_ray.data.episode import Episode
from wmrl_ray.data.replay import generator_state, set_generator_state
from wmrl_ray.envs import make_env
from wmrl_ray.rollout import Slot

if TYPE_CHECKING:
    import gymnasium as gym

    from wmrl_ray.core.agents.base import Agent


class Listener(Protocol):
    """Hears of the episodes of a collector, each in row i of its W environments."""

    def opened(self, collector: Collector) -> None:
        """The environments are made, and none has started."""
        ...

    def started(self, row: int, slot: Slot, info: Mapping[str, Any]) -> None:
        """`info`: of the environment's reset."""
        ...

    def stepped(self, row: int, slot: Slot, info: Mapping[str, Any], *, again: bool) -> None:
        """`slot.ended` with the last. again: it was taken before the collector's state was saved."""
        ...


# What a collector's seed is mixed with, so that no two of its streams are the same, nor one of an evaluation's.
_RANDOM_ACTIONS, _ACTING, _RESETS = range(3)


@dataclass
class Statistics:
    """Sums over the steps taken and the episodes ended since they were last taken. Those of several runners add up."""

    steps: int = 0
    episodes: int = 0
    return_sum: float = 0.0
    length_sum: int = 0
    success_sum: int = 0
    reports_success: bool = False  # the environment reports success at all
    act_s: float = 0.0  # seconds
    env_s: float = 0.0
    ended: list[list[float]] = field(default_factory=list)  # (return, length) of each of those episodes
    acts: int = 0  # calls of `Agent.act`
    act_sums: dict[str, float] = field(default_factory=dict)  # of what those calls reported

    def add(self, other: Statistics) -> None:
        for f in fields(self):
            if f.name not in ("reports_success", "act_sums"):
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        self.reports_success |= other.reports_success
        for name, value in other.act_sums.items():
            self.act_sums[name] = self.act_sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Means over the episodes that ended (if any did) and over the calls of `act`, and the seconds spent."""
        found = {"time/act_s": self.act_s, "time/env_s": self.env_s}
        found |= {name.replace("plan/", "online/plan_"): total / self.acts for name, total in self.act_sums.items()}
        if self.episodes:
            found["online/return_mean"] = self.return_sum / self.episodes
            found["online/length_mean"] = self.length_sum / self.episodes
            if self.reports_success:
                found["online/success_mean"] = self.success_sum / self.episodes
        return found


class _Slot(Slot):
    """A slot whose agent sees every observation as it comes."""

    def start(self, index: int, seed: int) -> dict[str, Any]:
        info = super().start(index, seed)
        self.obs.append(self.newest)
        return info

    def step(self, action: np.ndarray) -> dict[str, Any]:
        info = super().step(action)
        self.obs.append(self.newest)
        return info

    def sha256(self) -> str:
        """Of what the environment answered in this episode."""
        digest = hashlib.sha256(np.array(self.reward).tobytes())
        for obs in self.obs:
            digest.update(np.ascontiguousarray(obs).data)
        return digest.hexdigest()


class Collector:
    """W environments. Where an episode ends the next one starts, each from a seed of its own.

    Its random streams, the agent's noise included, are its own: what it collects depends on its seed, the agent's weights and
    the steps it has taken, not on evaluations or on where it runs.
    """

    def __init__(
        self,
        env_id: str,
        env_config: Mapping[str, Any] | None = None,
        num_envs: int = 1,
        seed: int | Sequence[int] = 0,
        listener: Listener | None = None,
    ) -> None:
        """
        Args:
            env_id, env_config: for `make_env`.
            num_envs: W.
            seed: of everything here; a sequence such as (the run's, the runner's).

        Raises:
            ConfigError: num_envs < 1, or the environment cannot be made.
        """
        check(num_envs >= 1, f"num_envs = {num_envs}; at least 1 is needed")
        self._seed = [seed] if isinstance(seed, int) else [int(part) for part in seed]
        self._slots: list[_Slot] = []
        for _ in range(num_envs):
            self._slots.append(_Slot(make_env(env_id, **(env_config or {}))))
        self._random = np.random.Generator(np.random.PCG64(self._stream(_RANDOM_ACTIONS)))
        self._act_generator: torch.Generator | None = None  # made on the agent's device
        self._act_state: Tensor | None = None  # where it goes on, after `set_state`
        self._plan_state: Tensor | None = None
        self.num_steps = 0  # of all environments together
        self.num_episodes = 0
        self._statistics = Statistics()
        self._listener = listener
        if listener is not None:
            listener.opened(self)
        for row in range(num_envs):
            self._start(row, 0)

    @property
    def num_envs(self) -> int:
        return len(self._slots)

    @property
    def envs(self) -> list[gym.Env]:
        return [slot.env for slot in self._slots]

    @property
    def unfinished_steps(self) -> int:
        """Of the unfinished episodes."""
        return sum(self.unfinished)

    @property
    def unfinished(self) -> list[int]:
        """[W] steps of each environment's unfinished episode."""
        return [len(slot.action) for slot in self._slots]

    def collect(self, agent: Agent | None, num_steps: int, *, until_end: bool = False) -> list[Episode]:
        """Takes `num_steps` steps in every environment: the exploring agent's, or without one uniformly random ones.

        Args:
            until_end: stops after the first step with which an episode ends.

        Returns: the episodes that ended, in the order of their ends; within a step by environment.

        Raises:
            FloatingPointError: the agent's action is not finite.
        """
        ended: list[Episode] = []
        for _ in range(num_steps):
            started = time.monotonic()
            actions = self._random_actions() if agent is None else self._act(agent)
            acted = time.monotonic()
            for row, action in enumerate(actions):
                slot = self._slots[row]
                info = slot.step(action)
                self._statistics.reports_success |= "success" in info
                if self._listener is not None:
                    self._listener.stepped(row, slot, info, again=False)
                if slot.ended:
                    assert slot.index is not None
                    ended.append(slot.episode())
                    self._count(ended[-1], slot.success)
                    self._start(row, slot.index + 1)
            self.num_steps += len(actions)
            self._statistics.steps += len(actions)
            self._statistics.act_s += acted - started
            self._statistics.env_s += time.monotonic() - acted
            if ended and until_end:
                break
        return ended

    def take_statistics(self) -> Statistics:
        """Those since this was last called."""
        taken, self._statistics = self._statistics, Statistics()
        return taken

    def close(self) -> None:
        for slot in self._slots:
            slot.env.close()

    # -- exact continuation -----------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Arrays, numbers and strings: seed, random streams, warm start, counters; of each unfinished episode its actions, and
        a digest of what the environment answered.
        """
        act = self._act_state if self._act_generator is None else self._act_generator.get_state()
        return {
            "seed": list(self._seed),
            "random": generator_state(self._random),
            "act": act,
            "plan_state": None if self._plan_state is None else self._plan_state.cpu(),
            "num_steps": self.num_steps,
            "num_episodes": self.num_episodes,
            "statistics": asdict(self._statistics),  # Why: a copy all the way down
            "unfinished": [
                {"number": slot.index, "action": self._actions(slot), "sha256": slot.sha256()} for slot in self._slots
            ],
        }

    def set_state(self, state: Mapping[str, Any], *, replay_unfinished: bool = True) -> None:
        """Goes on where `get_state` was: each unfinished episode starts from its seed again and gets the same actions.

        Args:
            replay_unfinished: False drops the unfinished episodes, and the next ones start.

        Raises:
            CheckpointError: another number of environments, or the environment does not answer as it did.
        """
        unfinished = state["unfinished"]
        if len(unfinished) != self.num_envs:
            raise CheckpointError(f"the checkpoint has {len(unfinished)} environments, this run {self.num_envs}; use as many")
        self._seed = [int(part) for part in state.get("seed", self._seed)]  # Why: that of the runner whose state this is
        set_generator_state(self._random, state["random"])
        self._act_generator, self._act_state = None, state["act"]
        self.num_steps, self.num_episodes = int(state["num_steps"]), int(state["num_episodes"])
        self._statistics = Statistics(**copy.deepcopy(state["statistics"]))
        self._plan_state = state["plan_state"] if replay_unfinished else None
        for row, saved in enumerate(unfinished):
            if not replay_unfinished:
                self._start(row, saved["number"] + 1)
                continue
            self._start(row, saved["number"])
            slot = self._slots[row]
            ended = False
            for action in np.asarray(saved["action"]):
                info = slot.step(action)
                ended |= slot.ended
                if self._listener is not None and not ended:
                    self._listener.stepped(row, slot, info, again=True)
            if ended or slot.sha256() != saved["sha256"]:
                raise CheckpointError(
                    f"environment {row} does not repeat its episode {saved['number']} ({len(slot.action)} steps) exactly: "
                    "another version, machine or simulator that is not deterministic; to drop the unfinished episodes, "
                    "resume with --set online.replay_unfinished=false"
                )

    # -- parts ------------------------------------------------------------------------------------------------------------

    def _stream(self, *key: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=key)

    def _start(self, row: int, number: int) -> None:
        info = self._slots[row].start(number, int(self._stream(_RESETS, row, number).generate_state(1)[0]))
        if self._listener is not None:
            self._listener.started(row, self._slots[row], info)

    def _random_actions(self) -> np.ndarray:
        """[W, A]"""
        self._plan_state = None  # Why: a plan of an earlier time is no warm start
        action_dim = self._slots[0].env.action_space.shape[0]  # type: ignore[index]
        return self._random.uniform(-1.0, 1.0, (self.num_envs, action_dim)).astype(np.float32)

    @torch.no_grad()
    def _act(self, agent: Agent) -> np.ndarray:
        """[W, A]; the agent's noise comes from the collector's own stream."""
        slots, device = self._slots, agent.device
        is_first = torch.tensor([self._plan_state is None or not slot.action for slot in slots], device=device)
        obs = torch.from_numpy(np.stack([slot.obs[-1] for slot in slots])).to(device)  # [W, O]
        reward = torch.tensor([slot.reward[-1] if slot.reward else 0.0 for slot in slots], device=device)
        if self._plan_state is not None:
            self._plan_state = self._plan_state.to(device)
        agents_own, agent.act_generator = agent.act_generator, self._generator_on(agent.device)
        try:
            action, self._plan_state, info = agent.act(obs, self._plan_state, is_first, explore=True, reward=reward)
        finally:
            agent.act_generator = agents_own
        self._count_act(info)
        actions = action.float().cpu().numpy()
        if not np.isfinite(actions).all():
            row = int(np.argwhere(~np.isfinite(actions))[0, 0])
            where = f"environment {row}, episode {slots[row].index}, step {len(slots[row].action)}"
            raise FloatingPointError(f"the agent's action is not finite in {where}: {actions[row]}; lower agent.lr")
        return np.clip(actions, -1.0, 1.0)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._act_generator is None:
            seed = int(self._stream(_ACTING).generate_state(1, np.uint64)[0]) >> 1
            self._act_generator = torch.Generator(device).manual_seed(seed)
            if self._act_state is not None and self._act_state.numel() == self._act_generator.get_state().numel():
                self._act_generator.set_state(self._act_state.cpu())  # Why the check: a GPU cannot continue a CPU's stream
        return self._act_generator

    def _actions(self, slot: _Slot) -> np.ndarray:
        """[t, A] of the unfinished episode."""
        return np.stack(slot.action) if slot.action else np.zeros((0, slot.env.action_space.shape[0]), np.float32)  # type: ignore[index]

    def _count(self, episode: Episode, success: bool) -> None:
        self.num_episodes += 1
        self._statistics.episodes += 1
        self._statistics.return_sum += episode.episode_return
        self._statistics.length_sum += len(episode)
        self._statistics.ended.append([episode.episode_return, len(episode)])
        self._statistics.success_sum += success

    def _count_act(self, info: Mapping[str, Tensor]) -> None:
        self._statistics.acts += 1
        if info:
            for name, value in zip(info, torch.stack([v.float() for v in info.values()]).tolist(), strict=True):
                self._statistics.act_sums[name] = self._statistics.act_sums.get(name, 0.0) + value
