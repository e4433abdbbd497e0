"""`open_dataset`: one URI in, a read-only memory-mapped dataset out, whatever the format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wmrl_ray.data.card import DatasetCard, Origin, make_card
from wmrl_ray.data.episode import DataError, Episode


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes end to end in flat read-only arrays, one row per observation: an episode of T steps takes T+1 rows.

    obs [N, O] f32; action [N, A] f32 in [-1, 1]; reward [N] f32; terminated [N] u8. Row t holds the observation and what was done
    in it; in an episode's last row action, reward and terminated are 0. episode_starts [E+1] i64: episode i takes rows
    episode_starts[i] to episode_starts[i+1].
    """

    card: DatasetCard
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    episode_starts: np.ndarray

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.episode_starts) - 1

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(i) for i in range(len(self)))

    def episode(self, index: int) -> Episode:
        """Episode `index` as read-only views.

        Raises:
            IndexError: no such episode.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of dataset {self.card.name!r}; it has episodes 0 to {len(self) - 1}")
        first, last = int(self.episode_starts[index]), int(self.episode_starts[index + 1])
        return Episode(
            obs=self.obs[first:last],
            action=self.action[first : last - 1],
            reward=self.reward[first : last - 1],
            terminated=bool(self.terminated[last - 2]),
        )

    def normalized_score(self, episode_return: float) -> float:
        """See `DatasetCard.normalized_score`."""
        return self.card.normalized_score(episode_return)


def dataset_from_episodes(
    episodes: Sequence[Episode], *, name: str = "in-memory", origin: Origin | None = None, **about: str | float | None
) -> Dataset:
    """A dataset in memory, for tests and for data made on the fly. `about` sets fields of `Origin` (env_id, ref_min_score, ...).

    Raises:
        DataError: no episodes, or an invalid one.
    """
    if not episodes:
        raise DataError(f"dataset {name!r} has no episodes; give at least one")
    for number, episode in enumerate(episodes):
        episode.validate(f"{name}: episode {number}")
    starts = np.concatenate([[0], np.cumsum([len(episode) + 1 for episode in episodes])]).astype(np.int64)
    rows = int(starts[-1])
    arrays = {
        "obs": np.concatenate([episode.obs for episode in episodes]).astype(np.float32),
        "action": np.zeros((rows, episodes[0].action.shape[1]), np.float32),
        "reward": np.zeros(rows, np.float32),
        "terminated": np.zeros(rows, np.uint8),
        "episode_starts": starts,
    }
    for first, episode in zip(starts, episodes, strict=False):
        end = first + len(episode)
        arrays["action"][first:end], arrays["reward"][first:end] = episode.action, episode.reward
        arrays["terminated"][end - 1] = episode.terminated
    for array in arrays.values():
        array.flags.writeable = False
    origin = dataclasses.replace(origin or Origin(), **about)  # type: ignore[arg-type]
    return Dataset(card=make_card(arrays, origin, uri=f"memory://{name}", name=name), **arrays)
