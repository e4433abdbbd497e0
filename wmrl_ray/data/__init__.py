"""Episodes, datasets and replay. Names load on first use, so that importing this package costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmrl_ray.data.card import DatasetCard, Origin, plot_images, plot_states
    from wmrl_ray.data.catalog import DatasetEntry, Verification, describe, import_dataset, list_datasets, verify
    from wmrl_ray.data.datasets import Dataset, check_compatible, dataset_from_episodes, open_dataset
    from wmrl_ray.data.episode import DataError, Episode
    from wmrl_ray.data.exporting import export
    from wmrl_ray.data.replay import Replay

_HOMES = {
    "card": ("DatasetCard", "Origin", "plot_images", "plot_states"),
    "catalog": ("DatasetEntry", "Verification", "describe", "import_dataset", "list_datasets", "verify"),
    "datasets": ("Dataset", "check_compatible", "dataset_from_episodes", "open_dataset"),
    "episode": ("DataError", "Episode"),
    "exporting": ("export",),
    "replay": ("Replay",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DataError",
    "Dataset",
    "DatasetCard",
    "DatasetEntry",
    "Episode",
    "Origin",
    "Replay",
    "Verification",
    "check_compatible",
    "dataset_from_episodes",
    "describe",
    "export",
    "import_dataset",
    "list_datasets",
    "open_dataset",
    "plot_images",
    "plot_states",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
