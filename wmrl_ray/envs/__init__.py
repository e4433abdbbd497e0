"""Environments with one interface: flat float32 observations (or pixels, uint8 [C, h, w]), actions in [-1, 1].

Importing this package registers the project's ids; another process names the module: "wmrl_ray.envs:wmrl/PointMaze-UMaze-v0".
Simulators are imported when an environment is made, never before.
"""

from __future__ import annotations

import gymnasium as gym

from wmrl_ray.envs.catalog import FAMILIES
from wmrl_ray.envs.factory import make_env, make_vector_env
from wmrl_ray.envs.layouts import MazeLayout, layout, maze_ids, maze_layout

__all__ = ["MazeLayout", "make_env", "make_vector_env", "maze_ids", "maze_layout"]

for _id, (_robot, _maze) in maze_ids().items():
    gym.register(
        _id,
        entry_point="wmrl_ray.envs.mazes:MazeEnv",
        max_episode_steps=layout(_robot, _maze).max_episode_steps,
        kwargs={"robot": _robot, "maze": _maze},
    )

for _family in FAMILIES:
    if _family.module in ("dmc", "maniskill"):  # MyoSuite and Gymnasium register the others themselves
        for _id in _family.environments:
            if _id != "PickCube-v1":  # ManiSkill registers that id itself
                gym.register(_id, entry_point=f"wmrl_ray.envs.{_family.module}:make", kwargs={"env_id": _id})
