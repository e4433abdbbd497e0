"""Each kind of bad input is one clear line that names the value and the fix, and nothing is left half-written."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pytest

from tests.data.fakes import (
    flat_arrays,
    names_under,
    row_table,
    small_episode,
    step_table,
    transitions,
    write_arrow,
    write_hdf5,
    write_minari,
    write_parquet,
)
from wmrl_ray.config import ConfigError
from wmrl_ray.data import arrow as arrow_module
from wmrl_ray.data.datasets import check_compatible, dataset_from_episodes, open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.exporting import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


def refused(uri: Any, match: str, home: Path) -> None:
    """Opening raises one DataError of one line, and leaves no copy in the cache."""
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(uri)
    assert "\n" not in str(caught.value)
    assert not any((home / "cache" / "datasets").glob("*")), "a half-written or wrong copy is in the cache"


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("nowhere.hdf5", r"'nowhere.hdf5' does not exist; give an existing file"),
        ("/nowhere/at/all", r"does not exist; give an existing file"),
        ("wmrl/pointmaze/umaz-v0", r"not on this machine \(did you mean 'wmrl/pointmaze/umaze-v0'\?\).*wmrl data make"),
        ("minari://no version", "'no version' is not a Minari id"),
        ("ftp://host/x.parquet", "unknown scheme 'ftp'; allowed: minari://ID.* s3://BUCKET/PATH"),
    ],
)
def test_a_missing_file_or_id_is_named(home: Path, episodes: list[Episode], uri: str, match: str) -> None:
    write_minari("wmrl/pointmaze/umaze-v0", episodes)
    refused(uri, match, home)


def test_an_unknown_format_is_named_with_those_allowed(home: Path) -> None:
    (home / "a.csv").write_text("1,2")
    refused(home / "a.csv", r"unknown format '.csv'; allowed: .*\*.npz", home)
    (home / "folder").mkdir()
    refused(home / "folder", "holds no dataset", home)


WRITERS = {
    "d.hdf5": lambda path, episodes: write_hdf5(path, transitions(episodes)),
    "d.npz": lambda path, episodes: np.savez(path, **transitions(episodes)),
    "d.parquet": lambda path, episodes: write_parquet(path, step_table(episodes)),
    "d.arrow": lambda path, episodes: write_arrow(path, step_table(episodes)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(home: Path, name: str, share: float) -> None:
    path = home / name
    WRITERS[name](path, [small_episode(i, 40) for i in range(30)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, f"cannot read .*{name}.*(damaged|restore it)", home)


@pytest.mark.parametrize("name", WRITERS)
def test_another_format_under_a_known_ending_is_refused(home: Path, name: str) -> None:
    (home / name).write_bytes(b"neither this nor that" * 100)
    refused(home / name, f"cannot read .*{name}", home)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_a_damaged_minari_dataset_is_refused(home: Path, episodes: list[Episode], data_format: str) -> None:
    write_minari("x-v0", episodes, data_format=data_format)
    data = home / "minari/x-v0/data"
    victim = data / ("main_data.hdf5" if data_format == "hdf5" else f"2/part-0.{data_format}")
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    refused("x-v0", f"cannot read .*{victim.name}", home)
    victim.unlink()
    refused("x-v0", "does not exist; check the path|has no .* file", home)


def test_minari_metadata_that_are_not_json_are_refused(home: Path, episodes: list[Episode]) -> None:
    write_minari("x-v0", episodes)
    (home / "minari/x-v0/data/metadata.json").write_text('{"total_episodes": 4')
    refused("x-v0", "metadata.json as Minari metadata", home)


@pytest.mark.parametrize(("field", "value"), [("obs", np.nan), ("obs", np.inf), ("reward", -np.inf), ("action", np.nan)])
@pytest.mark.parametrize("name", WRITERS)
def test_a_number_that_is_not_finite_is_refused_with_its_place(
    home: Path, episodes: list[Episode], name: str, field: str, value: float
) -> None:
    getattr(episodes[1], field).reshape(7 + (field == "obs"), -1)[3, 0] = value
    WRITERS[name](home / name, episodes)
    refused(home / name, f"{field} is not finite in episode 1, step 3 .*; drop or repair", home)


@pytest.mark.parametrize("name", WRITERS)
def test_an_action_outside_the_space_is_refused(home: Path, episodes: list[Episode], name: str) -> None:
    episodes[1].action[2, 1] = -1.001
    WRITERS[name](home / name, episodes)
    refused(home / name, r"action -1.001 in episode 1, step 2 is outside \[-1, 1\]", home)


def test_an_action_outside_a_minari_space_is_refused(home: Path, episodes: list[Episode]) -> None:
    episodes[1].action[2, 1] = 1.7
    write_minari("x-v0", episodes, action_space=gym.spaces.Box(-1, 1.5, (3,)))
    refused("x-v0", "in episode 1, step 2 is outside the action space", home)


@pytest.mark.parametrize(
    ("space", "match"),
    [
        (gym.spaces.Discrete(3), "action space is Discrete; only a Box"),
        (gym.spaces.Box(-np.inf, np.inf, (3,)), "has no finite bounds"),
    ],
)
def test_an_action_space_that_cannot_be_scaled_is_refused(
    home: Path, episodes: list[Episode], space: gym.Space, match: str
) -> None:
    if isinstance(space, gym.spaces.Discrete):
        episodes = [dataclasses.replace(e, action=np.zeros(len(e), np.int64)) for e in episodes]
        episodes[0] = dataclasses.replace(episodes[0], action=episodes[0].action)
        from minari import create_dataset_from_buffers

        from tests.data.fakes import minari_buffer

        create_dataset_from_buffers(
            "x-v0",
            [minari_buffer(i, e) for i, e in enumerate(episodes)],
            observation_space=gym.spaces.Box(-np.inf, np.inf, (5,)),
            action_space=space,
        )
    else:
        write_minari("x-v0", episodes, action_space=space)
    refused("x-v0", match, home)


def test_images_beside_other_observations_are_refused_in_words(home: Path) -> None:
    from minari import create_dataset_from_buffers

    from tests.data.fakes import minari_buffer

    eye, arm = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8), gym.spaces.Box(-1, 1, (2,))
    obs = {"eye": np.zeros((3, 3, 8, 8), np.uint8), "arm": np.zeros((3, 2), np.float32)}
    create_dataset_from_buffers(
        "x-v0",
        [minari_buffer(0, small_episode(0, 2), obs)],
        observation_space=gym.spaces.Dict({"eye": eye, "arm": arm}),
        action_space=gym.spaces.Box(-1, 1, (3,)),
    )
    refused("x-v0", r"eye is an image \[3, 8, 8\] beside other observations", home)


@pytest.mark.parametrize("array", ["observations", "actions", "rewards"])
def test_an_episode_without_t_plus_1_observations_is_refused(home: Path, episodes: list[Episode], array: str) -> None:
    write_minari("x-v0", episodes)
    with h5py.File(home / "minari/x-v0/data/main_data.hdf5", "a") as file:
        values = file[f"episode_1/{array}"][:-1]  # type: ignore[index]
        del file[f"episode_1/{array}"]
        file[f"episode_1/{array}"] = values
    refused("x-v0", r"episode 1 has \d observations, \d actions and \d rewards; .* T\+1 observations", home)


def test_an_episode_that_goes_on_after_its_end_is_refused(home: Path, episodes: list[Episode]) -> None:
    write_minari("x-v0", episodes)
    with h5py.File(home / "minari/x-v0/data/main_data.hdf5", "a") as file:
        file["episode_1/terminations"][2] = True  # type: ignore[index]
    refused("x-v0", "episode 1 terminated at step 2 but goes on; split", home)


def test_arrays_of_different_lengths_are_refused(home: Path, episodes: list[Episode]) -> None:
    arrays = transitions(episodes)
    arrays["rewards"] = arrays["rewards"][:-2]
    refused(write_hdf5(home / "d.hdf5", arrays), "17 observations but 15 rewards", home)
    del arrays["rewards"]
    refused(write_hdf5(home / "d.hdf5", arrays), "has no 'rewards'", home)
    np.savez(home / "d.npz", obs=np.zeros((4, 2)), action=np.zeros((3, 1)), reward=np.zeros(4), terminated=np.zeros(4),
             episode_starts=np.array([0, 4]))  # fmt: skip
    refused(home / "d.npz", "3 rows of action for 4 observations", home)


@pytest.mark.parametrize("starts", [[0, 1, 4], [0, 3], [1, 4], [0, 3, 2, 4]])
def test_episode_starts_that_do_not_cut_the_rows_are_refused(home: Path, starts: list[int]) -> None:
    np.savez(home / "d.npz", obs=np.zeros((4, 2)), action=np.zeros((4, 1)), reward=np.zeros(4), terminated=np.zeros(4),
             episode_starts=np.array(starts))  # fmt: skip
    refused(home / "d.npz", "episode_starts does not cut 4 rows", home)


def test_npz_is_never_unpickled(home: Path) -> None:
    np.savez(home / "d.npz", obs=np.array([{"a": 1}], object), allow_pickle=True)
    refused(home / "d.npz", "cannot read .*d.npz: obs: Object arrays cannot be loaded", home)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop_columns(["reward"]), "has no column 'reward'; needed: episode, obs"),
        (lambda t: t.set_column(1, "obs", [[1.0] * len(t)]), "column 'obs' is double; it must be a list"),
        (lambda t: t.set_column(1, "obs", [[[1.0] * (1 + i % 2) for i in range(len(t))]]), "column 'obs' differ in length"),
        (lambda t: t.take([0, 4, 1, 2, 3]), "episode 0 is in pieces; sort the rows"),
    ],
)
def test_a_table_of_another_shape_is_refused(home: Path, episodes: list[Episode], change: Any, match: str) -> None:
    refused(write_parquet(home / "t.parquet", change(step_table(episodes))), match, home)


def test_a_table_of_steps_without_next_obs_is_refused_rather_than_misread(home: Path, episodes: list[Episode]) -> None:
    table = step_table(episodes).drop_columns(["next_obs"])
    refused(
        write_parquet(home / "t.parquet", table), "action in row 3, the last row of its episode, is not 0.*add such a row", home
    )


def test_tables_of_two_environments_in_a_folder_are_refused(home: Path, episodes: list[Episode]) -> None:
    write_parquet(home / "f/a.parquet", step_table(episodes))
    other = [dataclasses.replace(e, obs=e.obs[:, :4]) for e in episodes]
    write_parquet(home / "f/b.parquet", row_table(other))
    refused(home / "f", "b.parquet: obs has 4 .* but a.parquet has 5", home)


def test_an_empty_dataset_is_refused(home: Path, episodes: list[Episode]) -> None:
    refused(write_hdf5(home / "d.hdf5", {k: v[:0] for k, v in transitions(episodes).items()}), "dataset is empty", home)
    refused(write_parquet(home / "d.parquet", step_table(episodes)[:0]), "dataset is empty", home)
    np.savez(home / "d.npz", obs=np.zeros((0, 2)), action=np.zeros((0, 1)), reward=np.zeros(0), terminated=np.zeros(0),
             episode_starts=np.array([0]))  # fmt: skip
    refused(home / "d.npz", "dataset is empty", home)
    write_minari("x-v0", episodes)
    path = home / "minari/x-v0/data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_episodes": 0}))
    refused("x-v0", "dataset is empty", home)
    with pytest.raises(DataError, match="has no episodes"):
        dataset_from_episodes([])


def test_a_dataset_of_another_environment_is_refused() -> None:
    dataset = dataset_from_episodes([small_episode(0, 3)], name="mine", env_id="wmrl/PointMaze-UMaze-v0")
    check_compatible(dataset, 5, 3, "wmrl_ray.envs:wmrl/PointMaze-UMaze-v0")
    check_compatible(dataset, 5, 3)
    with pytest.raises(DataError, match=r"'mine' has obs_dim = 5, but environment 'X-v0' has 4; use the dataset's own"):
        check_compatible(dataset, 4, 3, "X-v0")
    with pytest.raises(DataError, match="action_dim = 3"):
        check_compatible(dataset, 5, 2)
    with pytest.raises(DataError, match="recorded in 'wmrl/PointMaze-UMaze-v0', not in 'wmrl/PointMaze-Medium-v0'"):
        check_compatible(dataset, 5, 3, "wmrl/PointMaze-Medium-v0")


def test_a_dataset_of_another_action_repeat_is_refused() -> None:
    dataset = dataset_from_episodes([small_episode(0, 3)], name="mine", env_id="X-v0", action_repeat=2)
    check_compatible(dataset, 5, 3, "X-v0", 2)
    check_compatible(dataset, 5, 3, "X-v0")
    with pytest.raises(
        ConfigError, match=r"'mine' was recorded with action_repeat = 2, but .* 'X-v0' takes each action 4 times"
    ):
        check_compatible(dataset, 5, 3, "X-v0", 4)
    check_compatible(dataset_from_episodes([small_episode(0, 3)], env_id="X-v0"), 5, 3, "X-v0", 4)  # it does not say


def test_episodes_of_other_shapes_are_refused() -> None:
    good = small_episode(0, 3)
    wrong = (
        dataclasses.replace(good, obs=good.obs[:, 0]),
        dataclasses.replace(good, action=good.action[:, 0]),
        dataclasses.replace(good, reward=good.reward[:, None]),
    )
    for episode in wrong:
        with pytest.raises(
            DataError, match=r"mine: episode 0: obs \[4.*must have the shapes \[T\+1, O\].*, \[T, A\] and \[T\]"
        ):
            dataset_from_episodes([episode], name="mine")
    other = dataclasses.replace(good, obs=good.obs[:, :4])
    with pytest.raises(DataError, match="episode 1 has obs_dim = 4 and action_dim = 3, but episode 0 has 5 and 3; keep one"):
        dataset_from_episodes([good, other])


@pytest.mark.parametrize("value", [2, 0.5, -1, np.nan])
def test_a_terminal_that_is_neither_0_nor_1_is_refused(home: Path, episodes: list[Episode], value: float) -> None:
    arrays = flat_arrays(episodes)
    arrays["terminated"] = arrays["terminated"].astype(np.float64)
    arrays["terminated"][3] = value
    np.savez(home / "d.npz", **arrays)
    refused(home / "d.npz", f"terminated is {float(value)} in row 3; it must be 0 or 1", home)
    table = row_table(episodes)
    column = pa.array([value, *table["terminated"].cast(pa.float64()).to_pylist()[1:]])
    path = write_parquet(home / "t.parquet", table.set_column(4, "terminated", column))
    refused(path, f"terminated is {float(value)} in row 0", home)
    for name in ("terminals", "timeouts"):
        arrays = transitions(episodes)
        arrays[name] = arrays[name].astype(np.float64)
        arrays[name][1] = value
        refused(write_hdf5(home / f"{name}.hdf5", arrays), f"{name} is {float(value)} in row 1; it must be 0 or 1", home)


def test_a_terminal_inside_an_episode_is_refused(home: Path, episodes: list[Episode]) -> None:
    arrays = flat_arrays(episodes)
    arrays["terminated"][7] = True
    np.savez(home / "d.npz", **arrays)
    refused(home / "d.npz", "episode 1, step 2 is terminated but the episode goes on; split", home)
    table = row_table(episodes)
    column = pa.array([True, *table["terminated"].to_pylist()[1:]])
    path = write_parquet(home / "t.parquet", table.set_column(4, "terminated", column))
    refused(path, "episode 0, step 0 is terminated but the episode goes on; split", home)


@pytest.mark.parametrize(("name", "value"), [("action", 0.5), ("reward", 5.0), ("terminated", 1)])
def test_a_last_row_that_holds_more_than_an_observation_is_refused(
    home: Path, episodes: list[Episode], name: str, value: float
) -> None:
    arrays = flat_arrays(episodes)
    arrays[name][12] = value
    np.savez(home / "d.npz", **arrays)
    refused(home / "d.npz", f"{name} in episode 1, step 7 is not 0, but that row holds only .*set it to 0", home)


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_no_copy_behind(
    home: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path, real, calls = write_hdf5(home / "d.hdf5", transitions(episodes)), arrow_module.write_ipc, []

    def full(target: Path, *args: Any, **kwargs: Any) -> None:
        calls.append(target)
        if len(calls) > after:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(target, *args, **kwargs)

    monkeypatch.setattr(arrow_module, "write_ipc", full)
    refused(path, "no space left to write .*; free some space", home)
    assert names_under(home / "cache") == {"datasets"}
    monkeypatch.undo()
    monkeypatch.setenv("WMRL_CACHE_DIR", str(home / "cache"))
    assert len(open_dataset(path)) == 4


@pytest.mark.parametrize("format", ["npz", "hdf5", "parquet", "arrow", "minari"])
def test_a_full_disk_leaves_no_export_behind(home: Path, episodes: list[Episode], format: str) -> None:
    import os
    import resource
    import sys

    source = home / "d.npz"
    np.savez(source, **transitions([small_episode(i, 200) for i in range(20)]))
    open_dataset(source)
    target = home / "out" / ("x-v0" if format == "minari" else f"x.{format}")
    # A real limit on the size of a file, in a child: writing past it fails as on a full disk (with EFBIG).
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            export(source, target, format)
        except DataError as error:
            status = 0 if "no space left to write" in str(error) else 3
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            status = 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert names_under(home / "out") == set()
