"""list, describe, export, import: what goes out comes back the same."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest

from tests.data.fakes import assert_holds, flat_arrays, names_under, small_episode, transitions, write_minari
from wmrl_ray.data import minari_writer
from wmrl_ray.data.catalog import describe, import_dataset, list_datasets, verify
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.exporting import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
FORMATS = {"npz": "x.npz", "hdf5": "x.hdf5", "parquet": "x.parquet", "arrow": "x.arrow", "minari": "x-v0"}


@pytest.fixture
def original(home: Path, episodes: list[Episode]) -> str:
    write_minari(
        "wmrl/small-v0", episodes, env="Pendulum-v1", eval_env="Pendulum-v1", ref_min_score=1.0, ref_max_score=3.0,
        description="STAND-IN: made here,\nfor a set that\ncould not be had.\n\nMore words.",
    )  # fmt: skip
    return "wmrl/small-v0"


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_read_back_is_the_same_dataset(home: Path, original: str, episodes: list[Episode], format: str) -> None:
    path = export(original, home / "out" / FORMATS[format], format)
    again, card = open_dataset(path), describe(original)
    assert_holds(again, episodes)
    for name in (
        "sha256",
        "env_id",
        "env_spec",
        "ref_min_score",
        "ref_max_score",
        "description",
        "stand_in",
        "obs_mean",
        "notes",
    ):
        assert getattr(again.card, name) == getattr(card, name), name
    assert again.card.stand_in == "made here, for a set that could not be had."
    assert verify(path).card.sha256 == card.sha256
    assert not [name for name in names_under(home / "out") if Path(name).name.startswith(".")]


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_of_an_npz_in_our_layout_can_be_opened_again(home: Path, episodes: list[Episode], format: str) -> None:
    np.savez(home / "a.npz", **flat_arrays(episodes))
    path = export(home / "a.npz", home / "out" / FORMATS[format], format)
    assert_holds(open_dataset(path), episodes)
    assert describe(path).sha256 == describe(home / "a.npz").sha256
    for name in ("action", "reward", "terminated"):  # what no other format can hold is refused at once
        arrays = flat_arrays(episodes)
        arrays[name][4] = 1
        np.savez(home / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=f"{name} in episode 0, step 4 is not 0, but that row holds only"):
            export(home / f"{name}.npz", home / name / FORMATS[format], format)
        assert not (home / name).exists()


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_damaged_before_it_was_ever_read_is_refused(home: Path, original: str, format: str) -> None:
    """The file carries the sha256 of its arrays: a flipped byte in the numbers shows although the format has no check."""
    path = export(original, home / "out" / FORMATS[format], format)
    victim = path / "data/main_data.hdf5" if format == "minari" else path
    content = bytearray(victim.read_bytes())
    reward = open_dataset(original).reward
    at = content.find(reward[:4].tobytes())
    if at < 0:
        assert format == "parquet"  # compressed: the bytes cannot be found; hit the data pages instead
        at = len(content) // 3
    content[at] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        open_dataset(path)


def test_an_export_is_refused_before_anything_is_read(home: Path, original: str) -> None:
    (home / "x.npz").write_text("mine")
    for path, format, match in (
        ("x.npz", "npz", "exists already; choose another place, or replace it: --overwrite"),
        ("y.npz", "nzp", r"format = 'nzp' \(did you mean 'npz'\?\); allowed: arrow, hdf5, minari, npz, parquet"),
        ("y.bin", "npz", "does not end in .npz"),
        ("y", "minari", "'y' is not a Minari id"),
    ):
        with pytest.raises(DataError, match=match):
            export(original, home / path, format)
    assert (home / "x.npz").read_text() == "mine" and not (home / "y").exists()
    export(original, home / "x.npz", "npz", overwrite=True)
    assert len(open_dataset(home / "x.npz")) == 4


def test_minari_itself_can_use_an_exported_dataset(home: Path, original: str, episodes: list[Episode]) -> None:
    import_dataset(original, "other/name-v3")
    dataset = minari.load_dataset("other/name-v3")
    assert (dataset.total_episodes, dataset.total_steps) == (4, 17)
    assert dataset.recover_environment().spec.id == "Pendulum-v1"  # type: ignore[union-attr]
    assert minari.get_normalized_score(dataset, np.array([2.0]))[0] == pytest.approx(0.5)
    np.testing.assert_array_equal(dataset[1].observations, episodes[1].obs)
    assert "other/name-v3" in minari.list_local_datasets()


def test_import_makes_any_dataset_a_minari_one_with_an_environment(home: Path, episodes: list[Episode]) -> None:
    np.savez(home / "a.npz", **transitions(episodes))
    dataset = import_dataset(home / "a.npz", "mine/a-v0", env="Pendulum-v1")
    assert_holds(dataset, episodes)
    assert (dataset.card.uri, dataset.card.env_id) == ("minari://mine/a-v0", "Pendulum-v1")
    assert gym.envs.registration.EnvSpec.from_json(str(dataset.card.env_spec)).id == "Pendulum-v1"
    with pytest.raises(DataError, match="exists already"):
        import_dataset(home / "a.npz", "mine/a-v0")
    np.savez(home / "b.npz", **transitions([small_episode(8, 3)]))
    assert len(import_dataset(home / "b.npz", "mine/a-v0", overwrite=True)) == 1
    assert names_under(home / "minari/mine") == {
        "namespace_metadata.json", "a-v0", "a-v0/data", "a-v0/data/main_data.hdf5", "a-v0/data/metadata.json",
    }  # fmt: skip


def test_an_import_that_fails_leaves_the_old_dataset(home: Path, original: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="env = 'Nowhere-v0' is not a registered environment"):
        import_dataset(original, "x-v0", env="Nowhere-v0")
    with pytest.raises(DataError, match="'no version' is not a Minari id"):
        import_dataset(original, "no version")
    before = names_under(home / "minari")

    def broken(dataset: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(minari_writer, "_episode_buffers", broken)
    with pytest.raises(DataError, match="no space left"):
        import_dataset(original, original, overwrite=True)
    assert names_under(home / "minari") == before
    assert len(open_dataset(original)) == 4


def test_the_list_shows_what_is_there_and_names_what_is_broken(home: Path, original: str, episodes: list[Episode]) -> None:
    write_minari("b-v0", episodes)
    (home / "minari/b-v0/data/metadata.json").write_text("{")
    (home / "minari/.making-x/c-v0/data").mkdir(parents=True)
    (home / "minari/.making-x/c-v0/data/metadata.json").write_text("{}")
    broken, whole = list_datasets()
    assert (broken.name, broken.num_steps) == ("b-v0", 0) and "metadata.json" in broken.problem
    assert (whole.name, whole.num_steps, whole.num_episodes, whole.env_id) == ("wmrl/small-v0", 17, 4, "Pendulum-v1")
    assert whole.is_stand_in and whole.problem == "" and whole.size_mb > 0


def test_an_empty_machine_lists_nothing(home: Path) -> None:
    assert list_datasets() == []


def test_a_card_is_plain_json(home: Path, original: str) -> None:
    from wmrl_ray.config import to_dict
    from wmrl_ray.data.card import card_from_dict

    card = describe(original)
    assert card_from_dict(json.loads(json.dumps(to_dict(card)))) == card
