"""A point that moves on a plane: an environment of microseconds, for tests that need runners; and a dataset of it.

Workers import this module through the environment's id, "tests.rllib.fakes:test/Plane-v0".
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from wmrl_ray.data.datasets import dataset_from_episodes
from wmrl_ray.data.episode import Episode

LENGTHS = (6, 11, 20)  # an episode ends at one of these steps, by its start: short and long ones mix
TINY_AGENT = {
    "model": {"latent_dim": 6, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 3, "num_samples": 0, "num_policy": 8, "num_elites": 4, "iterations": 1},
}
OBS_DIM, ACTION_DIM = 4, 2


class Plane(gym.Env):
    """obs = (x, y, steps / 20, length / 20); reward = -|xy| / 10; terminated at `length`; success: it ends in the unit disk.

    fails: "raise" or "die", what the third step does.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def __init__(self, fails: str = "", render_mode: str | None = None) -> None:
        self.fails = fails

    def _obs(self) -> np.ndarray:
        return np.array([*self.xy, self.t / 20, self.length / 20], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.xy, self.t = self.np_random.uniform(-1, 1, 2), 0
        self.length = int(self.np_random.choice(LENGTHS))
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        if self.t == 3 and self.fails == "raise":
            raise ValueError("boom in step 3")
        if self.t == 3 and self.fails == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.xy = self.xy + 0.1 * np.asarray(action, np.float64)
        distance = float(np.linalg.norm(self.xy))
        return self._obs(), -distance / 10, self.t == self.length, False, {"success": self.t == self.length and distance < 1}


class PassingPlane(Plane):
    """Succeeds at the third step, and at the last of its long episodes."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"success": self.t == 3 or self.t == self.length == max(LENGTHS)}


class PassingAtEndPlane(PassingPlane):
    success_at_end = True


class ConfiguredPlane(Plane):
    """As RLlib makes an environment of a class: with one mapping."""

    def __init__(self, env_config: dict[str, Any]) -> None:
        super().__init__(**env_config)
        self.max_episode_steps = max(LENGTHS)


for _name, _kwargs in {"Plane": {}, "RaisingPlane": {"fails": "raise"}, "DyingPlane": {"fails": "die"}}.items():
    gym.register(f"test/{_name}-v0", entry_point=Plane, max_episode_steps=max(LENGTHS), kwargs=_kwargs)

gym.register("test/PassingPlane-v0", entry_point=PassingPlane, max_episode_steps=max(LENGTHS))
gym.register("test/PassingAtEndPlane-v0", entry_point=PassingAtEndPlane, max_episode_steps=max(LENGTHS))

PLANE, RAISING_PLANE, DYING_PLANE = (f"tests.rllib.fakes:test/{name}-v0" for name in ("Plane", "RaisingPlane", "DyingPlane"))


def plane_episodes(num_episodes: int = 60) -> list[Episode]:
    """Episodes of random actions."""
    env, rng, episodes = Plane(), np.random.default_rng(0), []
    for i in range(num_episodes):
        obs, actions, rewards = [env.reset(seed=i)[0]], [], []
        while len(actions) < env.length:
            actions.append(rng.uniform(-1, 1, ACTION_DIM).astype(np.float32))
            next_obs, reward, *_ = env.step(actions[-1])
            obs.append(next_obs)
            rewards.append(reward)
        episodes.append(Episode(np.stack(obs), np.stack(actions), np.array(rewards, np.float32), terminated=True))
    return episodes


def write_plane_dataset(path: Path, num_episodes: int = 60) -> Path:
    """An `.npz` dataset of `plane_episodes`, with no environment in it."""
    data = dataset_from_episodes(plane_episodes(num_episodes))
    names = ("obs", "action", "reward", "terminated", "episode_starts")
    np.savez(path, **{name: getattr(data, name) for name in names})
    return path


def small_bc(dataset: str) -> Any:
    """BC on the plane, everything in this process."""
    from wmrl_ray.rllib.config import BCConfig

    return _small(BCConfig(), dataset)


def small_iql(dataset: str) -> Any:
    """A tiny IQL-TD-MPC on the plane, everything in this process."""
    from wmrl_ray.rllib.config import IQLTDMPCConfig

    return _small(IQLTDMPCConfig(), dataset).training(agent=TINY_AGENT)


def _small(config: Any, dataset: str) -> Any:
    config.dataset(dataset).environment(PLANE).training(batch_size=8, updates_per_call=3)
    return config.env_runners(num_envs_per_env_runner=2).evaluation(evaluation_duration=5)


def losses(result: dict[str, Any]) -> dict[str, float]:
    """The agent's metrics of one `Algorithm.train()`."""
    return {k: float(v) for k, v in result["learners"]["default_policy"].items() if "/" in k}
