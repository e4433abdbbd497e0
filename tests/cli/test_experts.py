"""`wmrl data make expert:TASK` without an expert: which configuration trains one, and the whole way with a fake one."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.fakes import OnlineTDMPC
from wmrl_ray.cli import experts
from wmrl_ray.cli.configs import Source
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents import AGENTS
from wmrl_ray.run.config import RunConfig


class Pusher(OnlineTDMPC):
    """Pushes the point of Drift-v0 back to 0."""

    @torch.no_grad()
    def act(self, obs: Any, plan_state: Any, is_first: Any, *, explore: bool = False, reward: Any = None) -> Any:
        return (-1.5 * obs[:, :2]).clamp(-1, 1), None, {}


DRIFT: dict[str, Any] = {
    "algorithm": "tdmpc2",
    "env": "Drift-v0",
    "num_updates": 20,
    "batch_size": 8,
    "updates_per_call": 10,
    "eval_episodes": 2,
    "eval_every": 0,
    "checkpoint_every": 10,
    "log_every": 10,
    "online": {"seed_steps": 20},
    "agent": {
        "model": {"latent_dim": 8, "encoder_dim": 8, "hidden_dim": 8},
        "plan": {"horizon": 2, "num_samples": 4, "num_policy": 4, "num_elites": 2, "iterations": 1},
    },
}


@pytest.mark.parametrize(
    ("task", "pixels", "config"),
    [
        ("dmc/walker-walk", False, "dmc-walker-walk-tdmpc2"),
        ("dmc/cartpole-swingup", False, "dmc-cartpole-swingup-tdmpc2"),
        ("myoHandKeyTurnFixed-v0", False, "myo-key-turn-tdmpc2"),
        ("dmc/cartpole-balance", True, "dmc-cartpole-balance-pixels-tdmpc2"),
        ("dmc/cartpole-balance", False, None),  # the one above is of images
        ("dmc/walker-walk", True, None),
        ("dmc/hopper-hop", False, None),
    ],
)
def test_the_configuration_is_chosen_by_what_it_trains(task: str, pixels: bool, config: str | None) -> None:
    found = experts.find_config(task, pixels)
    assert (None if found is None else found.label) == config


@pytest.mark.parametrize(
    ("task", "pixels", "label", "num_updates"),
    [
        ("dmc/hopper-hop", False, "dmc-hopper-hop-tdmpc2", 2_000_000),
        ("dmc/dog-run", False, "dmc-dog-run-tdmpc2", 7_000_000),
        ("dmc/humanoid-walk", False, "dmc-humanoid-walk-tdmpc2", 7_000_000),
        ("myoHandPenTwirlFixed-v0", False, "myoHandPenTwirlFixed-v0-tdmpc2", 2_000_000),
        ("PickCube-v1", False, "PickCube-v1-tdmpc2", 2_000_000),
        ("dmc/walker-run", True, "dmc-walker-run-pixels-tdmpc2", 2_000_000),
    ],
)
def test_other_tasks_are_trained_as_in_the_paper(
    task: str, pixels: bool, label: str, num_updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {}

    def train_source(source: Source, **kwargs: Any) -> None:
        asked.update(source=source, **kwargs)

    monkeypatch.setattr("wmrl_ray.cli.train.train_source", train_source)
    with redirect_stderr(io.StringIO()) as said, pytest.raises(ConfigError, match="has not finished; repeat the command"):
        experts.trained_expert(task, 3, no_ray=True, pixels=pixels)
    assert f"nothing in tune_configs trains {task}: 5 M parameters, {num_updates:,} updates" in said.getvalue()
    run_dir = Path("runs") / label / "tdmpc2-seed3"
    assert (asked["run_dir"], asked["seed"], asked["no_ray"], asked["resume"]) == (run_dir, 3, True, False)
    run = from_dict(RunConfig, asked["source"].values)
    assert (run.env, run.num_updates, run.batch_size, run.agent) == (task, num_updates, 256, {})
    assert run.env_config == ({"obs": "pixels"} if pixels else {})


def test_an_expert_is_trained_and_asked_for_its_demonstrations(wmrl, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(AGENTS, "tdmpc2", Pusher)
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "own.yaml").write_text(yaml.safe_dump(DRIFT))
    (tmp_path / "tune_configs" / "study.yaml").write_text("table: x\ndatasets: {}\n")  # no single run, not ours to read
    command = ["data", "make", "expert:Drift-v0", "--no-ray", "--episodes", 3, "--reference-episodes", 10, "--seed", 2]
    made = wmrl(*command, "--id", "wmrl/test-cli/drift-v0")
    assert made.code == 0, made.err
    assert "expert: runs/own/tdmpc2-seed2, trained as configured by own" in made.err
    assert "over 3 episodes (random policy" in made.err and made.out.endswith("wmrl/test-cli/drift-v0\n")
    assert (tmp_path / "runs" / "own" / "tdmpc2-seed2" / "result.json").exists()
    again = wmrl(*command, "--id", "wmrl/test-cli/drift-v0")  # refused before any training
    assert again.code == 2 and "exists already" in again.err and "expert:" not in again.err
    more = wmrl(*command, "--id", "wmrl/test-cli/more-v0")  # by the same expert
    assert more.code == 0 and "has finished its 20 updates already" in more.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expert:dmc/walker-walk", "--episodes", 0], "--episodes 0; at least 1"),
        (["expert:dmc/walker-walk", "--reference-episodes", 0], "--reference-episodes 0; at least 1"),
        (["expert:dmc/walker-walk", "--seed", -1], "--seed -1; it must not be negative"),
        (["expert:dmc/walker-walk", "--set", "agent.nonsense=3"], "nonsense"),
        (["expert:Drift-v0"], "no expert of Drift-v0: give one with --checkpoint RUN"),
        (["expert:PickCub-v1"], "did you mean 'PickCube-v1'"),
        (["expert:dmc/cartpole-swingpu"], "did you mean 'dmc/cartpole-swingup'"),
        (["expert:"], "expert: names no task; for example expert:dmc/walker-walk"),
        (["expert:myoHandPenTwirlFixed-v0", "--pixels"], "--pixels: MyoSuite has states only"),
        (["expert:dmc/walker-walk", "--steps", 100], "--steps 100: an expert's demonstrations are counted in episodes"),
        (["expert:dmc/walker-walk", "--checkpoint", "run", "--no-ray"], "--checkpoint gives a trained one"),
        (["expert:dmc/walker-walk", "--checkpoint", "run", "--pixels"], "--checkpoint gives a trained one"),
        (["pointmaze-umaze", "--no-ray"], "--no-ray and --pixels are for expert:TASK, not for pointmaze-umaze"),
        (["pointmaze-umaze", "--pixels"], "--no-ray and --pixels are for expert:TASK, not for pointmaze-umaze"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wmrl, arguments: list[object], message: str) -> None:
    outcome = wmrl("data", "make", *arguments)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
