"""ManiSkill: a Panda arm and a cube, as TD-MPC2 and IQ-MPC use them.

"PickCube-v1" is ManiSkill 3's task; "LiftCube-v1", which ManiSkill 3 dropped, is made again here with ManiSkill 2's reward and
success. Control mode pd_ee_delta_pos (where the hand moves, and the gripper), each action taken twice, 100 steps, and no
termination. The observations are ManiSkill 2's, of the paper's sizes 51 and 42: joint positions and velocities, poses of the
base and of the hand, then what the task adds. What is not ManiSkill 2's: PickCube's reward, which in ManiSkill 3 also rewards
holding the cube still at the goal, and physics, robot model and start poses.

SAPIEN wants a Vulkan renderer even for a task that shows no pictures. Where there is none, the scene is built here without what
is only seen; then there are states and no pictures. Where there is one, nothing is changed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from wmrl_ray.config import ConfigError, check
from wmrl_ray.envs.loading import load_simulator

MAX_STEPS = 100
PIXELS = 64
CONTROL_MODE = "pd_ee_delta_pos"


def make(env_id: str, **kwargs: Any) -> ManiSkillEnv:
    """The environment of an id. Raises ConfigError: ManiSkill is not installed, or there is no Vulkan for pixels."""
    return ManiSkillEnv(env_id, **kwargs)


class ManiSkillEnv(gym.Env[np.ndarray, np.ndarray]):
    """One arm on ManiSkill's CPU simulation.

    Observation: obs="state": float32 [51] or [42]. obs="pixels": uint8 [9, 64, 64], the last three frames of the task's
    camera, channel first; needs a GPU.
    Action: float32 [4] in [-1, 1]; values outside are clipped.
    Reward: the dense one; reward_mode names another of ManiSkill's. info["success"]: after the last of the repeated
    steps; an episode's success is its last step's.
    `truncated` after max_episode_steps steps, never `terminated`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}
    success_at_end = True  # as TD-MPC2 evaluates

    def __init__(
        self,
        env_id: str,
        obs: Literal["state", "pixels"] = "state",
        action_repeat: int = 2,
        max_episode_steps: int = MAX_STEPS,
        reward_mode: str = "dense",
        render_mode: str | None = None,
    ):
        check(obs in ("state", "pixels"), f"obs = {obs!r}; it must be 'state' or 'pixels'")
        check(max_episode_steps >= 1, f"max_episode_steps = {max_episode_steps}; at least 1 is needed")
        task_class = task_classes()[env_id]
        modes = task_class.SUPPORTED_REWARD_MODES
        check(reward_mode in modes, f"reward_mode = {reward_mode!r}; ManiSkill has {', '.join(modes)}")
        draws = obs == "pixels" or render_mode == "rgb_array"
        if draws and not has_vulkan():
            raise ConfigError(
                f"env = {env_id!r}: SAPIEN finds no Vulkan renderer; pictures need a GPU and its driver, obs='state' does not"
            )
        shown = {"render_backend": "gpu", "sensor_configs": {"width": PIXELS, "height": PIXELS}} if draws else {}
        with contextlib.nullcontext() if has_vulkan() else _without_visuals():
            self._task = task_class(
                obs_mode="rgb" if obs == "pixels" else "state",
                reward_mode=reward_mode,
                control_mode=CONTROL_MODE,
                render_mode=render_mode,
                robot_uids="panda",
                sim_backend="physx_cpu",
                **({"render_backend": "none"} | shown),
            )
        self._pixels, self._frames = obs == "pixels", np.zeros(0, np.uint8)
        self.action_repeat, self._limit, self._elapsed = action_repeat, max_episode_steps, 0
        self.max_episode_steps = max_episode_steps  # of the agent
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": max(1, self._task.control_freq // action_repeat)}
        self.action_space = gym.spaces.Box(-1.0, 1.0, self._task.single_action_space.shape, np.float32)
        if self._pixels:
            self.observation_space = gym.spaces.Box(0, 255, (9, PIXELS, PIXELS), np.uint8)
        else:
            size = self._task.single_observation_space.shape
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, size, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._elapsed = 0
        # Why a seed at every reset: without one ManiSkill draws from torch's global stream
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        obs, _ = self._task.reset(seed=episode_seed)
        if not self._pixels:
            return obs[0].numpy(), {"success": False}
        frame = self._frame(obs)
        check(bool(frame.any()), "the pictures are black: SAPIEN's renderer does not work here; use obs='state', or a GPU")
        self._frames = np.tile(frame, (3, 1, 1))
        return self._frames, {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = action.clip(-1.0, 1.0)
        total = 0.0
        for _ in range(self.action_repeat):
            obs, reward, _, _, info = self._task.step(action)
            total += float(reward)
        self._elapsed += 1
        if self._pixels:
            self._frames = np.concatenate([self._frames[3:], self._frame(obs)])
        shown = self._frames if self._pixels else obs[0].numpy()
        return shown, total, False, self._elapsed >= self._limit, {"success": bool(info["success"])}

    def _frame(self, obs: Any) -> np.ndarray:
        """[3, 64, 64] of the task's own camera."""
        return obs["sensor_data"]["base_camera"]["rgb"][0].cpu().numpy().transpose(2, 0, 1)

    def render(self) -> np.ndarray | None:
        return self._task.render()[0].cpu().numpy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._task.close()


@functools.cache
def has_vulkan() -> bool:
    """SAPIEN can draw in this process."""
    sapien = load_simulator("sapien", "ManiSkill's tasks", "maniskill")
    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _without_visuals() -> Iterator[None]:
    """Inside, scenes are built of what collides only: materials and visual shapes of SAPIEN and ManiSkill do nothing."""
    sapien = load_simulator("sapien", "ManiSkill's tasks", "maniskill")
    builders = (
        load_simulator("sapien.wrapper.actor_builder", "ManiSkill's tasks", "maniskill").ActorBuilder,
        load_simulator("mani_skill.utils.building.actor_builder", "ManiSkill's tasks", "maniskill").ActorBuilder,
    )

    class Nothing:
        """Takes any argument, attribute and call."""

        def __init__(self, *args: Any, **kwargs: Any):
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    def skip(builder: Any, *args: Any, **kwargs: Any) -> Any:
        return builder

    places = [(sapien.render, name, Nothing) for name in ("RenderMaterial", "RenderTexture2D")]
    for builder in builders:
        places += [(builder, name, skip) for name in vars(builder) if name.startswith("add_") and "visual" in name]
    originals = [getattr(owner, name) for owner, name, _ in places]
    for owner, name, nothing in places:
        setattr(owner, name, nothing)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


@functools.cache
def task_classes() -> dict[str, Any]:
    """Id -> the task with ManiSkill 2's observation.

    Raises:
        ConfigError: ManiSkill is not installed.
    """
    base = load_simulator("mani_skill.envs.tasks.tabletop.pick_cube", "ManiSkill's tasks", "maniskill").PickCubeEnv

    import torch

    class PickCube(base):
        """Move the cube to a goal in the air."""

        def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Any]:
            tcp, cube, goal = self.agent.tcp_pose, self.cube.pose, self.goal_site.pose.p
            seen = {"base_pose": self.agent.robot.pose.raw_pose, "tcp_pose": tcp.raw_pose, "goal_pos": goal}
            if "state" not in self.obs_mode:
                return seen
            return seen | {
                "tcp_to_goal_pos": goal - tcp.p,
                "obj_pose": cube.raw_pose,
                "tcp_to_obj_pos": cube.p - tcp.p,
                "obj_to_goal_pos": goal - cube.p,
            }

    class LiftCube(base):
        """Lift the cube 20 cm, and hold the arm still. The goal that PickCube draws is not used."""

        HEIGHT = 0.2  # m

        def _get_obs_extra(self, info: dict[str, Any]) -> dict[str, Any]:
            tcp, cube = self.agent.tcp_pose, self.cube.pose
            seen = {"base_pose": self.agent.robot.pose.raw_pose, "tcp_pose": tcp.raw_pose}
            if "state" not in self.obs_mode:
                return seen
            return seen | {"obj_pose": cube.raw_pose, "tcp_to_obj_pos": cube.p - tcp.p}

        def evaluate(self) -> dict[str, Any]:
            is_lifted = self.cube.pose.p[:, 2] >= self.HEIGHT + self.cube_half_size
            return {
                "success": is_lifted & self.agent.is_static(0.2),
                "is_lifted": is_lifted,
                "is_grasped": self.agent.is_grasping(self.cube, max_angle=30),
            }

        def compute_dense_reward(self, obs: Any, action: Any, info: dict[str, Any]) -> Any:
            """Up to 1 for reaching the cube, 0.25 for grasping it, up to 1 for its height while grasped; 2.25 for success."""
            distance = torch.linalg.norm(self.cube.pose.p - self.agent.tcp_pose.p, dim=1)
            height = (self.cube.pose.p[:, 2] - self.cube_half_size) / self.HEIGHT
            reward = 1 - torch.tanh(5 * distance) + info["is_grasped"] * (0.25 + height.clamp(max=1.0))
            return torch.where(info["success"], torch.full_like(reward, 2.25), reward)

        def compute_normalized_dense_reward(self, obs: Any, action: Any, info: dict[str, Any]) -> Any:
            return self.compute_dense_reward(obs, action, info) / 2.25

    return {"PickCube-v1": PickCube, "LiftCube-v1": LiftCube}
