"""Episodes in, batches of windows out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmrl_ray.core.batch import Batch
from wmrl_ray.data.episode import DataError, Episode, obs_dim_of
from wmrl_ray.data.storage import EpisodeStore, FlatEpisodes

if TYPE_CHECKING:
    from wmrl_ray.data.datasets import Dataset


class Replay:
    """A fixed dataset, episodes added online, or both; every step of the two together is equally likely to start a window.

    A window of H steps takes H+1 observations of one episode and never crosses its end: past it, `Batch.valid` is false. The
    dataset's arrays are only read, so a memory-mapped dataset is shared between the processes that sample from it. Sampling
    costs one search per window and one gather per array.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        *,
        num_episodes: int | None = None,
        obs_dim: int | tuple[int, int, int] | None = None,
        action_dim: int | None = None,
        capacity: int | None = None,
        seed: int | Sequence[int] = 0,
    ) -> None:
        """Sizes come from `dataset`, or from `obs_dim` and `action_dim` when there is none.

        Args:
            dataset: an opened dataset; never evicted.
            num_episodes: only the dataset's first so many; None: all.
            obs_dim: size of one observation, O; or (C, h, w) of images, which are kept as uint8.
            action_dim: size of one action, A.
            capacity: the most steps that episodes added online may hold together; the oldest whole episodes go first.
                None: no limit.
            seed: of this replay's own generator.

        Raises:
            DataError: sizes missing or in conflict with the dataset, more episodes than it has, or a capacity below 1.
        """
        if dataset is not None:
            for name, given, found in (
                ("obs_dim", obs_dim, obs_dim_of(dataset.obs)),
                ("action_dim", action_dim, dataset.action.shape[1]),
            ):
                if given is not None and given != found:
                    raise DataError(f"{name} = {given}, but dataset {dataset.card.name!r} has {found}; leave {name} out")
            obs_dim, action_dim = obs_dim_of(dataset.obs), dataset.action.shape[1]
            if num_episodes is not None and not 1 <= num_episodes <= len(dataset):
                raise DataError(
                    f"{num_episodes} episodes of dataset {dataset.card.name!r}, which has {len(dataset)}; ask for 1 to "
                    f"{len(dataset)}"
                )
        if obs_dim is None or action_dim is None:
            raise DataError("a replay needs a dataset, or obs_dim and action_dim")
        if capacity is not None and capacity < 1:
            raise DataError(f"capacity = {capacity}; it must be at least 1 step, or None for no limit")
        self.obs_dim, self.action_dim, self.capacity = obs_dim, action_dim, capacity
        self._dataset_sha256 = dataset.card.sha256 if dataset is not None else ""
        self._fixed = FlatEpisodes.of_dataset(dataset, num_episodes) if dataset is not None else None
        self._online = EpisodeStore(obs_dim, action_dim, capacity)
        self._generator = np.random.Generator(np.random.PCG64(seed if isinstance(seed, int | np.integer) else list(seed)))

    @property
    def num_steps(self) -> int:
        return self._online.num_steps + (self._fixed.num_steps if self._fixed else 0)

    @property
    def num_episodes(self) -> int:
        return self._online.num_episodes + (self._fixed.num_episodes if self._fixed else 0)

    @property
    def num_online_steps(self) -> int:
        """Of the episodes added online; at most `capacity`."""
        return self._online.num_steps

    def check_window(self, horizon: int) -> None:
        """Raises DataError unless some episode fills a window of `horizon` steps. (Shorter ones are padded beside it.)"""
        if horizon < 1:
            raise DataError(f"horizon = {horizon}; a window has at least 1 step")
        if self.num_episodes == 0:
            raise DataError("the replay is empty; add an episode or give it a dataset before sampling")
        if (longest := max(part.longest() for part in self._parts())) < horizon:
            raise DataError(
                f"no episode is as long as a window of {horizon} steps (the longest has {longest}); "
                f"use a horizon of at most {longest} or longer episodes"
            )

    def add(self, episode: Episode) -> None:
        """Takes one episode online (a copy) and evicts the oldest online ones beyond `capacity`.

        Raises:
            DataError: invalid episode, wrong sizes, or longer than `capacity`; the replay is then unchanged.
        """
        self._online.add(episode.validate("episode added to the replay"))

    def sample(self, batch_size: int, horizon: int, *, return_to_go: bool = False) -> Batch:
        """B = `batch_size` windows of H = `horizon` steps, as CPU tensors that the caller owns.

        Args:
            return_to_go: fill `Batch.time` and `Batch.return_to_go` too. The same windows are drawn either way.

        Raises:
            DataError: no episode is as long as the window, or the replay is empty.
        """
        self.check_window(horizon)
        parts = self._parts()
        counts = [part.num_steps for part in parts]
        draws = self._generator.integers(sum(counts), size=batch_size)

        def gather(part: FlatEpisodes, windows: np.ndarray) -> tuple[np.ndarray, ...]:
            found = part.gather(windows, horizon)
            return (*found, *part.gather_return_to_go(windows, horizon)) if return_to_go else found

        if len(parts) == 1 or counts[1] == 0:
            return self._marked(_batch(gather(parts[0], draws)), draws)
        is_online = draws >= counts[0]
        first = gather(parts[0], draws[~is_online])
        second = gather(parts[1], draws[is_online] - counts[0])
        return self._marked(_batch([_merge(is_online, a, b) for a, b in zip(first, second, strict=True)]), draws)

    def get_state(self, *, episodes: bool = True, copy: bool = True) -> dict[str, Any]:
        """The generator, the dataset's sha256 ("" for none) and the online episodes: arrays, numbers and strings only.

        Args:
            episodes: False leaves them out: another rank saves the same.
            copy: False gives the replay's own arrays, for who is done with them before anything is added.
        """
        state = {"dataset_sha256": self._dataset_sha256, "generator": generator_state(self._generator)}
        return {**state, "online": self._online.get_state(copy=copy)} if episodes else state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned: the next `sample` is the one that would have followed.

        Raises:
            DataError: the state belongs to another dataset or to other sizes.
        """
        if (saved := state["dataset_sha256"]) != self._dataset_sha256:
            raise DataError(
                f"this replay state was saved with dataset sha256 {saved[:12] or '(none)'}, but the replay reads "
                f"{self._dataset_sha256[:12] or '(none)'}; resume with the dataset of the saved run"
            )
        self._online.set_state(state["online"])
        set_generator_state(self._generator, state["generator"])

    def _marked(self, batch: Batch, draws: np.ndarray) -> Batch:
        """With `next_obs_known` where the dataset lacks terminal observations; `draws` [B] are the windows' first steps."""
        if self._fixed is None or self._fixed.terminal_obs_known:
            return batch
        is_online = torch.from_numpy(draws >= self._fixed.num_steps)[:, None]
        return dataclasses.replace(batch, next_obs_known=~batch.terminated | is_online)

    def _parts(self) -> list[FlatEpisodes]:
        return [self._fixed, self._online] if self._fixed is not None else [self._online]


class DemonstrationReplay:
    """An expert's demonstrations beside the agent's own episodes; every batch is half of each. Used as a `Replay` is."""

    def __init__(self, demonstrations: Replay, behaviour: Replay) -> None:
        """Both draw from their own generators. Raises DataError if their sizes differ."""
        for name in ("obs_dim", "action_dim"):
            expert, own = getattr(demonstrations, name), getattr(behaviour, name)
            if expert != own:
                raise DataError(f"demonstrations with {name} = {expert}, but the agent's own episodes have {own}")
        self.demonstrations, self.behaviour = demonstrations, behaviour

    @property
    def num_steps(self) -> int:
        return self.demonstrations.num_steps + self.behaviour.num_steps

    @property
    def num_episodes(self) -> int:
        return self.demonstrations.num_episodes + self.behaviour.num_episodes

    @property
    def num_online_steps(self) -> int:
        """Of the agent's own episodes."""
        return self.behaviour.num_online_steps

    def check_window(self, horizon: int) -> None:
        """Raises DataError unless each half can fill a window of `horizon` steps."""
        self.demonstrations.check_window(horizon)
        self.behaviour.check_window(horizon)

    def add(self, episode: Episode) -> None:
        """Takes an episode of the agent's own; see `Replay.add`."""
        self.behaviour.add(episode)

    def sample(self, batch_size: int, horizon: int, *, return_to_go: bool = False) -> Batch:
        """2 B windows: B = `batch_size` of the agent's own, then B of the expert's; `Batch.is_expert` says which is which."""
        own = self.behaviour.sample(batch_size, horizon, return_to_go=return_to_go)
        expert = self.demonstrations.sample(batch_size, horizon, return_to_go=return_to_go)
        halves = {name: (getattr(own, name), getattr(expert, name)) for name in Batch.__dataclass_fields__}
        if halves["next_obs_known"] != (None, None):
            all_known = torch.ones_like(own.valid)
            first, second = halves["next_obs_known"]
            halves["next_obs_known"] = (all_known if first is None else first, all_known if second is None else second)
        joined = {name: torch.cat(both) for name, both in halves.items() if both[0] is not None}
        return Batch(**joined, is_expert=torch.arange(2 * batch_size) >= batch_size)

    def get_state(self, *, episodes: bool = True, copy: bool = True) -> dict[str, Any]:
        """Of both. episodes, copy: as in `Replay.get_state`."""
        return {
            "demonstrations": self.demonstrations.get_state(episodes=episodes, copy=copy),
            "behaviour": self.behaviour.get_state(episodes=episodes, copy=copy),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned. Raises DataError as `Replay.set_state`."""
        self.demonstrations.set_state(state["demonstrations"])
        self.behaviour.set_state(state["behaviour"])


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Of a PCG64: numbers and strings."""
    state = generator.bit_generator.state
    return {
        # Why strings: these are 128-bit integers, which few stores keep exactly.
        "state": str(state["state"]["state"]),
        "inc": str(state["state"]["inc"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def set_generator_state(generator: np.random.Generator, saved: Mapping[str, Any]) -> None:
    """The inverse of `generator_state`."""
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(saved["state"]), "inc": int(saved["inc"])},
        "has_uint32": int(saved["has_uint32"]),
        "uinteger": int(saved["uinteger"]),
    }


def _batch(arrays: Sequence[np.ndarray]) -> Batch:
    return Batch(*(torch.from_numpy(array) for array in arrays))


def _merge(mask: np.ndarray, where_false: np.ndarray, where_true: np.ndarray) -> np.ndarray:
    merged = np.empty((len(mask), *where_false.shape[1:]), where_false.dtype)
    merged[~mask], merged[mask] = where_false, where_true
    return merged
