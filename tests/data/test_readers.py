"""Every format gives the same episodes, whoever wrote the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

from tests.data.fakes import (
    assert_holds,
    minari_buffer,
    row_table,
    small_episode,
    step_table,
    transitions,
    write_arrow,
    write_hdf5,
    write_minari,
    write_parquet,
)
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError, Episode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_what_minari_wrote_is_read_exactly(home: Path, episodes: list[Episode], data_format: str) -> None:
    write_minari("group/small-v0", episodes, data_format=data_format, ref_min_score=1.0, ref_max_score=3.0, description="words")
    by_id = open_dataset("group/small-v0")
    assert_holds(by_id, episodes)
    for uri in ("minari://group/small-v0", home / "minari/group/small-v0", f"file://{home}/minari/group/small-v0"):
        assert open_dataset(uri).card == by_id.card
    card = by_id.card
    assert (card.uri, card.name, card.description) == ("minari://group/small-v0", "group/small-v0", "words")
    assert (card.num_steps, card.num_episodes, card.num_terminated) == (17, 4, 2)
    assert (card.episode_length_min, card.episode_length_max, card.obs_dim, card.action_dim) == (1, 7, 5, 3)


def test_minari_agrees_with_us_about_its_own_dataset(home: Path, episodes: list[Episode]) -> None:
    write_minari("small-v0", episodes)
    ours, theirs = open_dataset("small-v0"), minari.load_dataset("small-v0")
    for mine, other in zip(ours, theirs.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(mine.obs, other.observations)
        np.testing.assert_array_equal(mine.action, other.actions)
        assert mine.terminated == bool(other.terminations[-1])


def test_the_environment_and_scores_of_a_minari_dataset_are_on_its_card(home: Path) -> None:
    env = gym.make("Pendulum-v1")
    episode = Episode(np.zeros((3, 3), np.float32), np.zeros((2, 1), np.float32), np.ones(2, np.float32), False)
    write_minari("p-v0", [episode], action_space=gym.spaces.Box(-2, 2, (1,)), env="Pendulum-v1", eval_env="Pendulum-v1",
                 ref_min_score=-100.0, ref_max_score=-50.0)  # fmt: skip
    card = open_dataset("p-v0").card
    assert card.env_id == "Pendulum-v1" and env.spec is not None
    assert gym.envs.registration.EnvSpec.from_json(str(card.env_spec)).id == "Pendulum-v1"
    assert card.normalized_score(-100.0) == 0.0 and card.normalized_score(-50.0) == 100.0


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_a_dict_observation_is_joined_as_gymnasium_flattens_it(home: Path, data_format: str) -> None:
    space = gym.spaces.Dict(
        observation=gym.spaces.Box(-9, 9, (3,)),
        goals=gym.spaces.Dict(b=gym.spaces.Box(-9, 9, (1,)), a=gym.spaces.Box(-9, 9, (2,))),
    )
    rows = [space.sample() for _ in range(5)]
    obs = {
        "observation": np.stack([row["observation"] for row in rows]),
        "goals": {key: np.stack([row["goals"][key] for row in rows]) for key in ("a", "b")},
    }
    buffer = minari_buffer(0, small_episode(0, 4), obs)
    minari.create_dataset_from_buffers(
        "d-v0", [buffer], observation_space=space, action_space=gym.spaces.Box(-1, 1, (3,)), data_format=data_format
    )
    dataset = open_dataset("d-v0")
    np.testing.assert_array_equal(dataset.obs, np.stack([gym.spaces.flatten(space, row) for row in rows]))
    assert dataset.card.notes == ("Dict observation joined as observation[3], goals.b[1], goals.a[2]",)


def test_actions_of_another_box_are_rescaled_and_the_card_says_so(home: Path, episodes: list[Episode]) -> None:
    low, high = np.array([-2, 0, -1], np.float32), np.array([2, 4, 1], np.float32)
    raw = [dataclasses.replace(e, action=low + (e.action + 1) / 2 * (high - low)) for e in episodes]
    write_minari("box-v0", raw, action_space=gym.spaces.Box(low, high))
    dataset = open_dataset("box-v0")
    for found, expected in zip(dataset, episodes, strict=True):
        np.testing.assert_allclose(found.action, expected.action, atol=1e-6)
    assert np.abs(dataset.action).max() <= 1 and not dataset.action[dataset.episode_starts[1:] - 1].any()
    assert "actions rescaled to [-1, 1] from [-2.0, 0.0, -1.0] to [2.0, 4.0, 1.0]" in dataset.card.notes


def test_an_action_outside_by_rounding_only_is_clipped(home: Path, episodes: list[Episode]) -> None:
    episodes[0].action[1, 0] = 1 + 5e-6
    write_minari("edge-v0", episodes)
    assert open_dataset("edge-v0").action.max() == 1.0


def test_d4rl_with_next_observations_keeps_every_transition(home: Path, episodes: list[Episode]) -> None:
    path = write_hdf5(home / "d.hdf5", transitions(episodes))
    assert_holds(open_dataset(path), episodes)
    assert_holds(open_dataset(f"hdf5://{path}"), episodes)
    assert open_dataset(path).card.notes == ()


def test_d4rl_without_next_observations_never_takes_the_next_episodes_start(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    del arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    # Truncated: the last transition goes (episode 2 had no other). Terminated: kept for its reward.
    expected = [
        Episode(episodes[0].obs[:4], episodes[0].action[:3], episodes[0].reward[:3], False),
        Episode(np.append(episodes[1].obs[:7], episodes[1].obs[6:7], 0), episodes[1].action, episodes[1].reward, True),
        Episode(np.append(episodes[3].obs[:5], episodes[3].obs[4:5], 0), episodes[3].action, episodes[3].reward, True),
    ]
    assert_holds(dataset, expected)
    assert any("last transition of 2 truncated episodes is dropped" in note for note in dataset.card.notes)
    assert any("last observation of 2 terminated episodes repeats" in note for note in dataset.card.notes)
    assert any("1 episodes of one transition dropped" in note for note in dataset.card.notes)


def test_d4rl_data_that_stop_inside_an_episode_end_it_there(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes[:1])
    arrays["timeouts"][:] = False
    del arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "d.h5", arrays))
    assert_holds(dataset, [Episode(episodes[0].obs[:4], episodes[0].action[:3], episodes[0].reward[:3], False)])


def test_d4rl_without_timeouts_says_what_that_means(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    del arrays["timeouts"], arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    assert [len(e) for e in dataset] == [11, 6]
    assert any("no timeouts" in note for note in dataset.card.notes)


@pytest.mark.parametrize("timeouts", ["absent", "all but one"])
def test_d4rl_ends_an_episode_where_the_next_observation_is_not_the_following_one(
    home: Path, episodes: list[Episode], timeouts: str
) -> None:
    arrays = transitions(episodes)
    if timeouts == "absent":
        del arrays["timeouts"]
    else:
        arrays["timeouts"][3] = False
    dataset = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    assert_holds(dataset, episodes)
    (note,) = dataset.card.notes
    assert note.startswith(f"{2 if timeouts == 'absent' else 1} episodes end where next_observations is not the following")


def test_npz_is_read_in_d4rls_layout_too(home: Path, episodes: list[Episode]) -> None:
    np.savez_compressed(home / "d.npz", **transitions(episodes))
    assert_holds(open_dataset(home / "d.npz"), episodes)


@pytest.mark.parametrize("table", [step_table, row_table], ids=["row per step", "row per observation"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", "stream.arrow", ".feather"])
def test_tables_are_read_in_both_layouts(home: Path, episodes: list[Episode], table, suffix: str) -> None:
    path = home / f"t{suffix}"
    if suffix == ".parquet":
        write_parquet(path, table(episodes))
    else:
        write_arrow(path, table(episodes), stream=suffix.startswith("stream"))
    assert_holds(open_dataset(path), episodes)


def test_a_folder_of_tables_is_one_dataset_even_if_the_parts_number_episodes_alike(home: Path, episodes: list[Episode]) -> None:
    write_parquet(home / "folder/part-0.parquet", step_table(episodes[:1]))
    write_arrow(home / "folder/part-1.arrow", step_table(episodes[1:]))
    (home / "folder/README.txt").write_text("not data")
    dataset = open_dataset(home / "folder")
    assert_holds(dataset, episodes)
    assert dataset.card.name == "folder"


def test_labels_of_episodes_may_be_words(home: Path, episodes: list[Episode]) -> None:
    assert_holds(open_dataset(write_parquet(home / "t.parquet", step_table(episodes, ["b", "a", "d", "c"]))), episodes)


def test_every_format_of_the_same_episodes_has_the_same_sha256(home: Path, episodes: list[Episode]) -> None:
    write_minari("small-v0", episodes)
    np.savez(home / "a.npz", **transitions(episodes))
    uris = [
        "small-v0",
        home / "a.npz",
        write_hdf5(home / "a.hdf5", transitions(episodes)),
        write_parquet(home / "a.parquet", step_table(episodes)),
        write_arrow(home / "a.arrow", row_table(episodes)),
    ]
    cards = [open_dataset(uri).card for uri in uris]
    assert len({card.sha256 for card in cards}) == 1
    assert len({card.source_sha256 for card in cards}) == len(uris)


def test_progress_counts_up_to_all(home: Path, episodes: list[Episode]) -> None:
    write_minari("small-v0", episodes)
    seen: list[tuple[int, int]] = []
    open_dataset("small-v0", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


def test_the_statistics_on_the_card_are_those_of_the_episodes(home: Path, episodes: list[Episode]) -> None:
    card = open_dataset(write_hdf5(home / "d.hdf5", transitions(episodes))).card
    obs = np.concatenate([e.obs for e in episodes]).astype(np.float64)
    np.testing.assert_allclose(card.obs_mean, obs.mean(0), atol=1e-6)
    np.testing.assert_allclose(card.obs_std, obs.std(0), atol=1e-6)
    returns = [e.reward.astype(np.float64).sum() for e in episodes]
    assert (card.return_mean, card.return_max) == (pytest.approx(np.mean(returns)), pytest.approx(max(returns)))
    with pytest.raises(DataError, match="has no reference scores"):
        card.normalized_score(1.0)


def test_an_attribute_of_hdf5_that_is_not_ours_is_ignored(home: Path, episodes: list[Episode]) -> None:
    path = write_hdf5(home / "d.hdf5", transitions(episodes))
    with h5py.File(path, "a") as file:
        file.attrs["creator"] = "someone"
        file["infos/goal"] = np.zeros((3, 2))
    assert_holds(open_dataset(path), episodes)
