"""What `wmrl data` does: list, describe, verify, import."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from wmrl_ray.data.cache import Cache
from wmrl_ray.data.card import DatasetCard, content_sha256, stand_in_of
from wmrl_ray.data.datasets import Dataset, open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.files import check_free
from wmrl_ray.data.minari_writer import env_spec_json, write_local_minari
from wmrl_ray.data.readers.minari_files import environment_of, read_metadata
from wmrl_ray.data.source import check_minari_id, local_minari_ids, minari_root, resolve


@dataclass(frozen=True)
class DatasetEntry:
    """One line of `list_datasets`, from the metadata alone. problem: why the metadata could not be read, "" if they could."""

    uri: str
    name: str
    num_steps: int = 0
    num_episodes: int = 0
    size_mb: float = 0.0
    env_id: str | None = None
    is_stand_in: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` compared: all of it agreed. files: file of the cache -> sha256."""

    card: DatasetCard
    files: dict[str, str]


def list_datasets() -> list[DatasetEntry]:
    """The Minari datasets on this machine."""
    return [_entry(dataset_id) for dataset_id in local_minari_ids()]


def describe(uri: str | Path, *, cache_dir: Path | str | None = None) -> DatasetCard:
    """The card of a dataset; see `open_dataset` for the errors."""
    return open_dataset(uri, cache_dir=cache_dir).card


def verify(uri: str | Path, *, cache_dir: Path | str | None = None) -> Verification:
    """Hashes the source and its cached copy in full and compares them with what was recorded when the source was read.

    A source that was never read before is read and checked now.

    Raises:
        DataError: naming the file that differs, and the fix.
    """
    cache = Cache(Path(cache_dir) if cache_dir is not None else None)
    source = resolve(uri, cache.folder)
    sha256, known = source.sha256(), cache.known(source)
    if known is not None and known["sha256"] != sha256:
        raise DataError(
            f"{source.uri} has changed since it was read: its content has sha256 {sha256[:12]}..., then "
            f"{known['sha256'][:12]}...; restore it, or open it again (`wmrl data info`) to accept what it is now"
        )
    if not cache.path(sha256).is_dir():
        cache.open(source)
    files = cache.verify(sha256)
    dataset = cache.open(source)
    arrays = {name: getattr(dataset, name) for name in ("obs", "action", "reward", "terminated", "episode_starts")}
    if (found := content_sha256(arrays)) != dataset.card.sha256:
        raise DataError(
            f"the arrays in {dataset.card.cache_path} have sha256 {found[:12]}..., the card says "
            f"{dataset.card.sha256[:12]}...; delete that folder, it is rebuilt from the source"
        )
    return Verification(dataset.card, files)


def import_dataset(
    uri: str | Path,
    minari_id: str,
    *,
    env: str | None = None,
    ref_scores: tuple[float, float] | None = None,
    overwrite: bool = False,
    cache_dir: Path | str | None = None,
) -> Dataset:
    """Writes any readable dataset into Minari's folder under `minari_id`, and opens it from there.

    Args:
        uri: of the dataset, as `open_dataset` takes it.
        minari_id: such as 'group/name-v0'.
        env: id of the environment to evaluate in (`module:id` imports the module first); None keeps the dataset's own.
        ref_scores: returns that score 0 and 100; None keeps the dataset's own.
        overwrite: replace a dataset of that id.
        cache_dir: see `open_dataset`.

    Raises:
        DataError: the dataset cannot be read, the id is taken or none, the environment is not registered, no space.
    """
    check_minari_id(minari_id)
    check_free(minari_root() / minari_id, overwrite)
    spec = env_spec_json(env) if env else None
    dataset = open_dataset(uri, cache_dir=cache_dir)
    if env:
        dataset = dataclasses.replace(dataset, card=dataclasses.replace(dataset.card, env_id=env, env_spec=spec))
    if ref_scores:
        low, high = ref_scores
        card = dataclasses.replace(dataset.card, ref_min_score=low, ref_max_score=high)
        if not card.has_scale:
            raise DataError(f"reference scores {low} and {high}; a score needs two that differ")
        dataset = dataclasses.replace(dataset, card=card)
    write_local_minari(dataset, minari_id, overwrite=overwrite)
    return open_dataset(f"minari://{minari_id}", cache_dir=cache_dir)


def _entry(dataset_id: str) -> DatasetEntry:
    folder, uri = minari_root() / dataset_id, f"minari://{dataset_id}"
    try:
        metadata = read_metadata(folder)
        return DatasetEntry(
            uri=uri,
            name=dataset_id,
            num_steps=int(metadata["total_steps"]),
            num_episodes=int(metadata["total_episodes"]),
            size_mb=float(metadata.get("dataset_size", 0.0)),
            env_id=environment_of(metadata)[0],
            is_stand_in=stand_in_of(str(metadata.get("description", ""))) is not None,
        )
    except (DataError, KeyError, TypeError, ValueError) as error:
        return DatasetEntry(uri=uri, name=dataset_id, problem=str(error))
