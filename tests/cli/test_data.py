"""`wmrl data` from making to exporting, on real files."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from wmrl_ray.cli.data import progress_bar

ID = "wmrl/test-cli/umaze-v0"


@pytest.fixture
def made(wmrl):
    outcome = wmrl("data", "make", "pointmaze-umaze", "--steps", 2000, "--reference-episodes", 4, "--id", ID, "--overwrite")
    assert (outcome.code, outcome.out.strip()) == (0, ID), outcome.err
    return ID


def test_a_made_dataset_is_listed_as_a_stand_in(wmrl, made):
    entries = {entry["name"]: entry for entry in json.loads(wmrl("data", "list", "--json").out)}
    assert (entries[ID]["num_steps"], entries[ID]["is_stand_in"], entries[ID]["problem"]) == (2000, True, "")
    table = wmrl("data", "list").out
    assert ID in table and "2,000" in table and "stand-in" in table


def test_making_it_again_needs_overwrite(wmrl, made):
    outcome = wmrl("data", "make", "pointmaze-umaze", "--steps", 2000, "--id", ID)
    assert outcome.code == 2
    assert ID in outcome.err and "overwrite" in outcome.err


def test_info_prints_the_card_and_draws_the_states(wmrl, made, tmp_path):
    outcome = wmrl("data", "info", made, "--picture", tmp_path / "states.png")
    assert outcome.code == 0, outcome.err
    for part in ("2,000 steps", "wmrl/PointMaze-UMaze-v0", "not D4RL data", "is 100"):
        assert part in outcome.out
    assert (tmp_path / "states.png").read_bytes().startswith(b"\x89PNG")
    card = json.loads(wmrl("data", "info", made, "--json").out)
    assert (card["num_steps"], card["obs_dim"], card["action_dim"]) == (2000, 4, 2)


def test_progress_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    with progress_bar("films", "frames") as progress:
        progress(1, 2000)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("wmrl_ray.cli.data.LINE_EVERY_S", 0.0)
    with progress_bar("films", "frames") as progress:
        progress(1000, 2000)
    assert capsys.readouterr() == ("", "films: 1,000 of 2,000 frames\n")


def test_the_mean_score_of_pieces_longer_than_an_episode_is_not_shown(wmrl, made):
    assert json.loads(wmrl("data", "info", made, "--json").out)["episode_length_max"] > 300
    assert "the dataset's own mean" not in wmrl("data", "info", made).out


@pytest.mark.parametrize("name", ["x.npz", "x.hdf5", "x.parquet", "x.arrow", "x-v0"])
def test_an_export_is_the_same_dataset(wmrl, made, tmp_path, name):
    assert wmrl("data", "export", made, tmp_path / name).code == 0
    sha256 = [json.loads(wmrl("data", "info", uri, "--json").out)["sha256"] for uri in (made, tmp_path / name)]
    assert sha256[0] == sha256[1]


def test_an_export_can_be_imported_under_an_id_with_an_environment(wmrl, made, tmp_path):
    wmrl("data", "export", made, tmp_path / "x.npz")
    arguments = [
        "data",
        "import",
        tmp_path / "x.npz",
        "wmrl/test-cli/imported-v0",
        "--env",
        "wmrl_ray.envs:wmrl/PointMaze-UMaze-v0",
    ]
    outcome = wmrl(*arguments)
    assert outcome.code == 0, outcome.err
    assert "minari://wmrl/test-cli/imported-v0: 2,000 steps" in outcome.out
    assert wmrl(*arguments).code == 2  # it is there now


def test_an_import_takes_the_reference_scores_that_the_file_lacks(wmrl, made, tmp_path):
    wmrl("data", "export", made, tmp_path / "x.npz")
    arguments = ["data", "import", tmp_path / "x.npz", "wmrl/test-cli/scored-v0", "--ref-min", "-280.5"]
    assert "give both --ref-min and --ref-max" in wmrl(*arguments).err
    assert "needs two that differ" in wmrl(*arguments, "--ref-max", "-280.5").err
    assert wmrl(*arguments, "--ref-max", "12135").code == 0
    card = json.loads(wmrl("data", "info", "wmrl/test-cli/scored-v0", "--json").out)
    assert (card["ref_min_score"], card["ref_max_score"]) == (-280.5, 12135.0)


def test_verify_finds_a_flipped_byte(wmrl, made, tmp_path):
    path = tmp_path / "x.npz"
    wmrl("data", "export", made, path)
    intact = wmrl("data", "verify", path)
    assert intact.code == 0 and "is intact: 2,000 steps" in intact.out
    found = json.loads(wmrl("data", "verify", path, "--json").out)
    assert (found["name"], found["num_steps"], "data.arrow" in found["files"]) == ("x", 2000, True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    damaged = wmrl("data", "verify", path)
    assert damaged.code == 2
    assert "has changed since it was read" in damaged.err


def test_prune_deletes_copies_of_older_versions_and_says_how_much(wmrl, made, tmp_path, monkeypatch):
    monkeypatch.setenv("WMRL_CACHE_DIR", str(tmp_path / "cache"))
    assert wmrl("data", "info", made).code == 0
    (copy,) = (tmp_path / "cache" / "datasets").iterdir()
    shutil.copytree(copy, copy.with_name(copy.name.split("-v")[0] + "-v1"))
    outcome = wmrl("data", "prune")
    assert re.fullmatch(r"deleted 1 copies of older versions \(0\.\d MB\) from \S+\n", outcome.out), outcome
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.ray
def test_ray_actors_make_the_same_dataset(wmrl, made, local_ray):
    arguments = ["--steps", 2000, "--reference-episodes", 4, "--id", "wmrl/test-cli/by-ray-v0", "--ray", "--workers", 2]
    outcome = wmrl("data", "make", "pointmaze-umaze", *arguments)
    assert outcome.code == 0, outcome.err
    cards = [json.loads(wmrl("data", "info", uri, "--json").out) for uri in (made, "wmrl/test-cli/by-ray-v0")]
    assert cards[0]["sha256"] == cards[1]["sha256"]


def test_random_vectors_stand_behind_its_observations_and_only_they_have_a_seed(wmrl, made, tmp_path):
    outcome = wmrl(
        "intents", made, "--random", 3, "--seed", 1, "--env", "wmrl/PointMaze-Medium-v0", "--id", f"{ID[:-3]}-random-v0"
    )
    assert outcome.code == 0, outcome.err
    about = wmrl("data", "info", outcome.out.strip()).out
    assert "7 observations" in about and "PointMaze-Medium-v0" in about
    refused = wmrl("intents", made, "--manager", tmp_path, "--seed", 1)
    assert refused.code == 2 and "--seed 1 has no effect with --manager" in refused.err
