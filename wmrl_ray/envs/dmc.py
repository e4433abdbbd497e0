"""DMControl: every task of the suite, from states or from pictures, as TD-MPC2 and IQ-MPC use it.

Ids: "dmc/DOMAIN-TASK" with the suite's own names: "dmc/hopper-hop", "dmc/ball_in_cup-catch".

Simulation, rewards and start states are the suite's, to the last bit (a test steps both side by side). What is ours: an action
lasts `action_repeat` control steps, whose rewards add up; the quadruped's actions, which the suite takes up to 1.1, are [-1, 1]
here, as in TD-MPC2; pictures are drawn without shadows, reflections and multi-sampling, which is 10 times as fast.
The suite's humanoid has 21 actions, and not the 24 of the IQ-MPC paper's Table 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from wmrl_ray.config import ConfigError, check, did_you_mean
from wmrl_ray.envs.camera import Camera, FrameStack, camera_of, prefer_egl
from wmrl_ray.envs.loading import load_simulator

PREFIX = "dmc/"
PIXELS = 64  # width and height of the pixel observation
_CAMERA = {"quadruped": 2}  # where the first one does not show the robot well, as in DrQ-v2 and TD-MPC2
_MAX_STEPS = 1000  # control steps of an episode, where the suite sets no limit (LQR)
_UNBOUNDED = 1e9  # the suite's mark of an actuator without bounds is 1e10


def make(env_id: str, **kwargs: Any) -> DMCEnv:
    """The environment of an id. Raises ConfigError: no such task, or DMControl is not installed."""
    domain, _, task = env_id.removeprefix(PREFIX).partition("-")
    return DMCEnv(domain, task, **kwargs)


class DMCEnv(gym.Env[np.ndarray, np.ndarray]):
    """A task of the suite.

    Observation: obs="state": float32 [O], the suite's entries in the suite's order. obs="pixels": uint8 [9, 64, 64], the last
    three frames, channel first.
    Action: float32 in [-1, 1]; values outside are clipped.
    Episode: max_episode_steps steps (default: the suite's 1000 control steps, so 500), then `truncated`. `terminated` only
    where a task itself ends, which of the suite's is LQR at rest. A simulation that diverges is truncated with its last
    valid observation, reward 0 and info["diverged"].
    reset(seed=k) starts where `suite.load(..., task_kwargs={"random": k})` starts, without loading anything.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        domain: str,
        task: str,
        obs: Literal["state", "pixels"] = "state",
        action_repeat: int = 2,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        check(obs in ("state", "pixels"), f"obs = {obs!r}; it must be 'state' or 'pixels'")
        check(
            max_episode_steps is None or max_episode_steps >= 1,
            f"max_episode_steps = {max_episode_steps}; at least 1 is needed",
        )
        self._suite = suite = _load(domain, task)
        self._task, self._physics = suite.task, suite.physics
        self._mujoco = mujoco = load_simulator("mujoco", "DMControl's tasks", "dmc")
        self._euler = self.model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4
        self._warnings = self._physics.data.warning.number  # how often the simulation has complained, by kind
        self._sub_steps = round(suite.control_timestep() / self._physics.timestep())
        limit = suite._step_limit  # Why private: the suite shows it nowhere else
        self._limit = _MAX_STEPS if math.isinf(limit) else math.ceil(limit)
        if max_episode_steps is not None:
            self._limit = max_episode_steps * action_repeat
        self.action_repeat, self._elapsed = action_repeat, 0
        self.max_episode_steps = math.ceil(self._limit / action_repeat)  # of the agent
        self._task.random.seed()  # until a reset is seeded
        self.camera_id = _CAMERA.get(domain, 0)
        self._pixels, self._stack, self._camera = obs == "pixels", None, None
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": max(1, round(1 / (suite.control_timestep() * action_repeat)))}

        bounds = suite.action_spec()
        low, high = np.broadcast_to(bounds.minimum, bounds.shape), np.broadcast_to(bounds.maximum, bounds.shape)
        low, high = np.where(low < -_UNBOUNDED, -1.0, low), np.where(high > _UNBOUNDED, 1.0, high)
        self._middle, self._half = (high + low) / 2, (high - low) / 2
        self._scales = bool((low != -1.0).any() or (high != 1.0).any())
        self.action_space = gym.spaces.Box(-1.0, 1.0, bounds.shape, np.float32)
        if self._pixels:
            self.observation_space = gym.spaces.Box(0, 255, (3 * FrameStack.FRAMES, PIXELS, PIXELS), np.uint8)
        else:
            size = sum(math.prod(entry.shape) for entry in suite.observation_spec().values())
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._obs = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    @property
    def model(self) -> Any:
        """MuJoCo's own, for a `Camera`."""
        return self._physics.model.ptr

    @property
    def data(self) -> Any:
        """MuJoCo's own, for a `Camera`."""
        return self._physics.data.ptr

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._task.random.seed(seed)
        self._elapsed = 0
        observation = self._suite.reset().observation
        if not self._pixels:
            self._obs = _flat(observation)
            return self._obs, {}
        if self._stack is None:  # Why not before: a process that only asks for the sizes needs no OpenGL
            self._stack = FrameStack(Camera(self.model, self.data, PIXELS, camera_id=self.camera_id), PIXELS)
        self._obs = self._stack.start()
        return self._obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        task, physics = self._task, self._physics
        control = action.clip(-1.0, 1.0)
        if self._scales:
            control = self._middle + self._half * control
        reward, discount = 0.0, None
        # Why not the suite's own step: it builds an observation and looks for complaints at every control step
        for _ in range(self.action_repeat):
            task.before_step(control, physics)
            self._advance()
            task.after_step(physics)
            reward += task.get_reward(physics)
            discount = task.get_termination(physics)
            self._elapsed += 1
            if discount is not None or self._elapsed >= self._limit:
                break
        if self._warnings.any():
            return self._obs, 0.0, False, True, {"diverged": True}
        if self._stack is None:
            self._obs = _flat(task.get_observation(physics))
        else:
            self._obs = self._stack.push()
        terminated = discount == 0.0
        truncated = not terminated and (discount is not None or self._elapsed >= self._limit)
        return self._obs, float(reward), terminated, truncated, {}

    def _advance(self) -> None:
        """One control step as the suite takes it: velocities and positions in step with each other at its end."""
        mujoco, model, data = self._mujoco, self.model, self.data
        if self._euler:
            mujoco.mj_step2(model, data)
            if self._sub_steps > 1:
                mujoco.mj_step(model, data, self._sub_steps - 1)
        else:
            mujoco.mj_step(model, data, self._sub_steps)
        mujoco.mj_step1(model, data)

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        if self._camera is None:
            self._camera = camera_of(self)
            assert self._camera is not None
        return self._camera.frame()

    def close(self) -> None:
        for drawing in (self._stack, self._camera):
            if drawing is not None:
                drawing.close()
        self._stack = self._camera = None


def _load(domain: str, task: str) -> Any:
    """The suite's environment."""
    prefer_egl()
    suite = load_simulator("dm_control.suite", "DMControl's tasks", "dmc")
    if (domain, task) not in suite.ALL_TASKS:
        name = f"{PREFIX}{domain}-{task}" if task else f"{PREFIX}{domain}"
        known = [f"{PREFIX}{d}-{t}" for d, t in suite.ALL_TASKS]
        tasks = ", ".join(t for d, t in suite.ALL_TASKS if d == domain)
        has = f"{domain} has: {tasks}" if tasks else f"its domains: {', '.join(suite.TASKS_BY_DOMAIN)}"
        raise ConfigError(f"env = {name!r} is no task of DMControl{did_you_mean(name, known)}; {has}")
    # Why seed 0: LQR draws its springs when it is loaded; everything else draws at a reset
    return suite.load(domain, task, task_kwargs={"random": 0})


def _flat(observation: Mapping[str, Any]) -> np.ndarray:
    """[O] float32, a new array."""
    return np.concatenate(tuple(observation.values()), axis=None, dtype=np.float32)
