"""`wmrl job` against a real head on loopback, with a token: submitted, followed, stopped, refused."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.rllib import fakes
from tests.rllib.heads import Head, head
from tests.studies import tiny_values
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head() as started:
        yield started


@pytest.fixture
def study(tmp_path: Path, plane_dataset: str) -> Any:
    """study(num_updates=...) writes a run's YAML: BC on the plane, evaluated by one runner actor."""

    def write(**changes: Any) -> Path:
        values = {
            "algorithm": "bc",
            "dataset": plane_dataset,
            "env": fakes.PLANE,
            "num_updates": 20,
            "batch_size": 8,
            "updates_per_call": 5,
            "eval_every": 10,
            "eval_episodes": 2,
            "checkpoint_every": 10,
            "log_every": 10,
            "envs_per_runner": 2,
            "device": "cpu",
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


def test_a_training_run_is_uploaded_followed_to_its_end_and_its_status_told(cluster: Head, study: Any, tmp_path: Path) -> None:
    options = ("--address", cluster.address, "--submission-id", "first")
    done = cluster.wmrl("job", "submit", *options, "--", "train", study(), "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines() if line.startswith('{"event"')]
    assert events[0] == "start"
    assert (events.count("eval"), events[-1]) == (2, "result")
    assert "first SUCCEEDED" in done.stderr
    assert cluster.token not in done.stdout + done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["updates"], result["finished"]) == (20, True)
    status = cluster.wmrl("job", "status", "first", "--address", cluster.address)
    assert status.stdout.strip() == "SUCCEEDED"
    # it ran from the upload, on the cluster
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert recorded["git_revision"] is None
    logs = cluster.wmrl("job", "logs", "first", "--address", cluster.address)
    assert logs.stdout == done.stdout


def test_a_stopped_run_writes_a_checkpoint_and_goes_on_from_it(cluster: Head, study: Any, tmp_path: Path) -> None:
    file, run = study(num_updates=10_000_000, eval_every=0, checkpoint_every=5_000_000), RunDir(tmp_path / "run")
    where = ("--address", cluster.address)
    sent = cluster.wmrl(
        "job", "submit", *where, "--submission-id", "long", "--no-wait", "--", "train", file, "--run-dir", run.path
    )
    assert (sent.returncode, sent.stdout.strip()) == (0, "long")
    deadline = time.monotonic() + 300
    while len(run.read_metrics()) < 2:
        assert time.monotonic() < deadline, cluster.wmrl("job", "logs", "long", *where).stdout
        time.sleep(0.5)
    stopped = cluster.wmrl("job", "stop", "long", *where)
    assert "long: asked to stop" in stopped.stderr
    assert cluster.wmrl("job", "logs", "long", "--follow", *where).returncode != 0
    assert cluster.wmrl("job", "status", "long", *where).stdout.strip() == "STOPPED"
    newest = run.newest_checkpoint()
    assert newest is not None, cluster.wmrl("job", "logs", "long", *where).stdout
    assert int(newest.name) % 5 == 0
    study(num_updates=int(newest.name) + 10, eval_every=0, checkpoint_every=5)
    again = cluster.wmrl("job", "submit", *where, "--", "train", file, "--run-dir", run.path, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (run.result() or {})["updates"] == int(newest.name) + 10
    assert cluster.wmrl("job", "stop", "long", *where).stderr.strip() == "long has ended already: STOPPED"


def test_a_sweep_too_where_the_job_sets_the_threads(cluster: Head, tmp_path: Path) -> None:
    study, env, out = tmp_path / "study.yaml", tmp_path / "env.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(tiny_values(tmp_path / "data", variants={"baseline": {}})))
    env.write_text(yaml.safe_dump({"env_vars": {"OMP_NUM_THREADS": "2"}}))
    done = cluster.wmrl("job", "submit", "--address", cluster.address, "--runtime-env", env, "--", "sweep", study, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.glob("plane/*/result.json"))) == 2 and (out / "results.parquet").exists()


def test_the_exit_code_of_a_command_that_fails_there_comes_home(cluster: Head, tmp_path: Path) -> None:
    where = ("--address", cluster.address, "--no-upload")
    done = cluster.wmrl("job", "submit", *where, "--", "evaluate", tmp_path / "nothing")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nothing" in done.stdout  # the command's own error
    assert "FAILED" in done.stderr


@pytest.mark.parametrize("token", ["", "0123456789abcdef0123456789abcdef"])
def test_a_wrong_token_or_none_is_refused_in_one_line(cluster: Head, token: str) -> None:
    refused = Head(cluster.folder, cluster.address, token, {k: v for k, v in cluster.env.items() if "TOKEN" not in k})
    refused.env["HOME"] = str(cluster.folder)  # where Ray would find the user's own
    if not token:
        refused.env["RAY_AUTH_MODE"] = "disabled"
    done = refused.wmrl("job", "submit", "--address", cluster.address, "--no-upload", "doctor", token=token)
    assert (done.returncode, done.stdout) == (2, "")
    assert "refuses the token, or misses one: set RAY_AUTH_MODE=token" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "0123456789abcdef" not in done.stderr


def test_nobody_without_the_token_sees_or_runs_anything(cluster: Head) -> None:
    for path in ("/api/jobs/", "/api/version"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(cluster.address + path, timeout=10)
        assert caught.value.code == 401


def test_no_such_job_is_one_line(cluster: Head) -> None:
    done = cluster.wmrl("job", "status", "nobody", "--address", cluster.address)
    assert done.returncode == 2
    assert "no such job" in done.stderr
