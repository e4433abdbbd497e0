from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray")

from tests.rllib import fakes


@pytest.fixture(scope="session")
def plane_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(fakes.write_plane_dataset(tmp_path_factory.mktemp("plane") / "plane.npz"))


@pytest.fixture
def iql(plane_dataset: str) -> Any:
    return fakes.small_iql(plane_dataset)


@pytest.fixture
def bc(plane_dataset: str) -> Any:
    return fakes.small_bc(plane_dataset)
