"""Finding the way through a maze: breadth-first search over its cells."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmrl_ray.envs.layouts import Cell, MazeLayout


class Navigator:
    """For every goal cell, the next cell on a shortest way to it; each goal is searched once."""

    def __init__(self, maze: MazeLayout):
        self.maze = maze
        self.free_cells = maze.free_cells
        self._next: dict[Cell, dict[Cell, Cell]] = {}

    def next_cell(self, cell: Cell, goal: Cell) -> Cell:
        """The neighbour of `cell` that is nearest to `goal`; the goal itself when already there."""
        if goal not in self._next:
            self._next[goal] = self._search(goal)
        return self._next[goal][cell]

    def route(self, start: Cell, goal: Cell) -> list[Cell]:
        """The cells after `start`, up to and with `goal`; [goal] when they are the same."""
        cells = [self.next_cell(start, goal)]
        while cells[-1] != goal:
            cells.append(self.next_cell(cells[-1], goal))
        return cells

    def _search(self, goal: Cell) -> dict[Cell, Cell]:
        following, queue = {goal: goal}, deque([goal])
        free = set(self.free_cells)
        while queue:
            cell = queue.popleft()
            for row, column in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                near = (cell[0] + row, cell[1] + column)
                if near in free and near not in following:
                    following[near] = cell
                    queue.append(near)
        return following
