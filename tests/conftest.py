"""What every test shares: a quiet, deterministic process, dataset folders of its own, one small dataset, one local Ray."""

from __future__ import annotations

import ctypes.util
import os

# Before anything imports torch, a simulator or Ray, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "disable")  # as the Makefile
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["RAY_AUTH_MODE"] = "disabled"  # Ray 2.60 turns token auth on for a local ray.init()
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else a warning from every worker
os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import random
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that draw (`needs_gl`) are skipped where nothing can."""
    if item.get_closest_marker("needs_gl") is not None:
        from wmrl_ray.envs.loading import find_opengl

        if (lacks := find_opengl()) is not None:
            install = "apt-get install libegl1 libopengl0 libgl1 libgl1-mesa-dri"
            pytest.skip(f"no OpenGL: {lacks}" if lacks == install else f"no OpenGL: {lacks}; {install}")


@pytest.fixture(scope="session", autouse=True)
def dataset_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's datasets or cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        patch.setenv("WMRL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state, alone or in the suite."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pointmaze_dataset(dataset_folders: None) -> str:
    """The Minari id of 6,000 steps of pointmaze-umaze, made once per session."""
    from wmrl_ray.data.makers import make_dataset

    return make_dataset("pointmaze-umaze", steps=6_000, seed=0, dataset_id="wmrl/test/pointmaze-umaze-v0")


@pytest.fixture(scope="module")
def local_ray(dataset_folders: None) -> Iterator[None]:
    """A Ray of this module's own: 8 logical CPUs, no dashboard, its files in a folder of a short name (sockets need that)."""
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="wmrl-ray-")
    ray.init(
        address="local",
        num_cpus=8,  # logical: fixtures of a module keep learners and runners while its tests start more
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,  # an exception in a worker still reaches the driver, with its traceback
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
