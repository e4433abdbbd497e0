"""Running an agent in environments: W of them side by side, one batched `Agent.act` per step."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmrl_ray.config import check
from wmrl_ray.data.episode import Episode
from wmrl_ray.envs import make_env
from wmrl_ray.envs.camera import Camera, camera_of
from wmrl_ray.envs.door import is_pixels
from wmrl_ray.envs.intents import Intents, make_intents, split_intent_env_id
from wmrl_ray.envs.loading import opengl_fix
from wmrl_ray.envs.wrappers import action_repeat_of, step_limit_of, succeeds_at_end

if TYPE_CHECKING:
    import gymnasium as gym

    from wmrl_ray.core.agents.base import Agent, ObsDim


@dataclass(frozen=True)
class Evaluation:
    """The result of E evaluation episodes; entry k of every list belongs to episode k.

    episodes: the trajectories, empty if not recorded. successes: the environment reported success at some
    step, or at the last where only that counts (`succeeds_at_end`).
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


class EvaluationStoppedError(Exception):
    """A stop was asked for before the last episode had ended."""


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
    should_stop: Callable[[], bool] | None = None,
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
        record: keep the trajectories, with intents where the environment has them.
        frames: keep pictures of episode 0.
        should_stop: asked before each step; True ends the evaluation without a result.

    Raises:
        EvaluationStoppedError: `should_stop` said so.
        ConfigError: num_episodes or num_envs < 1, or the environment cannot be made or drawn.
        EnvError: the environment answered what no episode can hold, such as NaN; names episode and step.
        FloatingPointError: the agent's action is not finite; names episode and step.
    """
    check(num_episodes >= 1, f"num_episodes = {num_episodes}; at least 1 is needed")
    check(num_envs >= 1, f"num_envs = {num_envs}; at least 1 is needed")
    env_config, num_envs = env_config or {}, min(num_envs, num_episodes)
    source, inner_id = split_intent_env_id(env_id)
    intents = None if source is None else make_intents(source, num_envs, agent.device)
    slots = [_Stage(make_env(inner_id, **env_config)) for _ in range(num_envs)]
    try:
        if intents is not None:
            intents.space(slots[0].env.observation_space)  # for its check of the size
        if frames:
            slots[0].prepare_frames(inner_id, env_config)
        with _acting_stream(agent, seed), torch.no_grad():
            return _run(agent, slots, intents, num_episodes, seed, record, frames, should_stop)
    finally:
        for slot in slots:
            slot.close()


def episode_seed(seed: int, index: int) -> int:
    """What the environment is reset with for episode `index` of an evaluation."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def env_dims(env_id: str, env_config: Mapping[str, Any] | None = None) -> tuple[ObsDim, int]:
    """(O, A) of an environment, O = (C, h, w) of images. Raises ConfigError as `make_env`."""
    return _probe(env_id, json.dumps(env_config or {}, sort_keys=True))[:2]


def step_limit(env_id: str, env_config: Mapping[str, Any] | None = None) -> int:
    """T, after which an episode is truncated. Raises ConfigError as `make_env`."""
    return _probe(env_id, json.dumps(env_config or {}, sort_keys=True))[2]


def action_repeat(env_id: str, env_config: Mapping[str, Any] | None = None) -> int:
    """How often each action is taken. Raises ConfigError as `make_env`."""
    return _probe(env_id, json.dumps(env_config or {}, sort_keys=True))[3]


@functools.cache
def _probe(env_id: str, env_config: str) -> tuple[ObsDim, int, int, int]:
    """(O, A, T, action repeat) of an environment, made once per process to find out."""
    env = make_env(env_id, **json.loads(env_config))
    try:
        obs, action = env.observation_space.shape, env.action_space.shape
        limit = step_limit_of(env)
        assert obs is not None and action is not None and limit is not None
        obs_dim = (obs[0], obs[1], obs[2]) if is_pixels(env.observation_space) else obs[0]
        return obs_dim, action[0], limit, action_repeat_of(env)
    finally:
        env.close()


@dataclass
class Slot:
    """One environment, without intents, and the episode in it.

    index: the episode's number; None: nothing to do. newest: the environment's last observation, which the caller puts
    into obs. obs: what the agent has seen, one more than actions.
    """

    env: gym.Env
    index: int | None = None
    newest: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    obs: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    success: bool = False
    terminated: bool = False
    ended: bool = False

    def start(self, index: int, seed: int) -> dict[str, Any]:
        """Returns the environment's info."""
        self.env.set_wrapper_attr("next_episode", index, force=False)  # by which the door names it
        self.newest, info = self.env.reset(seed=seed)
        self.index, self.obs, self.action, self.reward = index, [], [], []
        self.success = self.terminated = self.ended = False
        return info

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """Returns the environment's info."""
        self.newest, reward, self.terminated, truncated, info = self.env.step(action)
        self.ended = self.terminated or truncated
        self.action.append(action)
        self.reward.append(float(reward))
        self.success = info.get("success", False) or (self.success and not succeeds_at_end(self.env))
        return info

    def episode(self) -> Episode:
        action = np.clip(np.stack(self.action), -1.0, 1.0)
        return Episode(np.stack(self.obs), action, np.array(self.reward, np.float32), self.terminated)


@dataclass
class _Stage(Slot):
    """A slot of an evaluation, which can be filmed."""

    frames: list[np.ndarray] = field(default_factory=list)
    camera: Camera | None = None

    def prepare_frames(self, env_id: str, env_config: Mapping[str, Any]) -> None:
        self.camera = camera_of(self.env)
        if self.camera is None:  # no MuJoCo: the environment draws itself
            self.env.close()
            self.env = make_env(env_id, **{**env_config, "render_mode": "rgb_array"})

    def take_frame(self) -> None:
        frame = np.asarray(self.env.render() if self.camera is None else self.camera.frame())
        check(bool(frame.any()), f"the picture is black; {opengl_fix()}")
        self.frames.append(frame)

    def close(self) -> None:
        if self.camera is not None:
            self.camera.close()
        self.env.close()


def _run(
    agent: Agent,
    slots: list[_Stage],
    intents: Intents | None,
    num_episodes: int,
    seed: int,
    record: bool,
    frames: bool,
    should_stop: Callable[[], bool] | None,
) -> Evaluation:
    finished: dict[int, tuple[Episode | None, float, int, bool]] = {}  # episode, return, length, success
    upcoming = iter(range(num_episodes))
    is_first = np.zeros(len(slots), dtype=bool)

    def start(rows: Sequence[int]) -> None:
        """The next episodes, in these environments."""
        for i in rows:
            slots[i].index = index = next(upcoming, None)
            if index is not None:
                slots[i].start(index, start_seed := episode_seed(seed, index))
                is_first[i] = True
                if intents is not None:
                    intents.start(i, start_seed)
        observe([i for i in rows if is_first[i]])

    def observe(rows: Sequence[int]) -> None:
        """Gives the agent the newest observations of these environments, their intents planned in one call."""
        if not rows:
            return
        obs = np.stack([slots[i].newest for i in rows])
        for i, row in zip(rows, obs if intents is None else intents.append(obs, rows), strict=True):
            slots[i].obs.append(row)

    start(range(len(slots)))
    if frames:
        slots[0].take_frame()
    plan_state, sums, num_steps, reports_success = None, {}, 0, False

    while len(finished) < num_episodes:
        if should_stop is not None and should_stop():
            raise EvaluationStoppedError(f"{len(finished)} of {num_episodes} episodes had ended")
        obs = torch.as_tensor(np.stack([slot.obs[-1] for slot in slots]), device=agent.device)  # [W, O]
        first = torch.as_tensor(is_first, device=agent.device)
        reward = torch.tensor([slot.reward[-1] if slot.reward else 0.0 for slot in slots], device=agent.device)
        action, plan_state, info = agent.act(obs, plan_state, first, reward=reward)
        for name, value in info.items():
            sums[name] = sums.get(name, 0.0) + value
        num_steps += 1
        actions = action.float().cpu().numpy()  # [W, A]
        is_first[:] = False
        running = [i for i, slot in enumerate(slots) if slot.index is not None]
        for i in running:
            slot = slots[i]
            if not np.isfinite(actions[i]).all():
                where = f"episode {slot.index}, step {len(slot.action)}"
                fix = "its weights have diverged: act from an earlier checkpoint, or train with a lower agent.lr"
                raise FloatingPointError(f"the agent's action is not finite in {where}: {actions[i].tolist()}; {fix}")
            reports_success |= "success" in slot.step(actions[i])
            if frames and slot.index == 0:
                slot.take_frame()
        observe(running)
        ended = [i for i in running if slots[i].ended]
        for slot in (slots[i] for i in ended):
            episode = slot.episode()
            assert slot.index is not None
            finished[slot.index] = (episode if record else None, episode.episode_return, len(episode), slot.success)
        start(ended)

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
