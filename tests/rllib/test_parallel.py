"""Shards over actors."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import pytest

from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.makers import make_dataset
from wmrl_ray.rllib.parallel import ray_map_shards

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def work(spec: int) -> tuple[int, int]:
    if spec == 13:
        raise DataError("shard 13 cannot be made")
    return spec * spec, os.getpid()


def test_results_come_in_order_from_several_processes_with_progress() -> None:
    seen: list[tuple[int, int]] = []
    results = list(ray_map_shards(work, range(6), num_workers=2, progress=lambda *done: seen.append(done)))
    assert [square for square, _ in results] == [0, 1, 4, 9, 16, 25]
    assert len({pid for _, pid in results}) == 2
    assert os.getpid() not in {pid for _, pid in results}
    assert seen == [(i, 6) for i in range(1, 7)]


def test_no_shards_are_no_work() -> None:
    assert list(ray_map_shards(work, [])) == []


def test_a_shards_error_reaches_the_caller_as_itself() -> None:
    with pytest.raises(DataError, match="shard 13 cannot be made"):
        list(ray_map_shards(work, [12, 13], num_workers=1))


def test_a_dataset_made_over_actors_is_the_one_made_in_this_process() -> None:
    arguments: dict[str, Any] = {"steps": 1500, "seed": 3, "reference_episodes": 2}
    two_workers = functools.partial(ray_map_shards, num_workers=2)
    alone = open_dataset(make_dataset("pointmaze-umaze", dataset_id="wmrl/test/alone-v0", **arguments))
    together = open_dataset(
        make_dataset("pointmaze-umaze", dataset_id="wmrl/test/together-v0", map_shards=two_workers, **arguments)
    )
    assert together.card.sha256 == alone.card.sha256
    np.testing.assert_array_equal(together.obs, alone.obs)
