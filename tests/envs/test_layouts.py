"""The mazes as geometry: D4RL's maps, goals and coordinates."""

from __future__ import annotations

import numpy as np
import pytest

from wmrl_ray.data.makers.navigation import Navigator
from wmrl_ray.envs import maze_ids, maze_layout

GOALS = {  # D4RL's goal cells as (x, y) of Gymnasium-Robotics' coordinates
    "wmrl/PointMaze-UMaze-v0": (-1.0, 1.0),
    "wmrl/PointMaze-Medium-v0": (2.5, -2.5),
    "wmrl/PointMaze-Large-v0": (3.5, -3.0),
    "wmrl/AntMaze-UMaze-v0": (-4.0, -4.0),
    "wmrl/AntMaze-Medium-v0": (10.0, -10.0),
    "wmrl/AntMaze-Large-v0": (14.0, -12.0),
    "wmrl/AntMaze-Ultra-v0": (26.0, -18.0),
}


def test_every_maze_id_has_its_d4rl_goal() -> None:
    assert {env_id: maze_layout(env_id).goal for env_id in maze_ids()} == GOALS


@pytest.mark.parametrize("env_id", GOALS)
def test_the_goal_can_be_reached_from_every_free_cell(env_id: str) -> None:
    maze = maze_layout(env_id)
    navigator = Navigator(maze)
    for cell in maze.free_cells:
        route = navigator.route(cell, maze.goal_cell)
        assert route[-1] == maze.goal_cell
        steps = zip([cell, *route], route, strict=False)
        assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 or a == b for a, b in steps)


def test_the_maps_are_those_of_gymnasium_robotics() -> None:
    maps = pytest.importorskip("gymnasium_robotics.envs.maze.maps")
    for name, theirs in (("UMaze", maps.U_MAZE), ("Medium", maps.MEDIUM_MAZE), ("Large", maps.LARGE_MAZE)):
        np.testing.assert_array_equal(maze_layout(f"wmrl/PointMaze-{name}-v0").walls, np.array(theirs) == 1)


@pytest.mark.parametrize("env_id", GOALS)
def test_a_cell_and_its_centre_belong_together(env_id: str) -> None:
    maze = maze_layout(env_id)
    assert all(maze.cell_at(*maze.centre(cell)) == cell for cell in maze.free_cells)
    x_min, x_max, y_min, y_max = maze.bounds
    assert maze.cell_at(x_min + 0.01, y_max - 0.01) == (0, 0)
    assert maze.cell_at(x_max - 0.01, y_min + 0.01) == (maze.walls.shape[0] - 1, maze.walls.shape[1] - 1)


def test_a_prefix_does_not_hide_a_maze_and_other_ids_have_none() -> None:
    prefixed = maze_layout("wmrl_ray.envs:wmrl/AntMaze-Ultra-v0")
    assert prefixed.goal == GOALS["wmrl/AntMaze-Ultra-v0"]
    assert prefixed.max_episode_steps == 2000
    assert maze_layout("Pendulum-v1") is None


def test_a_shortest_way_is_found() -> None:
    maze = maze_layout("wmrl/PointMaze-UMaze-v0")
    assert Navigator(maze).route((3, 1), (1, 1)) == [(3, 2), (3, 3), (2, 3), (1, 3), (1, 2), (1, 1)]
    assert Navigator(maze).route((1, 1), (1, 1)) == [(1, 1)]
