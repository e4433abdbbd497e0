"""Where the data lack what a terminal step led to, every window says so, whatever the dataset was turned into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data.fakes import small_episode, transitions, write_hdf5
from wmrl_ray.data.datasets import Dataset, open_dataset
from wmrl_ray.data.episode import Episode
from wmrl_ray.data.exporting import export
from wmrl_ray.data.replay import DemonstrationReplay, Replay
from wmrl_ray.intents import augment

EXPORTS = {"npz": "out.npz", "hdf5": "out.hdf5", "parquet": "out.parquet", "arrow": "out.arrow", "minari": "out-v0"}


@pytest.fixture
def path(home: Path, episodes: list[Episode]) -> Path:
    """D4RL's layout without next_observations."""
    arrays = transitions(episodes)
    del arrays["next_observations"]
    return write_hdf5(home / "d.hdf5", arrays)


@pytest.fixture
def dataset(path: Path) -> Dataset:
    return open_dataset(path)


def test_data_that_repeat_an_observation_say_so_and_others_do_not(dataset: Dataset, home: Path) -> None:
    assert not dataset.card.terminal_obs_known
    complete = transitions([small_episode(0, 4), small_episode(1, 7, True)])
    assert open_dataset(write_hdf5(home / "complete.hdf5", complete)).card.terminal_obs_known
    del complete["next_observations"]
    complete["terminals"][:] = False
    assert open_dataset(write_hdf5(home / "truncated.hdf5", complete)).card.terminal_obs_known  # the last steps are dropped


@pytest.mark.parametrize("format", list(EXPORTS))
def test_an_export_says_so_too(path: Path, home: Path, format: str) -> None:
    assert not open_dataset(export(path, home / EXPORTS[format], format)).card.terminal_obs_known


def test_a_dataset_with_vectors_behind_it_says_so_too(path: Path, home: Path) -> None:
    minari_path = export(path, home / "minari/set-v0", "minari")
    made = open_dataset(augment(str(minari_path), 3, env="wmrl/PointMaze-UMaze-v0"))
    assert made.card.obs_dim == 8 and not made.card.terminal_obs_known


def test_windows_know_all_results_but_those_of_the_datasets_terminal_steps(dataset: Dataset) -> None:
    batch = Replay(dataset).sample(200, 3)
    assert batch.next_obs_known is not None and batch.terminated.any()
    assert torch.equal(batch.next_obs_known, ~batch.terminated)
    repeats = (batch.obs[:, 1:] == batch.obs[:, :-1]).all(-1) & batch.valid
    assert torch.equal(batch.observed, batch.valid & ~repeats)  # time counts up in these observations: none repeats by itself


def test_episodes_that_were_added_have_their_terminal_observations(dataset: Dataset) -> None:
    replay = Replay(dataset)
    replay.add(small_episode(9, 12, terminated=True))
    batch = replay.sample(400, 3)
    is_online = batch.obs[:, 0, 0] == 9
    assert batch.next_obs_known is not None
    assert batch.next_obs_known[is_online].all() and batch.terminated[is_online].any()
    assert torch.equal(batch.next_obs_known[~is_online], ~batch.terminated[~is_online])


def test_demonstrations_and_own_episodes_each_know_their_own(dataset: Dataset) -> None:
    own = Replay(obs_dim=5, action_dim=3)
    own.add(small_episode(9, 12, terminated=True))
    batch = DemonstrationReplay(Replay(dataset), own).sample(100, 3)
    assert batch.next_obs_known is not None
    assert batch.next_obs_known[:100].all() and batch.terminated[:100].any()
    assert torch.equal(batch.next_obs_known[100:], ~batch.terminated[100:])


def test_data_with_all_results_have_no_mask(home: Path, episodes: list[Episode]) -> None:
    complete = open_dataset(write_hdf5(home / "complete.hdf5", transitions(episodes)))
    assert Replay(complete).sample(10, 3).next_obs_known is None
