"""AntMaze data with the recipe of D4RL: an ant that walks to commanded goals, action noise 0.2, reward for one evaluation goal.

play: starts and goals from a short list picked by hand. diverse: any free cell. An episode ends as a success within 0.5 of the
evaluation goal, whatever goal was commanded; a reached goal is followed by the next one; the task's step limit truncates, and
so does a fall.
Not D4RL's: the walk is scripted (`gait.py`; D4RL trained SAC), in lanes that change, so that the data also shows how to leave a
wall: clones of a walk in the middle of the corridors slid along walls, where that data has nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.data.episode import Episode
from wmrl_ray.data.makers.gait import uprightness, walk
from wmrl_ray.data.makers.navigation import Navigator
from wmrl_ray.data.makers.shards import Shard, ShardSpec

if TYPE_CHECKING:
    from wmrl_ray.envs.layouts import Cell, MazeLayout

ACTION_NOISE = 0.2
LANE = 1.5  # metres beside the middle of a corridor, at most; from about 1.2 on the ant leans on the wall
LANE_STEPS = 80  # in a lane, before another one is drawn
REACHED = 1.0  # metres from a commanded goal that is not the evaluation goal
FALLEN = 0.0  # uprightness below which the ant does not get up

# (starts, goals) of "play". Goals of medium and large: the ones that D4RL's collection mazes mark, and the evaluation goal.
PLAY: dict[str, tuple[list[Cell], list[Cell]]] = {
    "umaze": ([(1, 1), (1, 2), (1, 3)], [(3, 1), (1, 1), (3, 3)]),
    "medium": ([(1, 1), (1, 6), (4, 1), (4, 4)], [(6, 6), (2, 6), (5, 1), (6, 5)]),
    "large": ([(1, 1), (1, 10), (3, 6), (7, 1)], [(1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)]),
    "ultra": ([(1, 1), (8, 1), (1, 14), (5, 9)], [(10, 14), (1, 9), (10, 2), (8, 7), (3, 10)]),
}


class AntController:
    """Walks the ant along the corridors to a goal.

    lane: metres to the left of the corridor's middle that it keeps to.
    """

    PULL = 0.8  # towards the lane, per metre beside it

    def __init__(self, maze: MazeLayout):
        self.maze, self.navigator = maze, Navigator(maze)
        self._free = set(self.navigator.free_cells)
        self.goal, self._goal_cell, self._cell = maze.goal, maze.goal_cell, maze.goal_cell
        self.lane = 0.0

    def command(self, goal: tuple[float, float]) -> None:
        self.goal, self._goal_cell = goal, self.maze.cell_at(*goal)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Action [8] for an observation [29]."""
        return walk(obs, self.heading(float(obs[0]), float(obs[1])))

    def heading(self, x: float, y: float) -> float:
        """The direction to walk in, radians."""
        cell = self.maze.cell_at(x, y)
        if cell in self._free:
            self._cell = cell  # else: a torso above a wall's edge belongs to the cell it came from
        cell = self._cell
        if cell == self._goal_cell:
            return math.atan2(self.goal[1] - y, self.goal[0] - x)
        following = self.navigator.next_cell(cell, self._goal_cell)
        (cx, cy), (nx, ny) = self.maze.centre(cell), self.maze.centre(following)
        ax, ay = (nx - cx) / self.maze.cell_size, (ny - cy) / self.maze.cell_size
        beside = (x - cx) * -ay + (y - cy) * ax - self.lane
        return math.atan2(ay - self.PULL * beside * ax, ax + self.PULL * beside * ay)


def collect(spec: ShardSpec) -> Shard:
    """Episodes that sum to spec.steps steps; the last one is cut there."""
    env, rng = _env(spec), spec.rng()
    maze: MazeLayout = env.layout
    controller = AntController(maze)
    free = controller.navigator.free_cells
    starts, goals = PLAY[spec.maze] if spec.style == "play" else (free, free)
    episodes: list[Episode] = []
    left, reached = spec.steps, 0
    while left > 0:
        episode, goals_reached = _episode(env, controller, rng, starts, goals, min(left, maze.max_episode_steps))
        episodes.append(episode)
        left, reached = left - len(episode), reached + goals_reached
    return Shard(spec, episodes, [], spec.steps, reached)


def evaluate(spec: ShardSpec) -> Shard:
    """Returns of the random policy or of the controller without noise, in the evaluation environment."""
    env, rng = _env(spec), spec.rng()
    controller = AntController(env.layout)
    returns, steps = [], 0
    for _ in range(spec.episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        controller.command(env.layout.goal)
        total = 0.0
        for _ in range(env.layout.max_episode_steps):
            action = rng.uniform(-1.0, 1.0, 8) if spec.kind == "random" else controller.act(obs)
            obs, reward, terminated, _, _ = env.step(action.astype(np.float32))
            total, steps = total + reward, steps + 1
            if terminated:
                break
        returns.append(total)
    return Shard(spec, [], returns, steps)


def _episode(
    env: Any, controller: AntController, rng: np.random.Generator, starts: list[Cell], goals: list[Cell], limit: int
) -> tuple[Episode, int]:
    """One episode of at most `limit` steps, and the number of goals that were reached in it."""
    maze: MazeLayout = env.layout
    start = starts[rng.integers(len(starts))]
    while start == maze.goal_cell:
        start = starts[rng.integers(len(starts))]
    first, _ = env.reset(seed=int(rng.integers(2**31)), options={"start_cell": start})
    controller.command(_draw_goal(maze, goals, start, rng))
    noise = rng.standard_normal((limit, 8)) * ACTION_NOISE
    lanes = rng.uniform(-LANE, LANE, limit // LANE_STEPS + 1).tolist()
    obs, action = np.empty((limit + 1, len(first)), np.float32), np.empty((limit, 8), np.float32)
    reward = np.empty(limit, np.float32)
    obs[0], t, reached, terminated = first, 0, 0, False
    while t < limit and not terminated and uprightness(obs[t]) > FALLEN:
        controller.lane = lanes[t // LANE_STEPS]
        action[t] = np.clip(controller.act(obs[t]) + noise[t], -1.0, 1.0)
        obs[t + 1], reward[t], terminated, _, _ = env.step(action[t])
        t += 1
        x, y = float(obs[t, 0]), float(obs[t, 1])
        if controller.goal != maze.goal and math.hypot(x - controller.goal[0], y - controller.goal[1]) < REACHED:
            reached += 1
            controller.command(_draw_goal(maze, goals, maze.cell_at(x, y), rng))
    return Episode(obs[: t + 1].copy(), action[:t].copy(), reward[:t].copy(), terminated), reached + terminated


def _draw_goal(maze: MazeLayout, goals: list[Cell], here: Cell, rng: np.random.Generator) -> tuple[float, float]:
    """A random one of the goal cells, not this one; off its middle by up to 1 m, but for the evaluation goal."""
    cell = here
    while cell == here:
        cell = goals[rng.integers(len(goals))]
    x, y = maze.centre(cell)
    dx, dy = rng.uniform(-1.0, 1.0, 2).tolist()
    return maze.goal if cell == maze.goal_cell else (x + dx, y + dy)


def _env(spec: ShardSpec) -> Any:
    from wmrl_ray.envs.mazes import MazeEnv

    return MazeEnv("ant", spec.maze)
