"""The door: what a reader returns, and the one check that every source passes (`Source.read`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wmrl_ray.data.card import Origin, content_sha256
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.values import flags_of

Progress = Callable[[int, int], None]  # (episodes or files read, all)
ACTION_TOLERANCE = 1e-5  # of the action range: what rounding to float32 may do


@dataclass
class RawDataset:
    """Arrays in the layout of `Dataset` (one row per observation; images as u8), actions already in [-1, 1] up to rounding.

    sha256: of the arrays as the source declares it, when it does (our own exports do): a flipped byte then shows on reading.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    episode_starts: np.ndarray
    origin: Origin
    sha256: str | None = None

    def checked(self, where: str) -> dict[str, np.ndarray]:
        """The validated arrays by name.

        Raises:
            DataError: empty, other shapes or types, rows that do not fit together, NaN or inf, an action outside the space,
                a terminal before the end of its episode, a last row that holds more than the observation, not the declared
                sha256.
        """
        starts, rows = self.episode_starts, len(self.obs)
        is_image = self.obs.dtype == np.uint8 and self.obs.ndim == 4
        axes = {"obs": 4 if is_image else 2, "action": 2, "reward": 1, "terminated": 1, "episode_starts": 1}
        for name, number in axes.items():
            values = getattr(self, name)
            if values.ndim != number or values.dtype.kind not in "biuf" or 0 in values.shape[1:]:
                raise DataError(
                    f"{where}: {name} has the shape {list(values.shape)} of {values.dtype}; numbers [N, O] (images: "
                    "[N, C, h, w] uint8), [N, A], [N], [N] and [E+1] are needed"
                )
        if len(starts) < 2:
            raise DataError(f"{where}: the dataset is empty; it needs at least one episode")
        for name in ("action", "reward", "terminated"):
            if len(getattr(self, name)) != rows:
                raise DataError(
                    f"{where}: {len(getattr(self, name))} rows of {name} for {rows} observations; an episode of T steps needs "
                    "T+1 observations, T actions and T rewards"
                )
        if starts[0] != 0 or starts[-1] != rows or (np.diff(starts) < 2).any():
            short = int(np.argmax(np.diff(starts) < 2))
            raise DataError(
                f"{where}: episode_starts does not cut {rows} rows into episodes of at least 2 rows (episode {short} has "
                f"{int(starts[short + 1] - starts[short])}, the last ends at row {int(starts[-1])}); rewrite the dataset"
            )
        for name in ("action", "reward") if is_image else ("obs", "action", "reward"):
            self._check_finite(name, where)
        self._check_action(where)
        terminated = flags_of(self.terminated, "terminated", where)
        self._check_ends(terminated, where)
        arrays = {
            "obs": np.ascontiguousarray(self.obs, np.uint8 if is_image else np.float32),
            "action": np.ascontiguousarray(self.action, np.float32),
            "reward": np.ascontiguousarray(self.reward, np.float32),
            "terminated": np.ascontiguousarray(terminated, np.uint8),
            "episode_starts": np.ascontiguousarray(starts, np.int64),
        }
        if self.sha256 is not None and (found := content_sha256(arrays)) != self.sha256:
            raise DataError(
                f"{where}: its arrays have sha256 {found[:12]}..., but it was written with {self.sha256[:12]}...; the file is "
                "damaged, restore it or write it again"
            )
        return arrays

    def place(self, row: int) -> str:
        episode = int(np.searchsorted(self.episode_starts, row, side="right")) - 1
        return f"episode {episode}, step {row - int(self.episode_starts[episode])}"

    def _check_ends(self, terminated: np.ndarray, where: str) -> None:
        """An episode's last row holds only its last observation, and only the step before it may terminate."""
        last_rows = self.episode_starts[1:] - 1
        for name, values in (("action", self.action), ("reward", self.reward), ("terminated", terminated)):
            if (used := values[last_rows].reshape(len(last_rows), -1).any(axis=1)).any():
                row = int(last_rows[np.argmax(used)])
                raise DataError(
                    f"{where}: {name} in {self.place(row)} is not 0, but that row holds only the episode's last observation; "
                    "an episode of T steps takes T+1 rows, so add such a row or set it to 0"
                )
        early = np.setdiff1d(np.flatnonzero(terminated), last_rows - 1)
        if len(early):
            raise DataError(f"{where}: {self.place(early[0])} is terminated but the episode goes on; split the episode there")

    def _check_finite(self, name: str, where: str) -> None:
        values = getattr(self, name)
        chunk = 1 << 16
        for first in range(0, len(values), chunk):
            part = values[first : first + chunk]
            # A sum is finite exactly when its terms are (up to overflow), and is much cheaper than isfinite per element.
            if np.isfinite(part.sum(dtype=np.float64)):
                continue
            bad = ~np.isfinite(part.reshape(len(part), -1)).all(axis=1)
            if bad.any():
                row = first + int(np.argmax(bad))
                value = float(np.ravel(values[row])[~np.isfinite(np.ravel(values[row]))][0])
                raise DataError(f"{where}: {name} is not finite in {self.place(row)} ({value}); drop or repair this episode")

    def _check_action(self, where: str) -> None:
        low, high = float(self.action.min()), float(self.action.max())
        if max(-low, high) > 1.0 + 2 * ACTION_TOLERANCE:
            row = int(np.argmax(np.abs(self.action).max(axis=1)))
            worst = self.action[row][np.argmax(np.abs(self.action[row]))]
            raise DataError(
                f"{where}: action {worst:.5g} in {self.place(row)} is outside [-1, 1]; rescale the actions to the "
                "environment's bounds, or repair this episode"
            )
        if max(-low, high) > 1.0:
            self.action = np.clip(self.action, -1.0, 1.0)


def starts_from_lengths(lengths: np.ndarray) -> np.ndarray:
    """episode_starts [E+1] for episodes of these numbers of steps."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64) + 1)]).astype(np.int64)
