"""The mazes as plain geometry: no simulator is needed to draw one, or to find a way through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Cell = tuple[int, int]  # (row, column), row 0 at the top (largest y)

# '#' wall, '.' free. The first three are D4RL's (and Gymnasium-Robotics') training mazes; ultra is TAP's (Jiang et al., 2022).
_MAPS = {
    "umaze": ("#####", "#...#", "###.#", "#...#", "#####"),
    "medium": ("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"),
    "large": (
        "############",
        "#....#.....#",
        "#.##.#.#.#.#",
        "#......#...#",
        "#.####.###.#",
        "#..#.#.....#",
        "##.#.#.#.###",
        "#..#...#...#",
        "############",
    ),
    "ultra": (
        "################",
        "#.......#......#",
        "#.###.#.#.##.#.#",
        "#.###.#....#.#.#",
        "#...#.##.###.#.#",
        "#.#...#........#",
        "#...#...#.###.##",
        "#.#.###.#...#.##",
        "#.......#.#....#",
        "##.##.#...####.#",
        "##.#..#.#......#",
        "################",
    ),
}

# (robot, maze): the cell where D4RL's evaluation starts (None: any free cell), the cell of its goal, its step limit.
_TASKS: dict[tuple[str, str], tuple[Cell | None, Cell, int]] = {
    ("point", "umaze"): (None, (1, 1), 300),
    ("point", "medium"): (None, (6, 6), 600),
    ("point", "large"): (None, (7, 9), 800),
    ("ant", "umaze"): ((1, 1), (3, 1), 700),
    ("ant", "medium"): ((1, 1), (6, 6), 1000),
    ("ant", "large"): ((1, 1), (7, 9), 1000),
    ("ant", "ultra"): ((1, 1), (10, 14), 2000),
}
_CELL_SIZE = {"point": 1.0, "ant": 4.0}
_VELOCITY = {"point": 2, "ant": 15}
_NAMES = {"umaze": "UMaze", "medium": "Medium", "large": "Large", "ultra": "Ultra"}
_ROBOTS = {"point": "PointMaze", "ant": "AntMaze"}


@dataclass(frozen=True)
class MazeLayout:
    """A maze and its fixed task.

    walls: [R, C] bool, row 0 at the top. cell_size: metres. goal: (x, y) of the goal cell's centre, metres.
    start_cell: where an episode begins, None for a random free cell. bounds: (x_min, x_max, y_min, y_max), metres.
    velocity: where (x, y) velocity begins in an observation, whose first two numbers are the position.
    """

    walls: np.ndarray
    cell_size: float
    goal: tuple[float, float]
    start_cell: Cell | None
    goal_radius: float
    max_episode_steps: int
    velocity: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        rows, columns = self.walls.shape
        half_x, half_y = columns * self.cell_size / 2, rows * self.cell_size / 2
        return -half_x, half_x, -half_y, half_y

    @property
    def free_cells(self) -> list[Cell]:
        """Every cell without a wall, row by row."""
        return [(int(row), int(column)) for row, column in np.argwhere(~self.walls)]

    @property
    def goal_cell(self) -> Cell:
        return self.cell_at(*self.goal)

    def centre(self, cell: Cell) -> tuple[float, float]:
        """(x, y) of the middle of a cell."""
        return _centre(self.walls.shape, self.cell_size, cell)

    def cell_at(self, x: float, y: float) -> Cell:
        """The cell that holds a point; may be a wall, or lie outside."""
        x_min, _, _, y_max = self.bounds
        return int((y_max - y) // self.cell_size), int((x - x_min) // self.cell_size)


def layout(robot: str, maze: str) -> MazeLayout:
    """The layout of a robot ("point", "ant") in a maze ("umaze", ...)."""
    walls = np.array([[tile == "#" for tile in row] for row in _MAPS[maze]])
    walls.setflags(write=False)
    start_cell, goal_cell, limit = _TASKS[robot, maze]
    size = _CELL_SIZE[robot]
    return MazeLayout(walls, size, _centre(walls.shape, size, goal_cell), start_cell, 0.5, limit, _VELOCITY[robot])


def maze_ids() -> dict[str, tuple[str, str]]:
    """Environment id -> (robot, maze), for every maze of this project."""
    return {f"wmrl/{_ROBOTS[robot]}-{_NAMES[maze]}-v0": (robot, maze) for robot, maze in _TASKS}


def maze_layout(env_id: str) -> MazeLayout | None:
    """The layout of one of this project's maze ids (with or without a module prefix), None for any other id."""
    key = maze_ids().get(env_id.rpartition(":")[2])
    return None if key is None else layout(*key)


def _centre(shape: tuple[int, ...], size: float, cell: Cell) -> tuple[float, float]:
    rows, columns = shape
    return (cell[1] + 0.5 - columns / 2) * size, (rows / 2 - cell[0] - 0.5) * size
