"""What a runner notes about each episode that ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback

from wmrl_ray.data.episode import Episode
from wmrl_ray.envs.wrappers import succeeds_at_end


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode and whether it reached its goal (None: the environment does not say)."""

    episode: Episode
    success: bool | None


class EpisodeRecorder(RLlibCallback):
    """Keeps the next episodes of each environment while an evaluation asks for them; otherwise logs return and success."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: list[int] | None = None
        self._records: list[list[EpisodeRecord]] = []

    def expect(self, wanted: list[int]) -> None:
        """From now on keeps the first `wanted[i]` episodes that environment i ends."""
        self._wanted = wanted
        self._records = [[] for _ in wanted]

    @property
    def is_complete(self) -> bool:
        return self._wanted is not None and all(len(kept) >= n for kept, n in zip(self._records, self._wanted, strict=True))

    def take(self) -> list[EpisodeRecord]:
        """The kept episodes: first of every environment, second of every environment, ..."""
        longest = max(map(len, self._records))
        ordered = [kept[j] for j in range(longest) for kept in self._records if j < len(kept)]
        self._wanted, self._records = None, []
        return ordered

    def on_episode_end(
        self,
        *,
        episode: Any,
        prev_episode_chunks: Any = None,
        metrics_logger: Any = None,
        env: Any,
        env_index: int,
        **kwargs: Any,
    ) -> None:
        chunks, at_end = [*(prev_episode_chunks or []), episode], succeeds_at_end(env.envs[env_index])
        if self._wanted is None:
            record = read_episode(chunks, success_at_end=at_end)
            metrics_logger.log_value("episode_return", record.episode.episode_return, window=100)
            if record.success is not None:
                metrics_logger.log_value("episode_success", float(record.success), window=100)
        elif len(self._records[env_index]) < self._wanted[env_index]:
            self._records[env_index].append(read_episode(chunks, success_at_end=at_end))


def read_episode(chunks: list[Any], *, success_at_end: bool = False) -> EpisodeRecord:
    """One Episode from the consecutive chunks that RLlib cut it into; each chunk repeats the observation it was cut at.

    success_at_end: as of `succeeds_at_end`.
    """
    obs = [_array(chunk.get_observations())[int(i > 0) :] for i, chunk in enumerate(chunks)]
    infos = [info for chunk in chunks for info in chunk.get_infos()]
    found = [bool(info["success"]) for info in infos if "success" in info]
    episode = Episode(
        obs=np.concatenate(obs),
        action=np.concatenate([np.asarray(chunk.get_actions(), np.float32) for chunk in chunks if len(chunk)]),
        reward=np.concatenate([np.asarray(chunk.get_rewards(), np.float32) for chunk in chunks if len(chunk)]),
        terminated=bool(chunks[-1].is_terminated),
    )
    return EpisodeRecord(episode, (found[-1] if success_at_end else any(found)) if found else None)


def _array(obs: Any) -> np.ndarray:
    """float32, or uint8 of images."""
    array = np.asarray(obs)
    return array if array.dtype == np.uint8 else array.astype(np.float32)
