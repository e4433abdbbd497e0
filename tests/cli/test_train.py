"""`wmrl train` from a file to a run folder, stopped and resumed; then evaluated and reported."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wmrl_ray.cli.train import train as train_command
from wmrl_ray.policy import Policy
from wmrl_ray.run.folder import RunDir

MAIN = "from wmrl_ray.cli import main; main()"
ROOT = Path(__file__).parents[2]


def files_of(run: Path) -> set[str]:
    return {p.name for p in run.iterdir() if not p.name.startswith(".")}


def contents_of(folder: Path) -> dict[str, bytes]:
    """Of every file in the folder and below it, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def evaluations(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time_s"} for line in lines if "eval/return_mean" in line]


def losses(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["update"], line["loss/actor"]) for line in lines if "loss/actor" in line]


def test_a_run_goes_from_a_file_to_a_report(wmrl, tiny, tmp_path):
    trained = wmrl("train", tiny, "--no-ray", "--seed", 3)
    assert trained.code == 0, trained.err
    run = tmp_path / "runs" / "tiny" / "bc-seed3"
    assert files_of(run) == {
        "config.json", "dataset.json", "environment.json", "metrics.jsonl", "trajectories.npz", "checkpoints", "result.json",
        "tensorboard",
    }  # fmt: skip
    kinds = [event["event"] for event in trained.events]
    assert kinds == ["start", "update", "eval", "checkpoint", "update", "eval", "checkpoint", "result"]
    assert trained.events[-1]["updates"] == 20 and trained.events[-1]["run_dir"] == "runs/tiny/bc-seed3"
    assert json.loads((run / "config.json").read_text())["seed"] == 3
    assert "wmrl report runs/tiny/bc-seed3" in trained.err

    evaluated = wmrl("evaluate", run, "--episodes", 2, "--num-envs", 2, "--json", "--seed", 3)
    numbers = json.loads(evaluated.out)
    last = evaluations(run)[-1]
    assert (numbers["update"], numbers["episodes"]) == (20, 2)
    assert numbers["return_mean"] == pytest.approx(last["eval/return_mean"])  # the same weights, seeds and planner noise
    assert numbers["score_mean"] == pytest.approx(last["eval/score_mean"])

    text = wmrl("evaluate", run / "checkpoints" / "00000010", "--episodes", 1).out
    assert "bc at update 10 in wmrl/PointMaze-UMaze-v0, 1 episodes" in text
    assert "on the scale of wmrl/test/pointmaze-umaze-v0" in text and "not D4RL data" in text

    reported = wmrl("report", "runs", "-o", "page.html")
    assert reported.code == 0, reported.err
    page = (tmp_path / "page.html").read_text()
    assert "Stand-in" in page and "Trajectories of the last evaluation" in page
    assert json.loads((tmp_path / "page.json").read_text())["runs"][0]["complete"]


def test_an_existing_run_is_neither_overwritten_nor_resumed_unasked(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    assert wmrl("train", tiny, "--no-ray", "--run-dir", run).code == 0
    before = (run / "metrics.jsonl").read_bytes()
    refused = wmrl("train", tiny, "--no-ray", "--run-dir", run)
    assert refused.code == 2
    assert "already holds a run (20 of 20 updates); continue it with --resume, start over with --overwrite" in refused.err
    assert (run / "metrics.jsonl").read_bytes() == before

    (run / "notes.txt").write_text("mine")
    assert wmrl("train", tiny, "--no-ray", "--run-dir", run, "--overwrite", "--set", "num_updates=10").code == 0
    assert [update for update, _ in losses(run)] == [10]
    assert (run / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset=/nowhere.npz", "nowhere.npz"),
        ("env=Pendulum-v1", "Pendulum-v1"),
        ("device=cuda:99", "cuda:99"),
        ("agent.lr=-1", "lr"),
    ],
)
def test_an_overwrite_that_cannot_start_leaves_the_old_run_as_it_was(wmrl, tiny, tmp_path, setting, message):
    run = tmp_path / "run"
    assert wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10").code == 0
    before = contents_of(run)
    refused = wmrl("train", tiny, "--no-ray", "--run-dir", run, "--overwrite", "--set", setting)
    assert refused.code == 2
    assert message in refused.err
    assert contents_of(run) == before


def test_an_overwrite_that_fails_after_it_made_its_folder_leaves_the_old_run_as_it_was(wmrl, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    before = contents_of(run)

    def interrupted(self: RunDir, start_update: int) -> None:
        assert self.config().seed == 7  # the new run's folder is there
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDir, "open_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_command(str(tiny), no_ray=True, run_dir=run, overwrite=True, seed=7)
    assert contents_of(run) == before


def test_a_finished_run_has_nothing_to_resume_and_can_be_trained_further(wmrl, tiny, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wmrl("train", tiny, "--no-ray", "--run-dir", whole)
    wmrl("train", tiny, "--no-ray", "--run-dir", parts, "--set", "num_updates=10")
    again = wmrl("train", parts, "--no-ray", "--resume")
    assert (again.code, "has finished its 10 updates already" in again.out) == (0, True)
    (parts / "result.json").write_text("{")
    damaged = wmrl("train", parts, "--no-ray", "--resume")
    assert damaged.code == 2 and "result.json is damaged" in damaged.err and "delete it, and resume the run" in damaged.err
    (parts / "result.json").unlink()
    assert wmrl("train", parts, "--no-ray", "--resume").code == 0 and (parts / "result.json").exists()
    longer = wmrl("train", parts, "--no-ray", "--resume", "--set", "num_updates=20")
    assert longer.code == 0, longer.err
    assert losses(parts) == losses(whole)  # 10 + 10 updates are 20 updates, to the last digit
    assert evaluations(parts) == evaluations(whole)
    assert json.loads((parts / "config.json").read_text())["num_updates"] == 20


def test_resuming_with_other_settings_is_refused_and_changes_nothing(wmrl, tiny, tmp_path):
    run = tmp_path / "run"
    wmrl("train", tiny, "--no-ray", "--run-dir", run, "--set", "num_updates=10")
    before = (run / "config.json").read_bytes()
    refused = wmrl("train", run, "--no-ray", "--resume", "--set", "batch_size=8", "--set", "num_updates=20")
    assert refused.code == 2
    assert "batch_size = 8: it was started with 16" in refused.err
    refused = wmrl("train", run, "--no-ray", "--resume", "--set", "agent.lr=0.5")
    assert "agent.lr = 0.5: it was started with 0." in refused.err
    refused = wmrl("train", run, "--resume", "--set", "num_updates=20")
    assert "trained without Ray, and its checkpoints continue only there; resume it with --no-ray" in refused.err
    assert (run / "config.json").read_bytes() == before


def test_resuming_where_there_is_no_run_starts_one(wmrl, tiny, tmp_path):
    outcome = wmrl("train", tiny, "--no-ray", "--resume", "--run-dir", tmp_path / "new", "--set", "num_updates=10")
    assert outcome.code == 0, outcome.err
    assert [event["update"] for event in outcome.events if event["event"] == "start"] == [0]


WITH_RAY = pytest.param((), id="ray", marks=pytest.mark.ray)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.parametrize("flags", [pytest.param(("--no-ray",), id="plain"), WITH_RAY])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_resume(tiny, tmp_path, signum, code, flags):
    run = tmp_path / "run"
    command = [sys.executable, "-c", MAIN, "train", str(tiny), *flags, "--run-dir", str(run), "--set", "num_eval_runners=1"]
    command += ["--set", "num_updates=1000000", "--set", "eval_every=1000000", "--set", "checkpoint_every=1000000"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **streams, start_new_session=True)
    try:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert [event["event"] for event in events] == ["start", "update", "update"]
        # Why the group: a terminal sends Ctrl-C to every process that the command started, Ray's too
        (os.killpg if signum == signal.SIGINT else os.kill)(process.pid, signum)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, err
    result = json.loads(out.splitlines()[-1])
    assert (result["event"], result["finished"]) == ("result", False)
    assert f"resume with: {shlex.join(['wmrl', 'train', str(run), *flags, '--resume'])}" in err
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert int(checkpoint.name) == result["updates"] > 10
    assert not (run / "result.json").exists()

    stop_at = result["updates"] + 10
    command = [sys.executable, "-c", MAIN, "train", str(run), *flags, "--resume", "--set", f"num_updates={stop_at}"]
    command += ["--set", "eval_every=0", "--set", "checkpoint_every=5", "--set", "num_eval_runners=0"]
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[0])["update"] == result["updates"]
    assert json.loads(resumed.stdout.splitlines()[-1])["updates"] == stop_at


@pytest.mark.ray
def test_a_run_on_ray_killed_with_sigkill_and_resumed_equals_one_in_one_go(wmrl, tiny, tmp_path, local_ray):
    import ray

    settings = ["--set", "num_updates=150", "--set", "eval_every=0"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-c", MAIN, "train", str(tiny), "--run-dir", str(run), *settings]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "checkpoint" and event["update"] >= 20:
            process.kill()
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (run / "result.json").exists()

    resumed = wmrl("train", run, "--resume")
    assert resumed.code == 0, resumed.err
    assert 20 <= resumed.events[0]["update"] < 150
    assert wmrl("train", tiny, "--no-ray", "--run-dir", whole, *settings).code == 0
    assert losses(run) == losses(whole)
    assert evaluations(run)[-1] == pytest.approx(evaluations(whole)[-1])
    models = [Policy.load(path).agent.model.state_dict() for path in (run, whole)]
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


@pytest.mark.ray
def test_the_same_command_trains_on_ray_and_resumes_there(wmrl, tiny, tmp_path, local_ray):
    run = tmp_path / "run"
    trained = wmrl("train", tiny, "--run-dir", run, "--set", "num_updates=10")
    assert trained.code == 0, trained.err
    assert trained.events[-1]["updates"] == 10
    refused = wmrl("train", run, "--no-ray", "--resume", "--set", "num_updates=20")
    assert "trained with Ray, and its checkpoints continue only there; resume it without --no-ray" in refused.err
    resumed = wmrl("train", run, "--resume", "--set", "num_updates=20")
    assert resumed.code == 0, resumed.err
    assert resumed.events[0] == {"event": "start", "update": 10, "total": 20}
    evaluated = wmrl("evaluate", run, "--episodes", 1, "--json")
    assert json.loads(evaluated.out)["update"] == 20
