"""`wmrl job submit` as far as it goes without a cluster."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("ray")


@pytest.fixture
def project(wmrl, tmp_path: Path) -> Path:
    """Where `wmrl` runs: one configuration and something that stays."""
    (tmp_path / "mine.yaml").write_text("algorithm: bc\ndataset: x\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "large").write_bytes(b"x" * 10_000)
    return tmp_path


def test_a_dry_run_prints_the_command_alone_and_tells_the_rest_on_stderr(wmrl, project: Path) -> None:
    outcome = wmrl("job", "submit", "--dry-run", "--address", "http://h:1", "--", "train", "mine.yaml", "--run-dir", "/nfs/r")
    assert outcome.code == 0
    words = shlex.split(outcome.out)
    assert words[:5] == ["ray", "job", "submit", "--address", "http://h:1"]
    assert words[words.index("--") + 1 :] == ["python", "-m", "wmrl_ray", "train", "mine.yaml", "--run-dir", "/nfs/r"]
    assert json.loads(words[words.index("--runtime-env-json") + 1])["working_dir"] == "."
    assert "upload: 0.0 MB in 1 files" in outcome.err
    assert "entry point: python -m wmrl_ray train mine.yaml" in outcome.err


def test_the_commands_own_options_need_no_dashes(wmrl, project: Path) -> None:
    outcome = wmrl("job", "submit", "--dry-run", "--no-upload", "train", "quick", "--run-dir", "/nfs/r", "--seed", 3)
    assert outcome.out.strip().endswith("-- python -m wmrl_ray train quick --run-dir /nfs/r --seed 3")
    assert "upload" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "mine.yaml"], "cannot submit `wmrl trian`; there are: train, sweep"),
        (["report", "x"], "cannot submit `wmrl report`"),
        (["job", "status", "x"], "cannot submit `wmrl job`"),
        (["train", "mine.yaml"], "no --run-dir: a job's own folder goes when the job ends"),
        (["train", "mine.yaml", "--run-dir", "runs/x"], "--run-dir runs/x: a job's own folder goes"),
        (["sweep", "iql_td_mpc/table2"], "no --out: a job's own folder goes"),
        (["train", "min.yaml", "--run-dir", "/nfs/r"], "no such file: min.yaml"),
        (["train", "quik", "--run-dir", "/nfs/r"], "did you mean 'quick'"),
        (["train", "mine.yaml", "--run-dirr", "/nfs/r"], "No such option"),
        (["train"], "Missing argument"),
        (["train", "mine.yaml", "--run-dir", "/nfs/r", "--set", "num_update=1"], "unknown key 'num_update'"),
        (["train", "mine.yaml", "--run-dir", "/nfs/r", "--set", "agent.lrr=1"], "unknown key 'agent.lrr'"),
        (["sweep", "iql_td_mpc/table2", "--out", "/nfs/o", "--set", "num_update=1"], "unknown key 'num_update'"),
        (["sweep", "iql_td_mpc/table2", "--out", "/nfs/o", "--seeds", "0-4"], "--seeds '0-4'; whole numbers"),
        (["sweep", "iql_td_mpc/table2", "--out", "/nfs/o", "--gpus-per-run", "1.5"], "gpus_per_run = 1.5; a share of one GPU"),
    ],
)
def test_a_command_that_would_fail_there_fails_here(wmrl, project: Path, arguments: list[str], message: str) -> None:
    outcome = wmrl("job", "submit", "--dry-run", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workingdir: .", "did you mean 'working_dir'"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("env_vars: {RAY_AUTH_TOKEN: s3cret}", "would show the cluster's token"),
        ("env_vars: {API_KEY: {s3cret: 1}}", "env_vars.API_KEY in the runtime environment: the value is no string"),
    ],
)
def test_a_bad_runtime_environment_is_one_line(wmrl, project: Path, text: str, message: str) -> None:
    (project / "env.yaml").write_text(text)
    outcome = wmrl("job", "submit", "--dry-run", "--runtime-env", "env.yaml", "doctor")
    assert outcome.code == 2
    assert message in outcome.err
    assert "s3cret" not in outcome.err + outcome.out


def test_secrets_of_the_environment_are_not_printed(wmrl, project: Path) -> None:
    (project / "env.yaml").write_text("env_vars: {WANDB_API_KEY: s3cret}")
    outcome = wmrl("job", "submit", "--dry-run", "--runtime-env", "env.yaml", "doctor")
    assert outcome.code == 0
    assert "s3cret" not in outcome.err + outcome.out
    assert "values shown as *** are sent as they are; whoever pastes the command must put them in first" in outcome.err


def test_passwords_in_urls_are_not_printed(wmrl, project: Path) -> None:
    url = "https://me:s3cret@h/simple"
    (project / "env.yaml").write_text(f"pip: {{packages: [x], pip_install_options: ['--index-url {url}']}}")
    outcome = wmrl("job", "submit", "--dry-run", "--runtime-env", "env.yaml", "data", "info", url)
    assert outcome.code == 0
    assert "s3cret" not in outcome.err + outcome.out
    assert "--index-url https://***@h/simple" in outcome.err and "must put them in first" in outcome.err


@pytest.mark.parametrize("text", ["learner=1", "[1]", '{"learner": true}'])
def test_resources_are_json(wmrl, project: Path, text: str) -> None:
    outcome = wmrl("job", "submit", "--dry-run", "--resources", text, "doctor")
    assert outcome.code == 2
    assert "expected JSON such as" in outcome.err


def test_a_run_folder_of_the_cluster_is_resumed_by_its_path(wmrl, project: Path) -> None:
    outcome = wmrl("job", "submit", "--dry-run", "train", "/nfs/run", "--resume")
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:1", "no Ray cluster answers at http://127.0.0.1:1"),
        ("foo", "foo is no address of a cluster's dashboard, such as http://127.0.0.1:8265"),
    ],
)
def test_nobody_there_is_one_line(wmrl, project: Path, address: str, message: str) -> None:
    outcome = wmrl("job", "submit", "--address", address, "--no-upload", "doctor")
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
