"""`wmrl evaluate`: numbers, scales, videos."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from wmrl_ray.cli.evaluate import summarize, write_video
from wmrl_ray.rollout import Evaluation

META = {
    "algorithm": "bc",
    "update": 7,
    "env": "wmrl/PointMaze-UMaze-v0",
    "dataset": {"name": "d", "ref_min_score": 10.0, "ref_max_score": 30.0, "stand_in": None},
}
EVALUATION = Evaluation([], [10.0, 30.0], [300, 100], [False, True], True, {})


def test_the_score_is_linear_between_the_references():
    numbers = summarize(EVALUATION, META, META["env"], 0)
    assert (numbers["return_mean"], numbers["return_std"]) == (20.0, 10.0)
    assert (numbers["score_mean"], numbers["score_std"]) == (50.0, 50.0)
    assert (numbers["success_mean"], numbers["length_mean"]) == (0.5, 200.0)


def test_another_environment_has_no_score_on_the_datasets_scale():
    assert summarize(EVALUATION, META, "wmrl/PointMaze-Large-v0", 0)["score_mean"] is None


def test_success_is_unknown_where_the_environment_does_not_report_it():
    assert summarize(Evaluation([], [1.0], [5], [False], False, {}), META, META["env"], 0)["success_mean"] is None


def frame_count(path: Path) -> tuple[int, int, int]:
    """(frames, width, height) by decoding the file."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return sum(1 for _ in reader), width, height


def test_a_video_holds_every_frame_at_even_size(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (7, 65, 49, 3), dtype=np.uint8)
    write_video(tmp_path / "film.mp4", frames, fps=10)
    assert frame_count(tmp_path / "film.mp4") == (7, 48, 64)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_a_video_that_fails_leaves_nothing_behind(tmp_path):
    frames = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    (tmp_path / "film.mp4").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        write_video(tmp_path / "film.mp4", frames, fps=10)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_the_command_films_episode_0(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    outcome = wmrl("evaluate", run, "--episodes", 1, "--video", tmp_path / "film.mp4", "--json")
    assert outcome.code == 0, outcome.err
    numbers = json.loads(outcome.out)
    frames, *_ = frame_count(tmp_path / "film.mp4")
    assert frames == numbers["length_mean"] + 1  # the first observation too


def test_another_environment_of_other_size_is_refused(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    outcome = wmrl("evaluate", run, "--env", "Pendulum-v1")
    assert outcome.code == 2
    assert "Pendulum-v1 has 3 observations and 1 actions, the policy 4 and 2" in outcome.err


def test_ffmpeg_is_there():
    import imageio_ffmpeg

    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], check=True, capture_output=True)
