"""`wmrl train` of an agent that takes its own steps: trained, stopped, resumed, evaluated, reported."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.fakes import Imitator, OnlineTDMPC, registered
from wmrl_ray.cli.display import LivePanel
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event

ROOT = Path(__file__).parents[2]
MAIN = """
from tests.fakes import OnlineTDMPC
from wmrl_ray.core.agents import AGENTS
AGENTS["online"] = OnlineTDMPC
from wmrl_ray.cli import main
main()
"""


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(online=OnlineTDMPC, imitator=Imitator):
        yield


@pytest.fixture
def drift(tmp_path: Path) -> Path:
    """A YAML file: 80 updates in a cheap environment."""
    values: dict[str, Any] = {
        "algorithm": "online",
        "env": "Drift-v0",
        "num_updates": 80,
        "batch_size": 8,
        "updates_per_call": 10,
        "eval_every": 40,
        "eval_episodes": 2,
        "checkpoint_every": 20,
        "log_every": 20,
        "num_eval_runners": 0,
        "envs_per_runner": 2,
        "online": {"seed_steps": 40},
        "agent": {
            "model": {"latent_dim": 8, "encoder_dim": 8, "hidden_dim": 8},
            "plan": {"horizon": 2, "num_samples": 4, "num_policy": 4, "num_elites": 2, "iterations": 1},
        },
    }
    path = tmp_path / "drift.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_online_run_goes_from_a_file_to_a_report(wmrl, drift, tmp_path):
    trained = wmrl("train", drift, "--no-ray")
    assert trained.code == 0, trained.err
    run = tmp_path / "runs" / "drift" / "online-seed0"
    assert "80 steps of its own in" in trained.err
    updates = [event for event in trained.events if event["event"] == "update"]
    assert [event["online/steps"] for event in updates] == [40, 40, 60, 80]
    assert trained.events[-1]["steps"] == 80

    evaluated = json.loads(wmrl("evaluate", run, "--episodes", 2, "--num-envs", 2, "--json").out)
    assert evaluated["env"] == "Drift-v0" and evaluated["dataset"] is None and evaluated["score_mean"] is None
    assert evaluated["return_mean"] == pytest.approx(trained.events[-1]["eval/return_mean"], rel=1e-5)
    assert "online at update 80 in Drift-v0" in wmrl("evaluate", run, "--episodes", 1).out

    reported = wmrl("report", "runs", "-o", "page.html")
    assert reported.code == 0, reported.err
    page, numbers = (tmp_path / "page.html").read_text(), json.loads((tmp_path / "page.json").read_text())
    assert "<h3>Drift-v0</h3>" in page and "agent steps" in page and "Dataset card" not in page
    assert [s["scale"] for s in numbers["scales"]] == ["returns"] and numbers["runs"][0]["complete"]
    assert not any("dataset" in warning for warning in numbers["warnings"])


def test_a_resumed_run_goes_on_after_ctrl_c(wmrl, drift, tmp_path):
    command = [sys.executable, "-c", MAIN, "train", str(drift), "--no-ray", "--set", "num_updates=100000"]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "update":
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "resume with: wmrl train" in process.stderr.read()
    stopped = int(max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()))
    resumed = wmrl("train", tmp_path / "run", "--no-ray", "--resume", "--set", f"num_updates={stopped + 20 - stopped % 20}")
    assert resumed.code == 0, resumed.err
    assert resumed.events[0]["update"] == stopped and resumed.events[-1]["finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["algorithm=tdmpc", "dataset=x"], "takes no steps of its own; drop online.seed_steps"),
        (["algorithm=tdmpc"], "learns from a dataset; set dataset"),
        (["algorithm=imitator"], "imitates; set dataset = <demonstrations>"),
        (["env=Drfit-v0"], "did you mean"),
        (["env=null"], "steps in an environment; set env"),
        (["online.seed_step=3"], "did you mean 'seed_steps'"),
        (["online.num_runners=2"], "num_runners = 2 are Ray actors"),
    ],
)
def test_mistakes_are_one_line(wmrl, drift, changes, message):
    outcome = wmrl("train", drift, "--no-ray", *(word for change in changes for word in ("--set", change)))
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_demonstrations_of_another_environment_are_refused(wmrl, drift, pointmaze_dataset):
    outcome = wmrl("train", drift, "--no-ray", "--set", "algorithm=imitator", "--set", f"dataset={pointmaze_dataset}")
    assert outcome.code == 2 and "has obs_dim = 4, but environment 'Drift-v0' has 3" in outcome.err


def test_the_panel_shows_steps_and_the_episodes_return():
    panel = LivePanel(RunConfig(algorithm="online", env="Drift-v0", num_updates=1000), "runs/x")
    panel.on_event(Event("start", 0, 1000, {}))
    for step, value in ((2500, -3.0), (2600, 12.5)):
        panel.on_event(Event("update", 500, 1000, {"online/steps": step, "online/episodes": 26.0, "online/return_mean": value}))
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    console.print(panel.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("online · Drift-v0 · seed 0", "2,600 in 26 episodes", "return 12.5", "▁█"):
        assert part in text
