"""Runs without Ray: what they record, and that stopped, killed and resumed they are the run in one go."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.online.runs import SMALL, learned, same_checkpoint
from wmrl_ray import checkpoint
from wmrl_ray.config import to_dict
from wmrl_ray.online import train_online
from wmrl_ray.policy import Policy
from wmrl_ray.run.config import OnlineConfig, RunConfig
from wmrl_ray.run.folder import RunDir
from wmrl_ray.train import resolve_device


def test_a_run_records_itself(config: RunConfig, tmp_path: Path) -> None:
    events = []
    result = train_online(dataclasses.replace(config, eval_every=40), tmp_path / "run", on_event=events.append)
    run = RunDir(tmp_path / "run")
    assert result["finished"] and result["updates"] == result["steps"] == 120 and result["episodes"] > 5
    assert run.config() == dataclasses.replace(config, eval_every=40, device=resolve_device("auto")).resolved()
    assert not (run.path / "dataset.json").exists() and run.result() == result
    lines = run.read_metrics()
    logged = [line for line in lines if "loss/model" in line]
    assert [line["update"] for line in logged] == [20, 40, 60, 80, 100, 120]
    assert [line["online/steps"] for line in logged] == [60, 60, 60, 80, 100, 120]
    assert all(line["online/replay_steps"] <= 80 for line in logged)
    for name in (
        "online/episodes",
        "online/return_mean",
        "time/act_s",
        "time/env_s",
        "time/update_s",
        "online/plan_value_mean",
    ):
        assert any(name in line for line in logged), name
    assert [line["update"] for line in lines if "eval/return_mean" in line] == [40, 80, 120]
    assert not any("eval/score_mean" in line for line in lines)
    assert {e.kind for e in events} == {"start", "update", "eval", "checkpoint", "end"}
    assert (run.path / "trajectories.npz").exists()


TDMPC2 = {
    "model": {"latent_dim": 8, "encoder_dim": 8, "mlp_dim": 8, "simnorm_dim": 4, "num_critics": 2, "num_bins": 11},
    "plan": {"num_samples": 4, "num_policy": 4, "num_elites": 4, "iterations": 1},
}


@pytest.mark.parametrize(("given", "length", "discount"), [({}, 100, 0.95), ({"episode_len": 500}, 500, 0.99)])
def test_the_discount_comes_from_the_environments_step_limit(
    config: RunConfig, tmp_path: Path, given: dict[str, Any], length: int, discount: float
) -> None:
    """In the agent, config.json and checkpoints alike; also resumed with the settings that leave it out."""
    config = dataclasses.replace(
        config,
        algorithm="tdmpc2",
        agent={**TDMPC2, **given},
        env_config={"max_episode_steps": 100},
        num_updates=20,
        checkpoint_every=20,
        online=OnlineConfig(num_envs=2, seed_steps=220),
    )
    train_online(config, tmp_path)
    run = RunDir(tmp_path)
    policy = Policy.load(run.newest_checkpoint() or tmp_path)
    assert policy.agent.config.discount == pytest.approx(discount)  # type: ignore[attr-defined]
    assert run.config().agent["episode_len"] == policy.meta["agent"]["episode_len"] == length
    longer = dataclasses.replace(config, num_updates=40)
    assert run.difference(longer) is None
    run.write_config(longer)  # as the command line does before the loop
    assert run.config().agent["episode_len"] == length
    assert train_online(longer, tmp_path, resume=True)["updates"] == 40
    assert run.config().agent["episode_len"] == length
    other = dataclasses.replace(longer, agent={**TDMPC2, "episode_len": 300})
    assert run.difference(other) == f"agent.episode_len = 300: it was started with {length}"


def test_the_same_seed_gives_the_same_run_and_evaluations_change_nothing(config: RunConfig, tmp_path: Path) -> None:
    train_online(config, tmp_path / "a")
    train_online(dataclasses.replace(config, eval_every=20, eval_episodes=3), tmp_path / "b")
    train_online(dataclasses.replace(config, seed=1), tmp_path / "c")
    a, b, c = ([line for line in learned(tmp_path / name) if "loss/model" in line] for name in "abc")
    assert a == b != c
    same_checkpoint(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("calls", [1, 7])
def test_a_stopped_and_resumed_run_is_the_run_in_one_go_to_the_bit(config: RunConfig, tmp_path: Path, calls: int) -> None:
    train_online(config, tmp_path / "whole")
    answers = iter([False] * (calls - 1) + [True])
    stopped = train_online(config, tmp_path / "parts", should_stop=lambda: next(answers))
    assert not stopped["finished"] and stopped["updates"] == 10 * calls
    tree, _ = checkpoint.load(RunDir(tmp_path / "parts").newest_checkpoint() or tmp_path)
    assert any(len(saved["action"]) for saved in tree["collector"]["unfinished"])  # the hard part is there
    assert train_online(config, tmp_path / "parts", resume=True)["finished"]
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("update", [20, 60])
def test_a_stop_during_an_evaluation_does_not_keep_the_checkpoint_waiting(
    config: RunConfig, tmp_path: Path, update: int
) -> None:
    config = dataclasses.replace(config, num_updates=60, log_every=10, eval_every=20, eval_episodes=2)
    train_online(config, tmp_path / "whole")
    seen: list[tuple[str, int]] = []
    stopped = train_online(
        config,
        tmp_path / "parts",
        on_event=lambda event: seen.append((event.kind, event.update)),
        should_stop=lambda: ("update", update) in seen,
    )
    assert (stopped["updates"], stopped["finished"]) == (update, False) and ("eval", update) not in seen
    assert train_online(config, tmp_path / "parts", resume=True)["finished"]
    whole, parts = (RunDir(tmp_path / name).read_metrics() for name in ("whole", "parts"))
    returns = [
        {line["update"]: line["eval/return_mean"] for line in lines if "eval/return_mean" in line} for lines in (whole, parts)
    ]
    assert returns[0] == returns[1] and sorted(returns[0]) == [20, 40, 60]
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")


KILLED = """
import json, sys
from tests.fakes import OnlineTDMPC
from wmrl_ray.config import from_dict
from wmrl_ray.core.agents import AGENTS
AGENTS["online"] = OnlineTDMPC
from wmrl_ray.online import train_online
from wmrl_ray.run.config import RunConfig
config = from_dict(RunConfig, json.loads(sys.argv[1]))
train_online(config, sys.argv[2], resume=True, on_event=lambda e: print(e.kind, e.update, flush=True))
"""


def test_a_run_killed_with_sigkill_and_resumed_equals_one_in_one_go(config: RunConfig, tmp_path: Path) -> None:
    endless = dataclasses.replace(config, num_updates=1_000_000)
    command = [sys.executable, "-c", KILLED, json.dumps(to_dict(endless)), str(tmp_path / "killed")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("checkpoint") and int(line.split()[1]) >= 40:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    run = RunDir(tmp_path / "killed")
    newest = run.newest_checkpoint()
    assert newest is not None and run.result() is None
    config = dataclasses.replace(endless, num_updates=int(newest.name) + 40)
    train_online(config, run.path, resume=True)
    train_online(config, tmp_path / "whole")
    assert learned(tmp_path / "killed") == learned(tmp_path / "whole")
    same_checkpoint(tmp_path / "killed", tmp_path / "whole")


def test_a_policy_of_an_online_run_acts(config: RunConfig, tmp_path: Path) -> None:
    train_online(config, tmp_path / "run")
    policy = Policy.load(tmp_path / "run")
    assert policy.meta["dataset"] is None and policy.meta["env"] == "Drift-v0"
    assert policy.act(np.zeros((5, 3), np.float32)).shape == (5, 2)


def test_images_are_learned_from_and_a_run_of_them_resumes(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium as gym

    for module in ("collect", "rollout"):
        monkeypatch.setattr(f"wmrl_ray.{module}.make_env", lambda env_id, **kwargs: gym.make(env_id, **kwargs))
    config = dataclasses.replace(config, algorithm="images", env="DriftImages-v0", agent={})
    train_online(config, tmp_path / "whole")
    answers = iter([False, True])
    train_online(config, tmp_path / "parts", should_stop=lambda: next(answers))
    train_online(config, tmp_path / "parts", resume=True)
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")
    tree, meta = checkpoint.load(RunDir(tmp_path / "whole").newest_checkpoint() or tmp_path)
    assert tree["replay"]["online"]["obs"].dtype == np.uint8 and meta["obs_dim"] == [3, 4, 4]
    policy = Policy.load(tmp_path / "whole")
    assert policy.act(np.zeros((3, 4, 4), np.uint8)).shape == (2,)
    with pytest.raises(ValueError, match=r"takes \[3, 4, 4\] or \[W, 3, 4, 4\]"):
        policy.act(np.zeros((3, 4), np.uint8))


@pytest.mark.slow
def test_an_agent_learns_from_its_own_steps(config: RunConfig, tmp_path: Path) -> None:
    agent = {"model": {"latent_dim": 16, "encoder_dim": 32, "hidden_dim": 32}, "plan": SMALL["plan"] | {"num_samples": 32}}
    config = dataclasses.replace(
        config, num_updates=600, updates_per_call=50, log_every=50, checkpoint_every=600, batch_size=32, eval_episodes=50,
        envs_per_runner=50, online=OnlineConfig(seed_steps=300), agent=agent,
    )  # fmt: skip
    result = train_online(config, tmp_path / "run")
    random = RunDir(tmp_path / "run").read_metrics()[0]["online/return_mean"]
    assert random < -15 and result["eval/return_mean"] > -9  # seen: -22 and -3
