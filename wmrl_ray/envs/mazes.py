"""PointMaze and AntMaze with D4RL's tasks: flat observations, one fixed goal, D4RL's resets and step limits.

The simulation is Gymnasium-Robotics' (its maze builder, its point and Gymnasium's ant); a test steps both side by side.
What is D4RL's, and differs from Gymnasium-Robotics: the goal is fixed in the middle of its cell (there: random, with noise),
with radius 0.5 (there: 0.45); a point starts in a random free cell +- 0.1 with velocity N(0, 0.1); an ant starts in its start
cell with +- 0.1 on every coordinate and velocities N(0, 0.1).
What is not D4RL's: Gymnasium's ant (gear 150), and an ant's goal without D4RL's random offset within its cell.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from wmrl_ray.config import ConfigError
from wmrl_ray.envs.layouts import Cell, MazeLayout, layout
from wmrl_ray.envs.loading import load_simulator

_FRAME_SKIP = {"point": 1, "ant": 5}
_MAX_SPEED = 5.0  # of the point, m/s, as in D4RL
_WALL_HEIGHT = {"point": 0.4, "ant": 0.5}  # in cells, as in Gymnasium-Robotics


class MazeEnv(gym.Env[np.ndarray, np.ndarray]):
    """A robot in a maze.

    Observation: float32; (x, y, vx, vy) for the point; position [15] (x, y, z, quaternion, 8 joints) and velocity [14] for the
    ant.
    Action: float32 in [-1, 1]; values outside are clipped.
    Reward: 1 when the new observation is within 0.5 of the goal, else 0. `info["success"]` says the same.
    The ant's episode terminates at the goal; the point's goes on (only the time limit ends it).
    `reset(options={"start_cell": (row, column)})` starts in another cell.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, robot: str, maze: str, render_mode: str | None = None, frame_size: int = 256):
        self.robot, self.layout = robot, layout(robot, maze)
        self.render_mode, self._frame_size, self._camera = render_mode, frame_size, None
        self._mujoco = _import("mujoco")
        self.model = build_model(robot, self.layout)
        self.data = self._mujoco.MjData(self.model)
        self._frame_skip = _FRAME_SKIP[robot]
        self._initial = self.data.qpos.copy(), self.data.qvel.copy()
        obs_dim = self.model.nq + self.model.nv
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        self._goal, self._goal_radius = self.layout.goal, self.layout.goal_radius

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self.model, self.data)
        start = (options or {}).get("start_cell", self.layout.start_cell)
        x, y = self.layout.centre(self._checked(start))
        qpos, qvel = self._initial
        qpos = qpos + self.np_random.uniform(-0.1, 0.1, qpos.shape)
        qpos[:2] += x - self._initial[0][0], y - self._initial[0][1]
        if self.robot == "ant":
            qpos[3:7] /= np.linalg.norm(qpos[3:7])  # Why: the noise takes the orientation off the unit sphere
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel + 0.1 * self.np_random.standard_normal(qvel.shape)
        self._mujoco.mj_forward(self.model, self.data)
        obs = self._obs()
        return obs, {"success": self._at_goal(obs)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        data = self.data
        if self.robot == "point":
            np.clip(data.qvel, -_MAX_SPEED, _MAX_SPEED, out=data.qvel)
            self._mujoco.mj_forward(self.model, data)  # Why: as the original; it moves the solver's warm start
        np.clip(action, -1.0, 1.0, out=data.ctrl)
        self._mujoco.mj_step(self.model, data, nstep=self._frame_skip)
        obs = self._obs()
        success = self._at_goal(obs)
        return obs, float(success), success and self.robot == "ant", False, {"success": success}

    def render(self) -> np.ndarray | None:
        if self.render_mode != "rgb_array":
            return None
        if self._camera is None:
            from wmrl_ray.envs.camera import Camera

            self._camera = Camera(self.model, self.data, size=self._frame_size, top_down=True)
        return self._camera.frame()

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _obs(self) -> np.ndarray:
        return np.concatenate((self.data.qpos, self.data.qvel), dtype=np.float32, casting="same_kind")

    def _at_goal(self, obs: np.ndarray) -> bool:
        """From the float32 observation, so that a dataset's rewards can be recomputed exactly."""
        return bool(np.hypot(obs[0] - self._goal[0], obs[1] - self._goal[1]) <= self._goal_radius)

    def _checked(self, start: Cell | None) -> Cell:
        free = self.layout.free_cells
        if start is None:
            return free[self.np_random.integers(len(free))]
        if tuple(start) not in free:
            raise ConfigError(f"start_cell = {tuple(start)} is not a free cell of this maze; free: {free}")
        return start


def build_model(robot: str, maze: MazeLayout) -> Any:
    """The MuJoCo model of a robot in a maze, by Gymnasium-Robotics' builder.

    Raises:
        ConfigError: Gymnasium-Robotics is not installed.
    """
    builder = _import("gymnasium_robotics.envs.maze.maze_v4")
    if robot == "point":
        robot_xml = Path(builder.__file__).parents[1] / "assets" / "point" / "point.xml"
    else:
        robot_xml = Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml"
    walls = [[int(wall) for wall in row] for row in maze.walls]
    _, xml = builder.Maze.make_maze(str(robot_xml), walls, maze.cell_size, _WALL_HEIGHT[robot])
    try:
        model = _import("mujoco").MjModel.from_xml_path(xml)
    finally:
        os.unlink(xml)  # Why: the builder leaves one file in the temp folder per construction
    model.site("target").pos[:2] = maze.goal
    return model


def _import(module: str) -> Any:
    return load_simulator(module, "the mazes", "robotics")
