"""What a runner notes about each episode that ends; and a user's callbacks, called as a Collector takes its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wmrl_ray.collect import Collector
from wmrl_ray.data.episode import Episode
from wmrl_ray.envs.wrappers import succeeds_at_end
from wmrl_ray.rollout import Slot

OF_EPISODES = ("environment_created", "episode_created", "episode_start", "episode_step", "episode_end")


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

    def has_all_of(self, env: int) -> bool:
        """Whether what this environment does now belongs to no episode of the evaluation."""
        return self._wanted is not None and len(self._records[env]) >= self._wanted[env]

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
    infos = [info for chunk in chunks for info in chunk.get_infos()[1:]]  # Why: of steps only, as without Ray
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


class CollectedEpisodes:
    """Calls RLlib's episode callbacks as a collector's episodes begin, go on and end, with RLlib's arguments: `episode` is a
    SingleAgentEpisode of the agent's actions in [-1, 1], `env` has the W environments as `env.envs`.

    metrics: what they log; whoever owns this sends it on.
    """

    def __init__(self, config: Any, module: Any, callbacks: Sequence[RLlibCallback], env_runner: Any = None) -> None:
        self.metrics = MetricsLogger(stats_cls_lookup=config.stats_cls_lookup, root=False)
        self._config, self._callbacks = config, callbacks
        self._common = {"env_runner": env_runner, "metrics_logger": self.metrics}
        self._module = module
        self._episodes: dict[int, SingleAgentEpisode] = {}

    @classmethod
    def of(cls, config: Any, module: Any, callbacks: Sequence[RLlibCallback] | None = None, env_runner: Any = None) -> Any:
        """None where nobody would hear of an episode: then collecting costs nothing more."""
        classes = force_list(config.callbacks_class)
        names = [f"on_{name}" for name in OF_EPISODES]
        overridden = any(getattr(one, name, None) is not getattr(RLlibCallback, name) for one in classes for name in names)
        if not overridden and not any(getattr(config, f"callbacks_{name}") for name in names):
            return None
        return cls(config, module, [one() for one in classes] if callbacks is None else callbacks, env_runner)

    def opened(self, collector: Collector) -> None:
        self._common["env"] = collector
        context = EnvContext(self._config.env_config, worker_index=0)
        self._call("environment_created", env_context=context)

    def started(self, row: int, slot: Slot, info: Mapping[str, Any]) -> None:
        spaces = {"observation_space": slot.env.observation_space, "action_space": slot.env.action_space}
        episode = self._episodes[row] = SingleAgentEpisode(**spaces)  # type: ignore[arg-type]
        self._call_of("episode_created", row)
        episode.add_env_reset(observation=slot.newest, infos=dict(info))
        self._call_of("episode_start", row)

    def stepped(self, row: int, slot: Slot, info: Mapping[str, Any], *, again: bool) -> None:
        self._episodes[row].add_env_step(
            slot.newest,
            slot.action[-1],
            slot.reward[-1],
            infos=dict(info),
            terminated=slot.terminated,
            truncated=slot.ended and not slot.terminated,
        )
        if not again:
            self._call_of("episode_step", row)
        if slot.ended:
            self._call_of("episode_end", row, prev_episode_chunks=[])

    def _call_of(self, which: str, row: int, **more: Any) -> None:
        self._call(which, episode=self._episodes[row], env_index=row, rl_module=self._module, **more)

    def _call(self, which: str, **kwargs: Any) -> None:
        functions = getattr(self._config, f"callbacks_on_{which}")
        make_callback(f"on_{which}", self._callbacks, functions, kwargs={**self._common, **kwargs})
