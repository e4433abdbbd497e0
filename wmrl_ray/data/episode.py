"""One trajectory, checked once at the door."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class DataError(ValueError):
    """A dataset that cannot be used. The message names the file or id, the episode, the value and the fix."""


@dataclass(frozen=True)
class Episode:
    """One trajectory of T steps.

    obs: [T+1, O] f32, or images [T+1, C, h, w] u8; one more than actions. action: [T, A] f32 in [-1, 1]. reward: [T] f32.
    terminated: the MDP truly ended after the last step (no bootstrap). Otherwise the episode was truncated (bootstrap).
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.action)

    @property
    def episode_return(self) -> float:
        return float(self.reward.sum())

    def validate(self, where: str = "episode") -> Episode:
        """Returns itself; raises DataError with `where` (file, id and number) in the message."""
        obs_axes = 4 if self.obs.dtype == np.uint8 else 2
        if (self.obs.ndim, self.action.ndim, self.reward.ndim) != (obs_axes, 2, 1):
            raise DataError(
                f"{where}: obs {list(self.obs.shape)} ({self.obs.dtype}), action {list(self.action.shape)} and reward "
                f"{list(self.reward.shape)} must have the shapes [T+1, O] (images: [T+1, C, h, w] uint8), [T, A] and [T]; "
                "reshape them"
            )
        steps = len(self.action)
        if steps == 0:
            raise DataError(f"{where}: has no steps")
        if len(self.obs) != steps + 1 or len(self.reward) != steps:
            raise DataError(
                f"{where}: {steps} actions need {steps + 1} observations and {steps} rewards, "
                f"got {len(self.obs)} and {len(self.reward)}"
            )
        for name in ("obs", "action", "reward"):
            values = getattr(self, name)
            if values.dtype == np.uint8:
                continue  # Why: images are finite; asking would copy them
            if not np.isfinite(values).all():
                first = np.argwhere(~np.isfinite(values))[0]
                raise DataError(
                    f"{where}: {name} at step {first[0]} is not finite ({values[tuple(first)]}); drop or repair this episode"
                )
        if (largest := float(np.abs(self.action).max())) > 1.0 + 1e-6:
            raise DataError(
                f"{where}: action {largest:.4g} is outside [-1, 1]; rescale the actions to the environment's bounds"
            )
        return self


def obs_dim_of(obs: np.ndarray) -> int | tuple[int, int, int]:
    """O of vectors [N, O], (C, h, w) of images [N, C, h, w]."""
    return obs.shape[1] if obs.ndim == 2 else (obs.shape[1], obs.shape[2], obs.shape[3])
