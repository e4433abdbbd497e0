"""Episodes -> a Minari dataset that is complete or absent."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmrl_ray.data.episode import DataError, Episode

REQUIREMENTS = ("mujoco", "gymnasium-robotics", "gymnasium")  # what the simulation's numbers depend on


@dataclass(frozen=True)
class Origin:
    """Where a dataset comes from: what its metadata says."""

    env_id: str
    algorithm_name: str
    description: str
    ref_min_score: float
    ref_max_score: float
    num_reference_episodes: int


def datasets_root() -> Path:
    """The folder of Minari's local datasets (MINARI_DATASETS_PATH)."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return get_dataset_path()


def check_target(dataset_id: str, overwrite: bool) -> Path:
    """The dataset's folder-to-be.

    Raises:
        DataError: not a Minari id, or a dataset of that id exists and `overwrite` is off.
    """
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except ValueError as error:
        raise DataError(f"dataset_id = {dataset_id!r} is not a Minari id; it looks like wmrl/pointmaze/umaze-v0") from error
    target = datasets_root() / dataset_id
    if target.exists() and not overwrite:
        raise DataError(f"dataset {dataset_id!r} exists already ({target}); choose another dataset_id or pass overwrite=True")
    return target


def write(dataset_id: str, episodes: Sequence[Episode], origin: Origin, *, overwrite: bool = False) -> str:
    """Writes the dataset beside its place and then moves it there.

    Raises:
        DataError: the id is taken, an episode is bad, or the disk is full (nothing is left behind).
    """
    import gymnasium as gym
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    target = check_target(dataset_id, overwrite)
    importlib.import_module("wmrl_ray.envs")  # registers the ids
    spec = gym.spec(origin.env_id)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=episode.obs,  # pyright: ignore[reportArgumentType]
            actions=episode.action,  # pyright: ignore[reportArgumentType]
            rewards=episode.reward,  # pyright: ignore[reportArgumentType]
            terminations=_last(len(episode), episode.terminated),  # pyright: ignore[reportArgumentType]
            truncations=_last(len(episode), not episode.terminated),  # pyright: ignore[reportArgumentType]
        )
        for i, episode in enumerate(e.validate(f"episode {i}") for i, e in enumerate(episodes))
    ]
    with _building_root() as building:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Minari asks for an author and a permalink
                minari.create_dataset_from_buffers(
                    dataset_id,
                    buffers,
                    env=spec,
                    eval_env=spec,
                    algorithm_name=origin.algorithm_name,
                    author="wmrl_ray",
                    description=origin.description,
                    ref_min_score=origin.ref_min_score,
                    ref_max_score=origin.ref_max_score,
                    num_episodes_average_score=origin.num_reference_episodes,
                    data_format="hdf5",
                    requirements=[f"{package}=={importlib.metadata.version(package)}" for package in REQUIREMENTS],
                    jpeg_encoding=False,
                )
        except OSError as error:
            raise DataError(f"dataset {dataset_id!r} could not be written under {building.parent}: {error}") from error
        _move(building, dataset_id, target)
    return dataset_id


@contextlib.contextmanager
def _building_root() -> Iterator[Path]:
    """A hidden folder beside the datasets that Minari writes into meanwhile; gone afterwards, whatever happens."""
    root = datasets_root()
    building = root / f".making-{uuid.uuid4().hex}"
    building.mkdir(parents=True)
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(building)
    try:
        yield building
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
        shutil.rmtree(building, ignore_errors=True)


def _move(building: Path, dataset_id: str, target: Path) -> None:
    """Puts the built dataset and its namespaces' metadata in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    root = building.parent
    for parent in (building / dataset_id).parents:
        if parent == building:
            break
        for metadata in parent.glob("namespace_metadata.json"):
            place = root / metadata.relative_to(building)
            if not place.exists():
                os.replace(metadata, place)
    if target.exists():
        os.replace(target, building / "replaced")
    os.replace(building / dataset_id, target)


def _last(steps: int, value: bool) -> np.ndarray:
    """[steps] bool, false but perhaps at the end."""
    flags = np.zeros(steps, dtype=bool)
    flags[-1] = value
    return flags
