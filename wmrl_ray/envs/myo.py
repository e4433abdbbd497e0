"""MyoSuite: hands of muscles, as TD-MPC2 and IQ-MPC use them.

Ids are MyoSuite's own: "myoHandKeyTurnFixed-v0", "myoHandObjHoldRandom-v0", ...; Fixed is the papers' task, Random its hard
variant. Episodes have 100 steps and never terminate, as in TD-MPC2: dropping the object is no way out. MyoSuite's own limits
(200, 75 and 50 steps) and terminations do not apply.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from wmrl_ray.config import ConfigError, check, did_you_mean
from wmrl_ray.envs.camera import camera_of, prefer_egl
from wmrl_ray.envs.loading import load_simulator

MAX_STEPS = 100


def make(env_id: str, **kwargs: Any) -> MyoEnv:
    """The environment of an id. Raises ConfigError: no such environment, or MyoSuite is not installed."""
    return MyoEnv(env_id, **kwargs)


class MyoEnv(gym.Env[np.ndarray, np.ndarray]):
    """One of MyoSuite's environments.

    Observation: float32 [O]. Action: float32 [39] in [-1, 1], how much each muscle is excited; values outside are clipped.
    Reward: MyoSuite's dense one. info["success"] says whether the task is solved after this step (with action_repeat: after
    the last of its steps); an episode's success is its last step's. `truncated` after max_episode_steps steps, never
    `terminated`. A simulation that diverges is truncated with its last valid observation, reward 0 and info["diverged"].
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}
    success_at_end = True  # as TD-MPC2 evaluates

    def __init__(self, env_id: str, action_repeat: int = 1, max_episode_steps: int = MAX_STEPS, render_mode: str | None = None):
        check(max_episode_steps >= 1, f"max_episode_steps = {max_episode_steps}; at least 1 is needed")
        prefer_egl()
        load_simulator("myosuite", "MyoSuite's environments", "myo")
        if env_id not in gym.registry:
            known = [known for known in gym.registry if known.startswith("myo")]
            raise ConfigError(f"env = {env_id!r} is no environment of MyoSuite{did_you_mean(env_id, known)}")
        # Why unwrapped: its wrappers only end episodes
        self._inner: Any = gym.make(env_id, disable_env_checker=True).unwrapped
        self.action_repeat, self._limit, self._elapsed = action_repeat, max_episode_steps, 0
        self.max_episode_steps = max_episode_steps  # of the agent
        self.observation_space, self.action_space = self._inner.observation_space, self._inner.action_space
        self.render_mode, self._camera = render_mode, None
        seconds = self.model.opt.timestep * self._inner.frame_skip * action_repeat
        self.metadata = self.metadata | {"render_fps": max(1, round(1 / seconds))}
        camera = self._inner.render_camera
        self.camera_id = 0 if camera is None else self.model.camera(camera).id
        kinds = load_simulator("mujoco", "MyoSuite's environments", "myo").mjtWarning
        self._bad = [int(kind) for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)]
        self._obs = np.zeros(self.observation_space.shape or (), np.float32)

    @property
    def model(self) -> Any:
        """MuJoCo's own, for a `Camera`."""
        return self._inner.model

    @property
    def data(self) -> Any:
        """MuJoCo's own, for a `Camera`."""
        return self._inner.data

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._elapsed = 0
        self._obs, _ = self._inner.reset(seed=seed)
        return self._obs, {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = action.clip(-1.0, 1.0)
        reward = 0.0
        for _ in range(self.action_repeat):
            obs, earned, _, _, info = self._inner.step(action)
            reward += earned
        self._elapsed += 1
        warnings = self.data.warning
        if any(warnings[kind].number for kind in self._bad):
            return self._obs, 0.0, False, True, {"success": False, "diverged": True}
        self._obs = obs
        return obs, float(reward), False, self._elapsed >= self._limit, {"success": bool(info["solved"])}

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        if self._camera is None:
            self._camera = camera_of(self)
            assert self._camera is not None
        return self._camera.frame()

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        self._inner.close()
