"""`wmrl evaluate`: numbers, scales, videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wmrl_ray.cli.evaluate import summarize
from wmrl_ray.config import ConfigError
from wmrl_ray.policy import Policy
from wmrl_ray.rollout import Evaluation
from wmrl_ray.video import write_video

META = {
    "algorithm": "bc",
    "update": 7,
    "env": "wmrl/PointMaze-UMaze-v0",
    "dataset": {"name": "d", "ref_min_score": 10.0, "ref_max_score": 30.0, "stand_in": None},
}
NAMES_NONE = "names no environment (its dataset has none, or it was trained in a class)"
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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_allowed_video_is_replaced_by_the_new_one(tmp_path, suffix):
    film = tmp_path / f"film{suffix}"
    film.write_text("old")
    write_video(film, np.zeros((3, 64, 48, 3), dtype=np.uint8), fps=10)
    assert frame_count(film) == (3, 48, 64)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_video_that_does_not_play_back_leaves_the_old_one(tmp_path, monkeypatch, kept):
    import imageio_ffmpeg

    write_frames = imageio_ffmpeg.write_frames

    def write_some(path, size, **settings):  # a writer that loses frames and reports nothing
        writer = write_frames(path, size, **settings)
        writer.send(None)
        yield
        for _ in range(kept):
            writer.send((yield))
        writer.close()
        while True:
            yield

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", write_some)
    (tmp_path / "film.mp4").write_text("old")
    with pytest.raises(ConfigError, match=r"no video .*film\.mp4"):
        write_video(tmp_path / "film.mp4", np.zeros((7, 64, 64, 3), dtype=np.uint8), fps=10)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("film.mp4", "old")]


@pytest.mark.parametrize(("platform", "backend"), [("linux", "egl"), ("darwin", None)])
def test_egl_is_chosen_for_videos_only_on_linux(wmrl, tmp_path, monkeypatch, platform, backend):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    wmrl("evaluate", "nowhere", "--video", "film.mp4")
    assert os.environ.get("MUJOCO_GL") == backend


def test_weights_that_have_diverged_are_one_line(wmrl, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    load = Policy.load

    def load_diverged(path: Path, **others: object) -> Policy:
        policy = load(path, **others)
        for p in policy.agent.model.parameters():
            p.data.fill_(float("nan"))
        return policy

    monkeypatch.setattr(Policy, "load", load_diverged)
    outcome = wmrl("evaluate", run, "--episodes", 1)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("wmrl: the agent's action is not finite in episode 0, step 0: [nan, nan]; its weights")


def test_a_checkpoint_that_names_no_environment_asks_for_one(wmrl, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    load = Policy.load

    def load_without_env(path: Path, **others: object) -> Policy:
        policy = load(path, **others)
        policy.meta["env"] = None
        return policy

    monkeypatch.setattr(Policy, "load", load_without_env)
    outcome = wmrl("evaluate", run)
    assert (outcome.code, outcome.err) == (2, f"wmrl: {run} {NAMES_NONE}; pass --env <gymnasium id>\n")
    assert wmrl("evaluate", run, "--env", META["env"], "--episodes", 1).code == 0


def test_a_policy_is_evaluated_with_the_arguments_that_its_environment_was_trained_with(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    short = ("--set", "num_updates=10", "--set", "env_config.max_episode_steps=7")
    assert wmrl("train", tiny, "--no-ray", "--run-dir", run, *short).code == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["eval/length_mean"] == 7
    assert json.loads(wmrl("evaluate", run, "--episodes", 2, "--json").out)["length_mean"] == 7


@pytest.mark.needs_gl
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


def test_a_policy_can_act_with_other_settings_than_it_was_trained_with(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    small = ("model.latent_dim=8", "model.encoder_dim=16", "model.hidden_dim=16", "plan.num_policy=8", "plan.num_elites=4")
    planner = ("algorithm=iql_tdmpc", "num_updates=10", "eval_episodes=1", *(f"agent.{setting}" for setting in small))
    wmrl("train", tiny, "--no-ray", "--run-dir", run, *(part for setting in planner for part in ("--set", setting)))
    settings = ("--set", "agent.plan.num_policy=1", "--set", "agent.plan.num_elites=1", "--set", "agent.precision=bfloat16")
    changed = wmrl("evaluate", run, "--episodes", 1, "--json", *settings)
    assert changed.code == 0, changed.err
    assert json.loads(changed.out)["set"] == list(settings[1::2])
    config = Policy.load(run, changes={"plan": {"num_policy": 1, "num_elites": 1}, "precision": "bfloat16"}).agent.config
    trained = Policy.load(run).agent.config
    assert (config.plan.num_policy, config.precision) == (1, "bfloat16") != (trained.plan.num_policy, trained.precision)
    assert config.gamma == trained.gamma and config.plan.horizon == trained.plan.horizon


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("agent.plan.horizonn=3", "unknown key"),
        ("agent.model.latent_dim=3", "agent.model cannot be changed"),
        ("num_updates=3", "only settings of the agent can be changed here"),
    ],
)
def test_a_setting_that_cannot_be_changed_is_refused(wmrl, tiny, tmp_path, setting, message):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    outcome = wmrl("evaluate", run, "--set", setting)
    assert (outcome.code, outcome.out) == (2, "") and message in outcome.err


def test_ffmpeg_is_there():
    import imageio_ffmpeg

    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-version"], check=True, capture_output=True)
