"""The picture of visited states, scores and stand-ins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wmrl_ray.data.card import plot_states
from wmrl_ray.data.datasets import Dataset, dataset_from_episodes
from wmrl_ray.data.episode import DataError, Episode


def path_dataset(points: list[tuple[float, float]], **about: object) -> Dataset:
    obs = np.array(points, np.float32)
    steps = len(obs) - 1
    episode = Episode(obs, np.zeros((steps, 1), np.float32), np.zeros(steps, np.float32), False)
    return dataset_from_episodes([episode], name="path", **about)  # type: ignore[arg-type]


def test_the_picture_counts_every_observation_where_it_was(tmp_path: Path) -> None:
    dataset = path_dataset([(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.9, 0.9)])
    counts = plot_states(dataset, tmp_path / "s.png", extent=(0, 1, 0, 1), bins=2)
    np.testing.assert_array_equal(counts, [[1, 1], [0, 2]])  # [y, x]
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_walls_and_goal_are_drawn(tmp_path: Path) -> None:
    from matplotlib.image import imread

    dataset = path_dataset([(0.1, 0.1), (0.2, 0.1)])
    walls = np.array([[True, False], [False, False]])  # top left
    for name, drawn in (("bare.png", None), ("walls.png", walls)):
        plot_states(dataset, tmp_path / name, walls=drawn, extent=(0, 1, 0, 1), goal=(0.5, 0.5) if drawn is not None else None)
    bare, with_walls = (imread(tmp_path / name) for name in ("bare.png", "walls.png"))
    is_grey = np.isclose(with_walls[..., :3], 0.55, atol=0.02).all(-1)
    assert is_grey.sum() > 5000 > np.isclose(bare[..., :3], 0.55, atol=0.02).all(-1).sum()
    rows, columns = np.nonzero(is_grey)
    assert rows.mean() < with_walls.shape[0] / 2 and columns.mean() < with_walls.shape[1] / 2
    is_red = (with_walls[..., 0] > 0.8) & (with_walls[..., 1] < 0.2) & (with_walls[..., 2] < 0.2)
    assert is_red.sum() > 20


def test_states_that_never_move_can_be_drawn(tmp_path: Path) -> None:
    assert plot_states(path_dataset([(1, 2), (1, 2)]), tmp_path / "s.svg").sum() == 2


def test_a_picture_needs_two_dimensions_and_a_folder_that_can_be_written(tmp_path: Path) -> None:
    episode = Episode(np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), False)
    with pytest.raises(DataError, match="needs 2 observation dimensions, 'line' has 1"):
        plot_states(dataset_from_episodes([episode], name="line"), tmp_path / "s.png")
    with pytest.raises(ValueError, match="not supported"):
        plot_states(path_dataset([(0, 0), (1, 1)]), tmp_path / "s.nothing")
    assert not list(tmp_path.iterdir())


def test_a_score_is_0_at_the_reference_minimum_and_100_at_the_maximum() -> None:
    dataset = path_dataset([(0, 0), (1, 1)], ref_min_score=-10.0, ref_max_score=30.0)
    assert [dataset.normalized_score(x) for x in (-10, 30, 0, 50)] == [0, 100, 25, 150]


@pytest.mark.parametrize(("low", "high"), [(None, None), (1.0, None), (None, 1.0), (2.0, 2.0)])
def test_without_two_different_references_there_is_no_score(low: float | None, high: float | None) -> None:
    dataset = path_dataset([(0, 0), (1, 1)], ref_min_score=low, ref_max_score=high)
    assert not dataset.card.has_scale
    with pytest.raises(DataError, match=rf"'path' has no reference scores.*ref_min_score = {low}, ref_max_score = {high}"):
        dataset.normalized_score(1.0)
    assert path_dataset([(0, 0), (1, 1)], ref_min_score=0.0, ref_max_score=-1.0).card.has_scale


def test_only_a_description_that_says_so_is_a_stand_in() -> None:
    assert path_dataset([(0, 0), (1, 1)], description="A set. STAND-IN: no").card.stand_in is None
    card = path_dataset([(0, 0), (1, 1)], description="STAND-IN: v1.5 of D4RL; not\nD4RL. Made by 2 walks.").card
    assert card.stand_in == "v1.5 of D4RL; not D4RL."


def test_an_episode_is_taken_out_by_number_and_refuses_others() -> None:
    dataset = path_dataset([(0, 0), (1, 1)])
    assert len(dataset.episode(0)) == 1
    for number in (-1, 1):
        with pytest.raises(IndexError, match=f"episode {number} of dataset 'path'; it has episodes 0 to 0"):
            dataset.episode(number)
