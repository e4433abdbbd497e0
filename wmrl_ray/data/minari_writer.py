"""A dataset -> a Minari dataset folder that is complete or absent."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.files import atomic_folder
from wmrl_ray.data.source import check_minari_id, minari_root

if TYPE_CHECKING:
    import gymnasium

    from wmrl_ray.data.datasets import Dataset


_INTENTS = ("intents", "random-intents")  # what begins an id whose environment puts intents behind the observations


def write_minari(
    dataset: Dataset, folder: Path, dataset_id: str, *, overwrite: bool = False, more: Mapping[str, Any] | None = None
) -> None:
    """Writes a Minari dataset folder (hdf5 layout), with the sha256 of the arrays, which the reader compares.

    By Minari's storage (`MinariStorage.new`, `update_episodes`), not by its `create_dataset_from_buffers`: that writes into the
    dataset's final place, where a process that is killed leaves half a dataset which Minari finds by its id. Here the folder is
    written beside it and renamed when complete, and episodes are taken one at a time.

    Args:
        dataset: its card says the environment and the reference scores.
        folder: the dataset's own.
        dataset_id: such as 'group/name-v0'.
        overwrite: replace what is there.
        more: metadata beside the card's, such as Minari's author.

    Raises:
        DataError: not a Minari id, or no space.
    """
    check_minari_id(dataset_id)
    import gymnasium
    import minari
    from minari.dataset.minari_storage import MinariStorage

    card = dataset.card
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "description": card.description,
        "wmrl_sha256": card.sha256,
        "wmrl_notes": list(card.notes),
        "wmrl_terminal_obs_known": card.terminal_obs_known,
        "wmrl_trajectories": list(card.trajectories),
        **(more or {}),
    }
    optional = {
        "wmrl_env_id": card.env_id,
        # Minari's own key names an environment with these observations; intents make others of them
        "env_spec" if (card.env_id or "").partition(":")[0] not in _INTENTS else "wmrl_env_spec": card.env_spec,
        "ref_min_score": card.ref_min_score,
        "ref_max_score": card.ref_max_score,
        "wmrl_action_repeat": card.action_repeat,
    }
    with atomic_folder(folder, overwrite=overwrite) as building:
        storage = MinariStorage.new(
            building / "data",
            observation_space=_observation_space(card.obs_dim),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (card.action_dim,), np.float32),
            data_format="hdf5",
            jpeg_encoding=False,
        )
        storage.update_metadata(metadata | {name: value for name, value in optional.items() if value is not None})
        storage.update_episodes(_episode_buffers(dataset))


def write_local_minari(
    dataset: Dataset, dataset_id: str, *, overwrite: bool = False, more: Mapping[str, Any] | None = None
) -> None:
    """`write_minari` into Minari's folder of local datasets, so that Minari finds it by its id."""
    write_minari(dataset, minari_root() / dataset_id, dataset_id, overwrite=overwrite, more=more)
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        try:
            create_namespace(namespace)
        except ValueError:  # Why: another process may have made it just now
            if namespace not in list_local_namespaces():
                raise


def env_spec_json(env: str) -> str:
    """JSON of the specification of a registered environment; `module:id` imports the module first.

    Raises:
        DataError: it is not registered.
    """
    import gymnasium

    module, _, env_id = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(env_id).to_json()
    except (gymnasium.error.Error, ImportError) as error:
        raise DataError(
            f"env = {env!r} is not a registered environment ({error}); write 'module:id' if a module registers it"
        ) from error


def _observation_space(obs_dim: int | tuple[int, int, int]) -> gymnasium.spaces.Box:
    import gymnasium

    if isinstance(obs_dim, int):
        return gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
    return gymnasium.spaces.Box(0, 255, obs_dim, np.uint8)


def _episode_buffers(episodes: Iterable[Episode]) -> Iterator[Any]:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    for number, episode in enumerate(episodes):
        is_last = np.arange(len(episode)) == len(episode) - 1
        yield EpisodeBuffer(
            id=number,
            observations=episode.obs,  # type: ignore[arg-type]
            actions=episode.action,  # type: ignore[arg-type]
            rewards=episode.reward,  # type: ignore[arg-type]
            terminations=is_last & episode.terminated,  # type: ignore[arg-type]
            truncations=is_last & (not episode.terminated),  # type: ignore[arg-type]
        )
