"""A home for datasets that is empty for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.fakes import small_episode
from wmrl_ray.data.episode import Episode


@pytest.fixture
def episodes() -> list[Episode]:
    """Four episodes of different lengths; the second and the last terminated, the third has one step."""
    return [small_episode(0, 4), small_episode(1, 7, True), small_episode(2, 1), small_episode(3, 5, True)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's folder and the cache, both empty, under this folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("WMRL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path
