"""Running an agent in environments: W of them side by side, one batched `Agent.act` per step."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmrl_ray.config import check
from wmrl_ray.data.episode import Episode
from wmrl_ray.envs import make_env
from wmrl_ray.envs.camera import Camera, camera_of

if TYPE_CHECKING:
    import gymnasium as gym

    from wmrl_ray.core.agents.base import Agent


@dataclass(frozen=True)
class Evaluation:
    """The result of E evaluation episodes; entry k of every list belongs to episode k.

    episodes: the trajectories, empty if not recorded. successes: the environment reported success at some step.
    reports_success: the environment reports success at all; otherwise `successes` is all false and means nothing.
    act_metrics: what `Agent.act` reported, averaged over steps. frames: [T+1, h, w, 3] uint8 of episode 0, if asked for.
    """

    episodes: list[Episode]
    returns: list[float]
    lengths: list[int]
    successes: list[bool]
    reports_success: bool
    act_metrics: dict[str, float]
    frames: np.ndarray | None = None


def evaluate(
    agent: Agent,
    env_id: str,
    num_episodes: int,
    *,
    env_config: Mapping[str, Any] | None = None,
    num_envs: int = 8,
    seed: int = 0,
    record: bool = True,
    frames: bool = False,
) -> Evaluation:
    """Runs exactly `num_episodes` episodes without exploration.

    Episode k starts from its own seed (`episode_seed`), here and on RLlib's runners, and counts whether it is short or long:
    taking the first to finish would favour short ones. So an agent that acts without noise runs the same episodes whatever
    num_envs is and wherever they run (up to the last bits of a product of another number of rows).

    The agent's acting stream starts from `seed` too and is put back afterwards: the result depends on the agent's parameters
    and the seed only, a planner's also on num_envs and on the number of runners (which rows of its noise an episode gets), and
    training goes on as if nothing had happened.

    Args:
        agent: its `act` gets num_envs rows at every step; rows of environments with nothing left to do are ignored.
        env_id: for `make_env`.
        num_episodes: E.
        env_config: for `make_env`.
        num_envs: W, at most E are made.
        seed: of the episodes and of the agent's noise.
        record: keep the trajectories.
        frames: keep pictures of episode 0.

    Raises:
        ConfigError: num_episodes or num_envs < 1, or the environment cannot be made or drawn.
        FloatingPointError: the agent's action is not finite; names episode and step.
    """
    check(num_episodes >= 1, f"num_episodes = {num_episodes}; at least 1 is needed")
    check(num_envs >= 1, f"num_envs = {num_envs}; at least 1 is needed")
    env_config = env_config or {}
    slots = [_Slot(make_env(env_id, **env_config)) for _ in range(min(num_envs, num_episodes))]
    try:
        if frames:
            slots[0].prepare_frames(env_id, env_config)
        with _acting_stream(agent, seed), torch.no_grad():
            return _run(agent, slots, num_episodes, seed, record, frames)
    finally:
        for slot in slots:
            slot.close()


def episode_seed(seed: int, index: int) -> int:
    """What the environment is reset with for episode `index` of an evaluation."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def env_dims(env_id: str, env_config: Mapping[str, Any] | None = None) -> tuple[int, int]:
    """(O, A) of an environment; made once per process to find out. Raises ConfigError as `make_env`."""
    return _env_dims(env_id, json.dumps(env_config or {}, sort_keys=True))


@functools.cache
def _env_dims(env_id: str, env_config: str) -> tuple[int, int]:
    env = make_env(env_id, **json.loads(env_config))
    try:
        assert env.observation_space.shape is not None
        assert env.action_space.shape is not None
        return env.observation_space.shape[0], env.action_space.shape[0]
    finally:
        env.close()


@dataclass
class _Slot:
    """One environment and the episode in it."""

    env: gym.Env
    index: int | None = None  # the episode's number; None: nothing left to do
    obs: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    success: bool = False
    frames: list[np.ndarray] = field(default_factory=list)
    camera: Camera | None = None

    def start(self, index: int, seed: int) -> None:
        obs, _ = self.env.reset(seed=episode_seed(seed, index))
        self.index, self.obs, self.action, self.reward, self.success = index, [obs], [], [], False

    def prepare_frames(self, env_id: str, env_config: Mapping[str, Any]) -> None:
        self.camera = camera_of(self.env)
        if self.camera is None:  # no MuJoCo: the environment draws itself
            self.env.close()
            self.env = make_env(env_id, **{**env_config, "render_mode": "rgb_array"})

    def take_frame(self) -> None:
        frame = np.asarray(self.env.render() if self.camera is None else self.camera.frame())
        check(bool(frame.any()), "the picture is black; set MUJOCO_GL=egl or osmesa before Python starts")
        self.frames.append(frame)

    def episode(self, terminated: bool) -> Episode:
        action = np.clip(np.stack(self.action), -1.0, 1.0)
        return Episode(np.stack(self.obs), action, np.array(self.reward, np.float32), terminated)

    def close(self) -> None:
        if self.camera is not None:
            self.camera.close()
        self.env.close()


def _run(agent: Agent, slots: list[_Slot], num_episodes: int, seed: int, record: bool, frames: bool) -> Evaluation:
    finished: dict[int, tuple[Episode | None, float, int, bool]] = {}  # episode, return, length, success
    upcoming = iter(range(num_episodes))
    for slot in slots:
        slot.start(next(upcoming), seed)
    if frames:
        slots[0].take_frame()
    is_first = np.ones(len(slots), dtype=bool)
    plan_state, sums, num_steps, reports_success = None, {}, 0, False

    while len(finished) < num_episodes:
        obs = torch.as_tensor(np.stack([slot.obs[-1] for slot in slots]), device=agent.device)  # [W, O]
        first = torch.as_tensor(is_first, device=agent.device)
        reward = torch.tensor([slot.reward[-1] if slot.reward else 0.0 for slot in slots], device=agent.device)
        action, plan_state, info = agent.act(obs, plan_state, first, reward=reward)
        for name, value in info.items():
            sums[name] = sums.get(name, 0.0) + value
        num_steps += 1
        actions = action.float().cpu().numpy()  # [W, A]
        is_first[:] = False
        for i, slot in enumerate(slots):
            if slot.index is None:
                continue
            if not np.isfinite(actions[i]).all():
                where = f"episode {slot.index}, step {len(slot.action)}"
                raise FloatingPointError(f"the agent's action is not finite in {where}: {actions[i]}")
            next_obs, reward, terminated, truncated, env_info = slot.env.step(actions[i])
            slot.obs.append(next_obs)
            slot.action.append(actions[i])
            slot.reward.append(float(reward))
            reports_success |= "success" in env_info
            slot.success |= bool(env_info.get("success", False))
            if frames and slot.index == 0:
                slot.take_frame()
            if terminated or truncated:
                episode = slot.episode(bool(terminated))
                finished[slot.index] = (episode if record else None, episode.episode_return, len(episode), slot.success)
                index = next(upcoming, None)
                if index is None:
                    slot.index = None
                else:
                    slot.start(index, seed)
                    is_first[i] = True

    episodes, returns, lengths, successes = zip(*(finished[k] for k in range(num_episodes)), strict=True)
    return Evaluation(
        episodes=list(episodes) if record else [],
        returns=list(returns),
        lengths=list(lengths),
        successes=list(successes),
        reports_success=reports_success,
        act_metrics={name: float(total) / num_steps for name, total in sums.items()},
        frames=np.stack(slots[0].frames) if frames else None,
    )


@contextlib.contextmanager
def _acting_stream(agent: Agent, seed: int) -> Iterator[None]:
    """The agent's acting stream from `seed` inside, where it was before outside."""
    state = agent.act_generator.get_state()
    agent.act_generator.manual_seed(seed)
    try:
        yield
    finally:
        agent.act_generator.set_state(state)
