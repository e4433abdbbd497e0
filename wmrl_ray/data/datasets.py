"""`open_dataset`: one URI in, a read-only memory-mapped dataset out, whatever the format."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import check
from wmrl_ray.data.card import DatasetCard, Origin, make_card
from wmrl_ray.data.episode import DataError, Episode, obs_dim_of


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes end to end in flat read-only arrays, one row per observation: an episode of T steps takes T+1 rows.

    obs [N, O] f32, or images [N, C, h, w] u8; action [N, A] f32 in [-1, 1]; reward [N] f32; terminated [N] u8. Row t holds the
    observation and what was done in it; in an episode's last row action, reward and terminated are 0. episode_starts [E+1]
    i64: episode i takes rows episode_starts[i] to episode_starts[i+1].
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

    def __reduce__(self) -> tuple[Any, ...]:
        """A cached dataset travels to another process as its path: the pages are shared, not sent."""
        if self.card.cache_path:
            from wmrl_ray.data.cache import reopen

            return reopen, (self.card.cache_path, self.card.uri, self.card.name)
        return Dataset, (self.card, self.obs, self.action, self.reward, self.terminated, self.episode_starts)


def open_dataset(
    uri: str | Path, *, cache_dir: Path | str | None = None, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Opens a dataset; the first time it is read into the flat cache, later it is only mapped.

    Args:
        uri: `minari://ID`, a Minari id or folder; `hdf5://PATH`, `*.hdf5`, `*.h5` (D4RL style); a file or folder of
            `*.parquet`, `*.arrow`, `*.feather`; `*.npz`; any of these as `s3://BUCKET/PATH` (`data.buckets`). The
            readers' module docstrings say the layouts.
        cache_dir: of the cache; None: WMRL_CACHE_DIR, or ~/.cache/wmrl_ray.
        progress: called with (read, all) while the source is read, in episodes, files or arrays.

    Raises:
        DataError: one line that names what is wrong with it and the fix.
    """
    from wmrl_ray.data.cache import Cache
    from wmrl_ray.data.source import resolve

    cache = Cache(Path(cache_dir) if cache_dir is not None else None)
    return cache.open(resolve(uri, cache.folder), progress)


def check_compatible(
    dataset: Dataset,
    env_obs_dim: int | tuple[int, int, int],
    env_action_dim: int,
    env_id: str | None = None,
    action_repeat: int | None = None,
) -> None:
    """Checks that an agent trained on `dataset` can be evaluated in the environment.

    Raises:
        DataError: other sizes, or another environment id than the dataset's.
        ConfigError: another action repeat than the dataset says it was recorded with.
    """
    card = dataset.card
    sizes = (("obs", card.obs_dim, env_obs_dim), ("action", card.action_dim, env_action_dim))
    for name, in_data, in_env in sizes:
        if in_data != in_env:
            raise DataError(
                f"dataset {card.name!r} has {name}_dim = {in_data}, but environment {env_id or '(unnamed)'!r} has {in_env}; "
                f"use the dataset's own environment{f' ({card.env_id})' if card.env_id else ''} or another dataset"
            )
    if env_id and card.env_id and plain_env_id(env_id) != plain_env_id(card.env_id):
        raise DataError(
            f"dataset {card.name!r} was recorded in {card.env_id!r}, not in {env_id!r}; use the dataset's environment or "
            "another dataset"
        )
    if action_repeat is not None:
        check(
            card.action_repeat in (None, action_repeat),
            f"dataset {card.name!r} was recorded with action_repeat = {card.action_repeat}, but environment {env_id!r} takes "
            f"each action {action_repeat} times; set env_config.action_repeat = {card.action_repeat}, or use another dataset",
        )


def plain_env_id(env_id: str) -> str:
    """Without the module that registers it: `wmrl_ray.envs:wmrl/X-v0` is `wmrl/X-v0`. What intents come from stays."""
    intents = re.match(r"(random-)?intents:[^:]*:", env_id)
    return (intents[0] if intents else "") + env_id.rpartition(":")[2]


def dataset_from_episodes(
    episodes: Sequence[Episode], *, name: str = "in-memory", origin: Origin | None = None, **about: str | float | None
) -> Dataset:
    """A dataset in memory, for tests and for data made on the fly. `about` sets fields of `Origin` (env_id, ...).

    Raises:
        DataError: no episodes, an invalid one, or sizes that differ.
    """
    if not episodes:
        raise DataError(f"dataset {name!r} has no episodes; give at least one")
    for number, episode in enumerate(episodes):
        episode.validate(f"{name}: episode {number}")
        sizes, first_sizes = ((obs_dim_of(e.obs), e.action.shape[1]) for e in (episode, episodes[0]))
        if sizes != first_sizes:
            raise DataError(
                f"{name}: episode {number} has obs_dim = {sizes[0]} and action_dim = {sizes[1]}, but episode 0 has "
                f"{first_sizes[0]} and {first_sizes[1]}; keep one environment per dataset"
            )
    starts = np.concatenate([[0], np.cumsum([len(episode) + 1 for episode in episodes])]).astype(np.int64)
    rows = int(starts[-1])
    arrays = {
        "obs": np.concatenate([episode.obs for episode in episodes]),
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
