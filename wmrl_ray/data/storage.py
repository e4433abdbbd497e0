"""Episodes end to end in flat arrays, and the gather that cuts windows out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.data.episode import DataError, Episode, obs_dim_of

if TYPE_CHECKING:
    from wmrl_ray.data.datasets import Dataset

Windows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
FIELDS = ("obs", "action", "reward", "terminated")


class FlatEpisodes:
    """Read access to episodes that lie one after the other: one row per observation, so T steps take T+1 rows.

    obs [N, O] f32 or images [N, C, h, w] u8, action [N, A] f32, reward [N] f32, terminated [N] bool (the last three are 0 in an
    episode's last row);
    starts [E+1] i64: episode i takes rows starts[i] to starts[i+1].
    """

    def __init__(
        self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray, starts: np.ndarray
    ) -> None:
        self.obs, self.action, self.reward, self.terminated = obs, action, reward, terminated
        self._starts = starts
        self.terminal_obs_known = True  # see `Origin`
        self._step_ends: np.ndarray | None = None
        self._returns: np.ndarray | None = None

    @classmethod
    def of_dataset(cls, dataset: Dataset, num_episodes: int | None = None) -> FlatEpisodes:
        """All of the dataset, or its first `num_episodes`."""
        starts = dataset.episode_starts if num_episodes is None else dataset.episode_starts[: num_episodes + 1]
        episodes = FlatEpisodes(dataset.obs, dataset.action, dataset.reward, dataset.terminated.view(np.bool_), starts)
        episodes.terminal_obs_known = dataset.card.terminal_obs_known
        return episodes

    @property
    def starts(self) -> np.ndarray:
        return self._starts

    @property
    def num_episodes(self) -> int:
        return len(self.starts) - 1

    @property
    def num_steps(self) -> int:
        return int(self.starts[-1] - self.starts[0]) - self.num_episodes

    def longest(self) -> int:
        """The number of steps of the longest episode; 0 when there is none."""
        return int(np.diff(self.starts).max() - 1) if self.num_episodes else 0

    def gather(self, windows: np.ndarray, horizon: int) -> Windows:
        """The windows that start at these steps, each in 0 .. num_steps - 1: step w of all is in row w + i of episode i.

        Past its episode's end a window repeats the last row: the last observation, action, reward and terminated 0.

        Returns: obs [B, H+1, O] (images [B, H+1, C, h, w] u8), action [B, H, A], reward, terminated, valid [B, H]; fresh
        contiguous arrays.
        """
        rows, episode = self._rows(windows, horizon + 1)  # [B, H+1], [B]
        last = (self.starts[episode + 1] - 1)[:, None]
        steps = np.ascontiguousarray(rows[:, :-1])  # [B, H]
        # np.take copies whole rows and is twice as fast as indexing with brackets here.
        return (
            self.obs.take(rows, axis=0),
            self.action.take(steps, axis=0),
            self.reward.take(steps),
            self.terminated.take(steps),
            steps < last,
        )

    def gather_return_to_go(self, windows: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the same windows: the first step's place in its episode [B] i64, and at each step the sum of rewards from it to
        the episode's end [B, H] f32, 0 past it. Summed in float64, once per change of the episodes.
        """
        if (returns := self._returns) is None:
            returns = self._returns = np.zeros(self.starts[-1], np.float32)
            for first, end in zip(self.starts[:-1], self.starts[1:], strict=True):
                returns[first:end] = self.reward[first:end][::-1].cumsum(dtype=np.float64)[::-1]
        rows, episode = self._rows(windows, horizon)
        return rows[:, 0] - self.starts[episode], returns.take(rows)

    def _rows(self, windows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` rows of each window [B, count], none past its episode's last; and the episode [B]."""
        starts = self.starts
        if (step_ends := self._step_ends) is None:  # the number of steps up to and with each episode
            step_ends = self._step_ends = starts[1:] - starts[0] - np.arange(1, len(starts))
        episode = np.searchsorted(step_ends, windows, side="right")  # [B]
        rows = (starts[0] + windows + episode)[:, None] + np.arange(count)
        np.minimum(rows, (starts[episode + 1] - 1)[:, None], out=rows)
        return rows, episode


class EpisodeStore(FlatEpisodes):
    """Episodes added at the back; beyond `capacity` steps the oldest whole episodes leave at the front.

    The living rows are always one contiguous block inside a larger buffer. When the buffer's end is reached the block moves to
    its front (or to a bigger buffer), so an episode never wraps around and each row is moved a bounded number of times.
    """

    def __init__(self, obs_dim: int | tuple[int, int, int], action_dim: int, capacity: int | None = None) -> None:
        super().__init__(*_empty_rows(0, obs_dim, action_dim), starts=np.zeros(1, np.int64))
        self.capacity = capacity
        self._edges: list[int] = [0]  # edges[front:] are the row numbers that `starts` holds
        self._front = 0
        self._cached_starts: np.ndarray | None = None

    @property
    def starts(self) -> np.ndarray:
        if self._cached_starts is None:
            self._cached_starts = np.asarray(self._edges[self._front :], np.int64)
        return self._cached_starts

    @property
    def num_episodes(self) -> int:
        return len(self._edges) - 1 - self._front

    @property
    def num_steps(self) -> int:
        return self._edges[-1] - self._edges[self._front] - self.num_episodes

    def add(self, episode: Episode) -> None:
        steps = len(episode)
        same = episode.obs.shape[1:] == self.obs.shape[1:] and (episode.obs.dtype == np.uint8) == (self.obs.dtype == np.uint8)
        if not same or episode.action.shape[1:] != self.action.shape[1:]:
            raise DataError(
                f"an episode with obs {list(episode.obs.shape)} ({episode.obs.dtype}) and action {list(episode.action.shape)} "
                f"does not fit a replay with obs_dim = {obs_dim_of(self.obs)} ({self.obs.dtype}) and action_dim = "
                f"{self.action.shape[1]}; add episodes of the same environment"
            )
        if self.capacity is not None:
            if steps > self.capacity:
                raise DataError(f"an episode of {steps} steps exceeds capacity = {self.capacity}; raise the capacity")
            while self.num_steps + steps > self.capacity:
                self._front += 1
        if self._edges[-1] + steps + 1 > len(self.obs):
            self._make_room(steps + 1)
        begin, end = self._edges[-1], self._edges[-1] + steps + 1
        self.obs[begin:end] = episode.obs
        self.action[begin : end - 1], self.action[end - 1] = episode.action, 0.0
        self.reward[begin : end - 1], self.reward[end - 1] = episode.reward, 0.0
        self.terminated[begin:end] = False
        self.terminated[end - 2] = episode.terminated
        self._edges.append(end)
        self._changed()

    def get_state(self, *, copy: bool = True) -> dict[str, Any]:
        first, last = self._edges[self._front], self._edges[-1]
        views = {name: getattr(self, name)[first:last] for name in FIELDS}
        state: dict[str, Any] = {name: view.copy() if copy else view for name, view in views.items()}
        return state | {"starts": self.starts - first}

    def set_state(self, state: Mapping[str, Any]) -> None:
        arrays = [np.asarray(state[name]) for name in FIELDS]
        if arrays[0].shape[1:] != self.obs.shape[1:] or arrays[1].shape[1:] != self.action.shape[1:]:
            raise DataError(
                f"the saved online episodes have obs_dim = {obs_dim_of(arrays[0])} and action_dim = {arrays[1].shape[1]}, this "
                f"replay {obs_dim_of(self.obs)} and {self.action.shape[1]}; restore into a replay of the same environment"
            )
        for name, array in zip(FIELDS, arrays, strict=True):
            setattr(self, name, np.array(array, dtype=getattr(self, name).dtype))
        self._edges, self._front = [int(edge) for edge in np.asarray(state["starts"])], 0
        self._changed()

    def _make_room(self, rows: int) -> None:
        """Moves the living block to the front of a buffer with space for `rows` more rows."""
        first, last = self._edges[self._front], self._edges[-1]
        needed = last - first + rows
        # A quarter of slack bounds the moving to 4 copies per row; without eviction the buffer doubles.
        if needed * 1.25 > len(self.obs):
            size = max(2 * needed if self.capacity is None else needed + needed // 2, 1024)
            fresh = _empty_rows(size, obs_dim_of(self.obs), self.action.shape[1])
        else:
            fresh = (self.obs, self.action, self.reward, self.terminated)
        for name, target in zip(FIELDS, fresh, strict=True):
            target[: last - first] = getattr(self, name)[first:last]  # numpy handles the overlap
            setattr(self, name, target)
        self._edges, self._front = [edge - first for edge in self._edges[self._front :]], 0

    def _changed(self) -> None:
        self._cached_starts = None
        self._step_ends = None
        self._returns = None


def _empty_rows(
    rows: int, obs_dim: int | tuple[int, int, int], action_dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    obs = np.empty((rows, obs_dim), np.float32) if isinstance(obs_dim, int) else np.empty((rows, *obs_dim), np.uint8)
    return (
        obs,
        np.empty((rows, action_dim), np.float32),
        np.empty(rows, np.float32),
        np.empty(rows, np.bool_),
    )
