from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from tests.rllib import fakes


@pytest.fixture(scope="session", autouse=True)
def rllib_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RLlib makes a folder for every algorithm that is built; not in the user's home."""
    from ray.rllib.algorithms import algorithm
    from ray.tune.trainable import trainable

    folder = tmp_path_factory.mktemp("ray_results")
    with pytest.MonkeyPatch.context() as patch:
        for module in (algorithm, trainable):
            patch.setattr(module, "DEFAULT_STORAGE_PATH", str(folder), raising=False)
        yield folder


@pytest.fixture(scope="session")
def plane_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fakes.write_plane_dataset(tmp_path_factory.mktemp("plane") / "plane.npz"))


@pytest.fixture
def iql(plane_dataset: str) -> Any:
    return fakes.small_iql(plane_dataset)


@pytest.fixture
def bc(plane_dataset: str) -> Any:
    return fakes.small_bc(plane_dataset)
