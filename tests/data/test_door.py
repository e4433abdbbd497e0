"""A value is what the file says, or the file is refused with the place: nulls, ends, flags, images, types, keys."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer

from tests.data.fakes import (
    assert_holds,
    flat_arrays,
    row_table,
    small_episode,
    step_table,
    transitions,
    write_hdf5,
    write_minari,
    write_parquet,
)
from tests.data.test_bad_input import refused
from wmrl_ray.data import arrow
from wmrl_ray.data.catalog import import_dataset
from wmrl_ray.data.datasets import Dataset, open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.exporting import export
from wmrl_ray.data.readers.values import reading

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


# -- nulls of tables ----------------------------------------------------------------------------------------------------------


def with_null(table: pa.Table, name: str, row: int, value: Any = None) -> pa.Table:
    column = [value if i == row else cell for i, cell in enumerate(table[name].to_pylist())]
    return table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))


@pytest.mark.parametrize("name", ["episode", "obs", "action", "reward", "terminated", "next_obs"])
@pytest.mark.parametrize("row", [2, 10])  # inside episode 1, and the last step of it
def test_a_null_is_refused_with_its_row_and_never_a_zero(home: Path, episodes: list[Episode], name: str, row: int) -> None:
    path = write_parquet(home / "t.parquet", with_null(step_table(episodes), name, row))
    fix = "a shift within each episode leaves it so" if name == "next_obs" else "a value is needed there"
    refused(path, f"t.parquet: {name} is null in row {row}; {fix}", home)


@pytest.mark.parametrize("name", ["obs", "action", "reward", "terminated"])
def test_a_null_in_a_step_of_one_row_per_observation_is_refused(home: Path, episodes: list[Episode], name: str) -> None:
    path = write_parquet(home / "t.parquet", with_null(row_table(episodes), name, 6))
    refused(path, f"t.parquet: {name} is null in row 6; a value is needed there", home)


def test_the_last_observation_of_an_episode_may_not_be_null(home: Path, episodes: list[Episode]) -> None:
    refused(write_parquet(home / "t.parquet", with_null(row_table(episodes), "obs", 4)), "obs is null in row 4", home)


@pytest.mark.parametrize("name", ["obs", "next_obs", "action"])
def test_a_null_number_inside_a_list_is_refused(home: Path, episodes: list[Episode], name: str) -> None:
    table = step_table(episodes)
    row = table[name].to_pylist()[3]
    path = write_parquet(home / "t.parquet", with_null(table, name, 3, [None, *row[1:]]))
    refused(path, f"a number of {name} is null in row 3; a value is needed", home)


def test_next_obs_of_another_width_is_not_broadcast(home: Path, episodes: list[Episode]) -> None:
    table = step_table(episodes)
    narrow = table.set_column(2, "next_obs", [[row[:1] for row in table["next_obs"].to_pylist()]])
    refused(write_parquet(home / "t.parquet", narrow), "next_obs has 1 numbers and obs 5; write all of it", home)


def test_next_obs_that_contradicts_the_following_row_is_refused(home: Path, episodes: list[Episode]) -> None:
    table = with_null(step_table(episodes), "next_obs", 5, [0.0] * 5)
    refused(write_parquet(home / "t.parquet", table), "next_obs in row 5 is not the obs of row 6.*sort the rows", home)


# -- where episodes end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_next", [True, False])
def test_ogbench_terminals_end_a_trajectory_and_masks_terminate(home: Path, with_next: bool) -> None:
    first, second = small_episode(0, 5), small_episode(1, 4)
    arrays = transitions([first, second])
    arrays["terminals"] = np.float32([0, 0, 0, 0, 1, 0, 0, 0, 1])
    arrays["masks"] = np.float32([1, 1, 0, 1, 1, 1, 1, 1, 0])  # a goal on the way, and one at the end
    del arrays["timeouts"]
    if not with_next:
        del arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "og.hdf5", arrays))
    expected = [
        Episode(first.obs[:4], first.action[:3], first.reward[:3], True),
        Episode(first.obs[3:], first.action[3:], first.reward[3:], False),
        Episode(second.obs, second.action, second.reward, True),
    ]
    if not with_next:  # only what follows inside the trajectory is known
        expected[1] = Episode(first.obs[3:5], first.action[3:4], first.reward[3:4], False)
        expected[2] = Episode(np.append(second.obs[:4], second.obs[3:4], 0), second.action, second.reward, True)
    assert_holds(dataset, expected)
    returns = [first.reward[:3].sum(dtype=np.float64), second.reward.sum(dtype=np.float64)]
    assert (dataset.card.return_mean, dataset.card.return_max) == (pytest.approx(np.mean(returns)), pytest.approx(max(returns)))
    assert dataset.card.terminal_obs_known is with_next
    assert any("1 episodes go on in a trajectory after its terminal" in note for note in dataset.card.notes)
    assert not any("no timeouts in the file" in note for note in dataset.card.notes)  # its terminals say as much


def test_masks_that_end_in_the_last_row_look_no_further(home: Path) -> None:
    episode = small_episode(0, 4)
    arrays = transitions([episode]) | {"terminals": np.zeros(4), "masks": np.float32([1, 1, 1, 0])}
    del arrays["timeouts"], arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "og.hdf5", arrays))
    assert_holds(dataset, [Episode(np.append(episode.obs[:4], episode.obs[3:4], 0), episode.action, episode.reward, True)])


def test_terminals_in_a_row_that_lead_to_no_timeout_are_trajectories_of_their_own(home: Path) -> None:
    episodes = [small_episode(0, 3, True), small_episode(1, 1, True), small_episode(2, 4, True), small_episode(3, 2)]
    arrays = transitions(episodes)
    del arrays["next_observations"]
    dataset = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    assert [len(e) for e in dataset] == [3, 1, 4, 1] and dataset.card.trajectories == ()


@pytest.mark.parametrize("with_next", [True, False])
def test_terminals_that_stay_set_until_the_timeout_do_not_distort_the_returns(home: Path, with_next: bool) -> None:
    obs = np.arange(24, dtype=np.float32)[:, None].repeat(2, 1) + 100 * (np.arange(24)[:, None] >= 12)
    terminal = np.isin(np.arange(24), [8, 9, 10, 11, 22, 23])  # as antmaze's goal
    timeout = np.isin(np.arange(24), [11, 23])
    arrays = {"observations": obs, "actions": obs[:, :1] * 0, "rewards": terminal - 1.0, "terminals": terminal}
    arrays |= {"timeouts": timeout} | ({"next_observations": obs + 1} if with_next else {})
    dataset = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    assert [len(e) for e in dataset] == [9, 1, 1, 1, 11, 1] and dataset.card.num_steps == 24
    assert all(e.terminated and e.obs.max() - e.obs.min() < 20 for e in dataset)  # none joins two trajectories
    assert dataset.card.trajectories == (2.0, -9.0, -8.0)
    assert (dataset.card.return_mean, dataset.card.return_max) == (-9.0, -8.0)
    for format, name in (("npz", "x.npz"), ("minari", "x-v0")):  # and a copy keeps them
        assert open_dataset(export(home / "d.hdf5", home / name, format)).card.return_mean == -9.0


def test_timeouts_that_are_one_row_late_join_no_episodes(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    arrays |= {"terminals": arrays["terminals"] & False, "timeouts": np.roll(arrays["terminals"] | arrays["timeouts"], 1)}
    assert_holds(open_dataset(write_hdf5(home / "a.hdf5", arrays | {"timeouts": np.roll(arrays["timeouts"], -1)})),
                 [Episode(e.obs, e.action, e.reward, False) for e in episodes])  # fmt: skip
    del arrays["next_observations"]
    refused(write_hdf5(home / "b.hdf5", arrays), "the flags are one row late; shift them", home / "none")


def test_next_observations_in_float16_cut_no_episode(home: Path) -> None:
    episode = small_episode(0, 6)
    arrays = transitions([episode])
    arrays["next_observations"] = arrays["next_observations"].astype(np.float16)
    (found,) = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    np.testing.assert_array_equal(found.obs[:-1], episode.obs[:-1])
    assert len(found) == 6


def test_truncations_of_an_npz_are_its_timeouts(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    arrays["truncations"] = arrays.pop("timeouts")
    del arrays["next_observations"]
    assert [len(e) for e in _saved(home, arrays)] == [3, 7, 5]
    np.savez(home / "both.npz", **arrays, timeouts=arrays["truncations"])
    refused(home / "both.npz", "has both 'timeouts' and 'truncations'", home / "none")


ENDS = ["dones", "done", "truncateds", "masks", "is_last", "discount", "episode_ends", "traj_id", "valids", "timeouts",
        "nonterminals", "isLast", "step_type"]  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("layout", ["hdf5", "npz", "d4rl npz", "table", "minari", "minari arrow"])
def test_a_key_that_may_say_where_episodes_end_is_never_ignored(
    home: Path, episodes: list[Episode], layout: str, name: str
) -> None:
    if layout in ("hdf5", "d4rl npz") and name in ("masks", "timeouts"):
        pytest.skip("used, see above")
    refused(_with_key(home, episodes, layout, name), f"has '{name}', which may say where episodes end.*known: ", home)


@pytest.mark.parametrize("layout", ["hdf5", "npz", "d4rl npz", "table", "minari", "minari arrow"])
def test_another_key_is_noted(home: Path, episodes: list[Episode], layout: str) -> None:
    dataset = open_dataset(_with_key(home, episodes, layout, "qpos"))
    assert_holds(dataset, episodes)
    assert dataset.card.notes == ("not read: qpos",)


def _with_key(home: Path, episodes: list[Episode], layout: str, name: str) -> Path | str:
    """A dataset that has `name` beside what it needs."""
    if layout == "hdf5":
        arrays = transitions(episodes)
        return write_hdf5(home / "d.hdf5", arrays | {name: np.zeros(len(arrays["rewards"])), "infos/goal": np.zeros(3)})
    if layout in ("npz", "d4rl npz"):
        arrays = (flat_arrays if layout == "npz" else transitions)(episodes)
        np.savez(home / "d.npz", **arrays, **{name: np.zeros(3)})
        return home / "d.npz"
    if layout == "table":
        table = row_table(episodes)
        return write_parquet(home / "t.parquet", table.append_column(name, pa.array([0] * len(table))))
    write_minari("x-v0", episodes, data_format="arrow" if layout.endswith("arrow") else "hdf5")
    data = home / "minari/x-v0/data"
    if layout == "minari":
        with h5py.File(data / "main_data.hdf5", "a") as file:
            file[f"episode_1/{name}"] = np.zeros(7)
    else:
        (path,) = (data / "1").glob("*.arrow")
        table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
        arrow_file = table.append_column(name, pa.array([0] * len(table)))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow_file.schema) as writer:
            writer.write_table(arrow_file)
    return "x-v0"


def _saved(home: Path, arrays: dict[str, np.ndarray]) -> Dataset:
    np.savez(home / "d.npz", **arrays)
    return open_dataset(home / "d.npz")


# -- Minari's flags and spaces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("axes", [1, 2])
def test_flags_and_rewards_of_any_number_type_and_a_trailing_axis_are_read(
    home: Path, episodes: list[Episode], data_format: str, kind: type, axes: int
) -> None:
    def shaped(values: Any) -> Any:
        return values if axes == 1 else values[:, None]

    _write_buffers(
        episodes, data_format, flags=lambda t: shaped(t.astype(kind)), rewards=lambda r: shaped(r.astype(np.float64))
    )
    assert_holds(open_dataset("x-v0"), episodes)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("value", [2, 0.5, np.nan])
def test_a_termination_of_another_value_is_neither_true_nor_false(
    home: Path, episodes: list[Episode], data_format: str, value: float
) -> None:
    _write_buffers(episodes, data_format, flags=lambda t: t * np.float64(value))
    refused("x-v0", rf"episode \d: terminations is {float(value)} in row \d; it must be 0 or 1", home)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_an_episode_that_goes_on_after_a_truncation_is_refused(home: Path, episodes: list[Episode], data_format: str) -> None:
    _write_buffers(episodes, data_format, truncations=lambda t: np.arange(len(t)) == 1)
    refused("x-v0", "episode 0 was truncated at step 1 but goes on; split", home)


def _write_buffers(
    episodes: list[Episode],
    data_format: str,
    flags: Callable[[np.ndarray], Any] = lambda t: t,
    truncations: Callable[[np.ndarray], Any] = lambda t: t,
    rewards: Callable[[np.ndarray], Any] = lambda r: r,
) -> None:
    buffers = []
    for number, episode in enumerate(episodes):
        is_last = np.arange(len(episode)) == len(episode) - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=episode.obs,
                actions=episode.action,
                rewards=rewards(episode.reward),
                terminations=flags(is_last & episode.terminated),
                truncations=truncations(is_last & (not episode.terminated)),
            )
        )
    spaces = {"observation_space": gym.spaces.Box(-np.inf, np.inf, (5,)), "action_space": gym.spaces.Box(-1, 1, (3,))}
    minari.create_dataset_from_buffers("x-v0", buffers, data_format=data_format, **spaces)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize(("key", "value"), [("total_episodes", 3), ("total_episodes", 5), ("total_steps", 16)])
def test_metadata_that_count_otherwise_are_refused(
    home: Path, episodes: list[Episode], data_format: str, key: str, value: int
) -> None:
    write_minari("x-v0", episodes, data_format=data_format)
    path = home / "minari/x-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused("x-v0", f"its metadata say {key} = {value}, its (files hold 4|episodes have 17)", home)


def test_returns_of_trajectories_that_are_incomplete_are_refused(home: Path, episodes: list[Episode]) -> None:
    write_minari("x-v0", episodes)
    path = home / "minari/x-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wmrl_trajectories": [1]}))
    refused("x-v0", "a number and two returns are needed", home)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("width", [4, 6])
def test_an_observation_of_another_width_than_its_space_is_refused(
    home: Path, episodes: list[Episode], data_format: str, width: int
) -> None:
    write_minari("x-v0", episodes, data_format=data_format)
    path = home / "minari/x-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    space = {"type": "Box", "dtype": "float32", "shape": [width], "low": [-9.0] * width, "high": [9.0] * width}
    path.write_text(json.dumps(metadata | {"observation_space": json.dumps(space)}))
    refused(
        "x-v0", rf"observations has (the shape \[5, 5\]|5 numbers).*by its space (\[5, {width}\] is|{width} are) needed", home
    )


def test_an_action_with_one_allowed_value_is_zero_here(home: Path, episodes: list[Episode]) -> None:
    raw = [Episode(e.obs, e.action * np.float32([1, 0, 2]) + np.float32([0, 3, 0]), e.reward, e.terminated) for e in episodes]
    write_minari("x-v0", raw, action_space=gym.spaces.Box(np.float32([-1, 3, -2]), np.float32([1, 3, 2])))
    dataset = open_dataset("x-v0")
    for found, expected in zip(dataset, episodes, strict=True):
        np.testing.assert_allclose(found.action, expected.action * [1, 0, 1], atol=1e-6)
    assert dataset.card.notes[-1] == "actions [1] can have one value only, which is 0 here"
    raw[1].action[2, 1] = 3.1
    write_minari("y-v0", raw, action_space=gym.spaces.Box(np.float32([-1, 3, -2]), np.float32([1, 3, 2])))
    with pytest.raises(DataError, match="in episode 1, step 2 is outside the action space"):
        open_dataset("y-v0")


# -- images -------------------------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, ...], steps: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames that look different in every direction, smooth enough for JPEG; actions; rewards."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (steps + 1, *(1 if size < 5 else 4 for size in shape)))
    for axis, size in enumerate(shape, start=1):
        low = low.repeat(size // low.shape[axis], axis)
    return low.astype(np.uint8), rng.uniform(-1, 1, (steps, 2)).astype(np.float32), np.ones(steps, np.float32)


def write_pictures(shape: tuple[int, ...], data_format: str, **more: Any) -> np.ndarray:
    frames, action, reward = pictures(shape)
    last = np.arange(3) == 2
    buffer = EpisodeBuffer(
        id=0, observations=frames, actions=action, rewards=reward, terminations=last, truncations=last & False
    )
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    minari.create_dataset_from_buffers(
        "x-v0", [buffer], observation_space=space, action_space=gym.spaces.Box(-1, 1, (2,)), data_format=data_format, **more
    )
    return frames


def test_images_in_another_order_than_their_space_are_refused(home: Path) -> None:
    write_pictures((32, 40, 3), "hdf5", jpeg_encoding=False)
    with h5py.File(home / "minari/x-v0/data/main_data.hdf5", "r+") as file:
        moved = np.moveaxis(file["episode_0/observations"][()], 3, 1)  # type: ignore[index]
        del file["episode_0/observations"]
        file["episode_0/observations"] = moved
    refused("x-v0", r"has the shape \[4, 3, 32, 40\]; by its space \[4, 32, 40, 3\] is needed", home)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize(
    ("shape", "order", "note"),
    [
        ((3, 32, 40), (0, 1, 2, 3), None),
        ((32, 40, 3), (0, 3, 1, 2), "images [32, 40, 3] became [3, 32, 40] (channels first)"),
        ((32, 40), None, "images [32, 40] became [1, 32, 40] (channels first)"),
    ],
)
@pytest.mark.parametrize("jpeg", [True, False])
def test_images_of_minari_are_read_in_any_layout(
    home: Path, data_format: str, shape: tuple[int, ...], order: tuple[int, ...] | None, note: str | None, jpeg: bool
) -> None:
    frames = write_pictures(shape, data_format, jpeg_encoding=jpeg)
    dataset = open_dataset("x-v0")
    expected = frames[:, None] if order is None else frames.transpose(order)
    assert dataset.obs.dtype == np.uint8 and dataset.obs.shape == expected.shape == (4, *dataset.card.obs_dim)  # type: ignore[misc]
    is_jpeg = jpeg and shape[0] == 32  # Minari stores [C, h, w] raw
    assert np.abs(dataset.obs.astype(int) - expected).mean() < (6 if is_jpeg else 1e-9)
    notes = [note] if note else []
    assert list(dataset.card.notes) == notes + ["images decoded from JPEG, as Minari stored them"] * is_jpeg


@pytest.mark.parametrize("ending", ["hdf5", "npz"])
@pytest.mark.parametrize(("shape", "order"), [((3, 16, 20), (0, 1, 2, 3)), ((16, 20, 3), (0, 3, 1, 2))])
def test_images_in_d4rls_layout_stay_images(home: Path, ending: str, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    frames, action, reward = pictures(shape, 6)
    arrays = {"observations": frames[:-1], "next_observations": frames[1:], "actions": action, "rewards": reward}
    arrays |= {"terminals": np.zeros(6, bool), "timeouts": np.arange(6) == 5}
    path = write_hdf5(home / "d.hdf5", arrays) if ending == "hdf5" else home / "d.npz"
    if ending == "npz":
        np.savez(path, **arrays)
    dataset = open_dataset(path)
    np.testing.assert_array_equal(dataset.obs, frames.transpose(order))
    assert dataset.obs.dtype == np.uint8


@pytest.mark.parametrize(
    ("observations", "match"),
    [
        (np.zeros((6, 16, 3, 16), np.uint8), r"\[16, 3, 16\] of uint8, in which no first or last axis is the shortest"),
        (np.zeros((6, 16, 16, 16), np.uint8), "no first or last axis is the shortest"),
        (np.zeros((6, 3, 16, 16, 3), np.uint8), r"\[3, 16, 16, 3\] of uint8; store images as \[channels, height, width\]"),
        (np.zeros((6, 2, 3), np.uint8), r"\[2, 3\] of uint8; store images"),
        (np.zeros((6, 768), np.uint8), "768 numbers of uint8, as images that were flattened"),
        (np.zeros((6, 32, 32, 3), np.float32), r"\[32, 32, 3\] of float32, as images of floats have; store them as uint8"),
    ],
)
def test_what_may_be_an_image_is_refused_where_it_is_not_certain(home: Path, observations: np.ndarray, match: str) -> None:
    arrays = {"observations": observations, "actions": np.zeros((6, 2)), "rewards": np.zeros(6), "terminals": np.arange(6) == 5}
    refused(write_hdf5(home / "d.hdf5", arrays), match, home)


def test_small_vectors_of_bytes_stay_vectors(home: Path) -> None:
    ram = np.arange(6 * 128, dtype=np.uint8).reshape(6, 128)
    arrays = {"observations": ram, "actions": np.zeros((6, 2)), "rewards": np.zeros(6), "terminals": np.arange(6) == 5}
    (episode,) = open_dataset(write_hdf5(home / "d.hdf5", arrays))
    np.testing.assert_array_equal(episode.obs, np.append(ram, ram[-1:], 0).astype(np.float32))


@pytest.mark.slow
def test_more_than_2_to_the_31_numbers_fit_into_one_batch_of_the_cache(tmp_path: Path) -> None:
    rows, width = 59_000, 9 * 64 * 64
    images = np.zeros((rows, width), np.uint8)
    images[-1] = 7
    arrow.write_ipc(tmp_path / "data.arrow", {"obs": images})
    found = arrow.locate(tmp_path / "data.arrow")["obs"]
    assert found["shape"] == [rows, width]
    assert (np.memmap(tmp_path / "data.arrow", np.uint8, "r", found["offset"], (rows, width))[-1] == 7).all()


# -- types --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.astype(str).astype("S8"), "holds text; an array of numbers is needed"),
        (lambda v: v.astype(np.complex64), "holds complex numbers"),
        (lambda v: np.zeros(len(v), [("x", "f4"), ("y", "f4")]), "holds records"),
        (lambda v: np.float32(3), "is a single value; one row for each step"),
        (lambda v: v.reshape(len(v), -1)[:, :0], r"has the shape \[17, 0\]"),
        (lambda v: {"a": v, "b": v}, "is a group, not an array"),
        (None, "holds text or lists of different lengths"),
    ],
)
def test_an_array_of_another_kind_is_named(
    home: Path, episodes: list[Episode], name: str, change: Callable[[Any], Any] | None, match: str
) -> None:
    arrays: dict[str, Any] = transitions(episodes)
    values = arrays.pop(name)
    path = write_hdf5(home / "d.hdf5", arrays)
    with h5py.File(path, "a") as file:
        changed = change(values) if change is not None else None
        if change is None:
            ragged = file.create_dataset(name, (len(values),), h5py.vlen_dtype(np.float32))
            for row in range(len(values)):
                ragged[row] = np.zeros(1 + row % 2, np.float32)
        elif isinstance(changed, dict):
            for key, part in changed.items():
                file[f"{name}/{key}"] = part
        else:
            file[name] = changed
    refused(path, f"d.hdf5: {name} {match}", home)


def test_a_number_that_float32_cannot_hold_is_named(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    arrays["rewards"] = arrays["rewards"].astype(np.float64)
    arrays["rewards"][3] = -1e300
    refused(write_hdf5(home / "d.hdf5", arrays), r"rewards is -1e\+300 in row 3, which float32 cannot hold", home)


def test_discrete_actions_are_not_told_to_rescale(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    arrays["actions"] = np.arange(17) % 4
    refused(write_hdf5(home / "d.hdf5", arrays), r"actions holds whole numbers from 0 to 3 \(int64\): discrete actions", home)
    table = step_table(episodes)
    index = table.column_names.index("action")
    for column in ([i % 4 for i in range(17)], [[i % 4] for i in range(17)]):
        refused(write_parquet(home / "t.parquet", table.set_column(index, "action", pa.array(column))), "iscrete actions", home)
    arrays["actions"] = np.arange(17) % 3 - 1  # {-1, 0, 1} is a Box's
    assert sorted(set(open_dataset(write_hdf5(home / "e.hdf5", arrays)).action.ravel())) == [-1, 0, 1]


def test_the_boundary_makes_one_line_of_any_exception() -> None:
    for error, match in (
        (ZeroDivisionError("odd\nsecond line"), "cannot read f.npz: obs: odd; it is damaged"),
        (AssertionError(), "cannot read f.npz: obs: AssertionError; it is damaged"),
        (MemoryError(), "cannot read f.npz: obs: it needs more memory than there is"),
        (io.UnsupportedOperation("read"), "cannot read f.npz: obs: read; it is damaged"),
    ):
        with pytest.raises(DataError, match=match) as caught, reading("f.npz"), reading("f.npz: obs"):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt), reading("f.npz"):
        raise KeyboardInterrupt


def test_an_import_says_the_same_of_other_formats(home: Path, episodes: list[Episode]) -> None:
    path = write_parquet(home / "t.parquet", with_null(step_table(episodes), "reward", 2))
    with pytest.raises(DataError, match="reward is null in row 2"):
        import_dataset(path, "x-v0")
    assert not (home / "minari/x-v0").exists()
