"""PointMaze data with the recipe of D4RL's maze2d: waypoints, a PD controller, Gaussian action noise.

One trajectory per shard without resets: when a goal is reached, or not reached within the task's step limit, the next random
goal is drawn. The reward is that of the one evaluation goal, whatever goal was commanded, and there is no terminal state.
Not D4RL's: the reward belongs to the observation that *follows* the action, as in the environment's own step (D4RL's dataset
marks the observation before it); breadth-first search replaces value iteration; the trajectory is stored in pieces of at most
1000 steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.data.episode import Episode
from wmrl_ray.data.makers.navigation import Navigator
from wmrl_ray.data.makers.shards import Shard, ShardSpec

if TYPE_CHECKING:
    from wmrl_ray.envs.layouts import Cell, MazeLayout

EPISODE_STEPS = 1000
ACTION_NOISE = 0.5  # standard deviation, as D4RL's noisy collection


class WaypointController:
    """Drives the point along cell centres to a goal (D4RL's gains: 10 on position, -1 on velocity; tolerance 0.1 m).

    As in D4RL, intermediate waypoints are moved by up to -0.2 in x and y, so that ways differ.
    """

    TOLERANCE = 0.1
    JITTER = 0.2

    def __init__(self, maze: MazeLayout, rng: np.random.Generator):
        self.maze, self.rng, self.navigator = maze, rng, Navigator(maze)
        self._waypoints: list[tuple[float, float]] = []

    def command(self, x: float, y: float, goal: tuple[float, float]) -> None:
        """Sets a new goal (x, y) for a point that is at (x, y)."""
        route = self.navigator.route(self.maze.cell_at(x, y), self.maze.cell_at(*goal))
        jitter = (self.rng.random((len(route), 2)) * self.JITTER).tolist()
        centres = [self.maze.centre(cell) for cell in route]
        self._waypoints = [(cx - jx, cy - jy) for (cx, cy), (jx, jy) in zip(centres, jitter, strict=True)]
        self._waypoints[-1] = goal
        self._waypoints.reverse()  # the next one last

    def act(self, obs: list[float]) -> tuple[float, float, bool]:
        """(force x, force y, the goal is reached) for (x, y, vx, vy)."""
        x, y, vx, vy = obs
        wx, wy = self._waypoints[-1]
        reached = False
        if math.hypot(wx - x, wy - y) < self.TOLERANCE:
            if len(self._waypoints) == 1:
                reached = True
            else:
                self._waypoints.pop()
                wx, wy = self._waypoints[-1]
        return _clip(10.0 * (wx - x) - vx), _clip(10.0 * (wy - y) - vy), reached


def collect(spec: ShardSpec) -> Shard:
    """One continuous trajectory of spec.steps steps, in episodes of at most 1000."""
    env, rng = _env(spec), spec.rng()
    maze: MazeLayout = env.layout
    controller = WaypointController(maze, rng)
    steps = spec.steps
    noise = rng.standard_normal((steps, 2)) * ACTION_NOISE
    obs, action, reward = np.empty((steps + 1, 4), np.float32), np.empty((steps, 2), np.float32), np.empty(steps, np.float32)
    obs[0], _ = env.reset(seed=int(rng.integers(2**31)))
    now = obs[0].tolist()
    controller.command(now[0], now[1], _draw_goal(maze, controller.navigator.free_cells, maze.cell_at(now[0], now[1]), rng))
    reached_goals, since_goal = 0, 0
    for t in range(steps):
        fx, fy, reached = controller.act(now)
        action[t] = np.clip(noise[t] + (fx, fy), -1.0, 1.0)
        obs[t + 1], reward[t], _, _, _ = env.step(action[t])
        now = obs[t + 1].tolist()
        since_goal += 1
        if reached or since_goal >= maze.max_episode_steps:
            here = maze.cell_at(now[0], now[1])
            controller.command(now[0], now[1], _draw_goal(maze, controller.navigator.free_cells, here, rng))
            reached_goals, since_goal = reached_goals + reached, 0
    env.close()
    episodes = [
        Episode(obs[i : i + n + 1].copy(), action[i : i + n].copy(), reward[i : i + n].copy(), False)
        for i in range(0, steps, EPISODE_STEPS)
        for n in (min(EPISODE_STEPS, steps - i),)
    ]
    return Shard(spec, episodes, [], steps, reached_goals)


def evaluate(spec: ShardSpec) -> Shard:
    """Returns of the random policy or of the controller without noise, in the evaluation environment."""
    env, rng = _env(spec), spec.rng()
    maze: MazeLayout = env.layout
    controller = WaypointController(maze, rng)
    returns = []
    for _ in range(spec.episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        controller.command(float(obs[0]), float(obs[1]), maze.goal)
        total = 0.0
        for _ in range(maze.max_episode_steps):
            action = rng.uniform(-1.0, 1.0, 2) if spec.kind == "random" else controller.act(obs.tolist())[:2]
            obs, reward, _, _, _ = env.step(np.asarray(action, np.float32))
            total += reward
        returns.append(total)
    env.close()
    return Shard(spec, [], returns, spec.episodes * maze.max_episode_steps)


def _env(spec: ShardSpec) -> Any:
    from wmrl_ray.envs.mazes import MazeEnv

    return MazeEnv("point", spec.maze)


def _draw_goal(maze: MazeLayout, cells: list[Cell], here: Cell, rng: np.random.Generator) -> tuple[float, float]:
    """A random free cell other than this one, +- 0.1 as D4RL's targets."""
    choice = int(rng.integers(len(cells) - 1))
    x, y = maze.centre(cells[choice + (choice >= cells.index(here))])
    dx, dy = rng.uniform(-0.1, 0.1, 2).tolist()
    return x + dx, y + dy


def _clip(force: float) -> float:
    return min(1.0, max(-1.0, force))
