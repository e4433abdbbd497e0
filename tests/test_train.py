"""The reference loop, on a small dataset that the maker really makes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.core.small import OURS, batches, make
from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.core.batch import Batch
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import DataError
from wmrl_ray.policy import Policy
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir
from wmrl_ray.train import NonFiniteLossError, build_agent, build_replay, resolve_device, train, update_many

SMALL = {
    "model": {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 3, "num_samples": 0, "num_policy": 8, "num_elites": 4, "iterations": 1},
}


@pytest.fixture
def config(pointmaze_dataset: str) -> RunConfig:
    return RunConfig(
        algorithm="iql_tdmpc",
        dataset=pointmaze_dataset,
        num_updates=40,
        updates_per_call=5,
        batch_size=16,
        log_every=10,
        eval_every=0,
        eval_episodes=1,
        envs_per_runner=2,
        checkpoint_every=10,
        agent=SMALL,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(config) is the folder of a finished run with it, made once for all tests: they copy what they change."""
    made = {}

    def folder(config: RunConfig):
        key = json.dumps(to_dict(config), sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / "run"
            train(config, made[key])
        return made[key]

    return folder


def losses(path) -> dict[int, dict[str, float]]:
    return {
        line["update"]: {k: v for k, v in line.items() if k.startswith("loss/")}
        for line in RunDir(path).read_metrics()
        if "loss/model" in line
    }


def test_a_run_records_itself(config, tmp_path):
    events = []
    result = train(dataclasses.replace(config, eval_every=20, eval_episodes=2), tmp_path / "run", on_event=events.append)
    run = RunDir(tmp_path / "run")
    assert result["finished"] and result["updates"] == 40 and "eval/return_mean" in result
    assert run.config() == dataclasses.replace(config, eval_every=20, eval_episodes=2, device=resolve_device("auto")).resolved()
    assert run.config().agent["expectile"] == 0.7  # defaults are written out
    assert [e.kind for e in events][:1] == ["start"] and [e.kind for e in events][-1:] == ["end"]
    lines = run.read_metrics()
    assert [line["update"] for line in lines if "loss/model" in line] == [10, 20, 30, 40]
    assert [line["update"] for line in lines if "eval/return_mean" in line] == [20, 40]
    card = json.loads((run.path / "dataset.json").read_text())
    assert card["num_steps"] == 6000 and card["stand_in"]
    trajectories = np.load(run.path / "trajectories.npz")
    assert len(trajectories["offsets"]) == 3 and trajectories["obs"].shape == (trajectories["offsets"][-1], 4)
    assert json.loads((run.path / "environment.json").read_text())["packages"]["torch"]
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["00000030", "00000040"]  # the newest two


def test_the_same_seed_gives_the_same_run(config, trained, tmp_path):
    train(config, tmp_path / "again")
    train(dataclasses.replace(config, seed=1), tmp_path / "other")
    assert losses(trained(config)) == losses(tmp_path / "again") != losses(tmp_path / "other")


def test_stopping_writes_a_checkpoint_and_resuming_gives_the_losses_of_one_go(config, trained, tmp_path):
    calls = iter([False, False, True])
    stopped = train(config, tmp_path / "parts", should_stop=lambda: next(calls))
    assert not stopped["finished"] and stopped["updates"] == 15
    assert train(config, tmp_path / "parts", resume=True)["finished"]
    assert losses(tmp_path / "parts") == losses(trained(config))


@pytest.mark.parametrize("update", [20, 40])
def test_a_stop_during_an_evaluation_saves_at_once_and_the_next_session_repeats_it(config, trained, tmp_path, update):
    config = dataclasses.replace(config, eval_every=20, eval_episodes=2)
    whole = trained(config)
    seen = []
    stopped = train(
        config,
        tmp_path / "parts",
        on_event=lambda event: seen.append((event.kind, event.update)),
        should_stop=lambda: ("update", update) in seen,
    )
    run = RunDir(tmp_path / "parts")
    assert (stopped["updates"], stopped["finished"], run.result()) == (update, False, None)
    assert ("eval", update) not in seen and seen[-2:] == [("checkpoint", update), ("end", update)]
    assert train(config, run.path, resume=True)["finished"]
    assert losses(run.path) == losses(whole)
    assert evaluations(run.path) == evaluations(whole)


def evaluations(path) -> dict[int, float]:
    return {line["update"]: line["eval/return_mean"] for line in RunDir(path).read_metrics() if "eval/return_mean" in line}


KILLED = """
import json, os, sys, torch
from wmrl_ray.config import from_dict
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import train
config = from_dict(RunConfig, json.loads(sys.argv[1]))
train(config, sys.argv[2], resume=True, on_event=lambda e: print(e.kind, e.update, flush=True))
"""


def test_a_run_killed_with_sigkill_and_resumed_equals_one_in_one_go(config, tmp_path):
    endless = dataclasses.replace(config, num_updates=1_000_000, log_every=20, checkpoint_every=20)
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
    assert newest is not None and not (run.path / "result.json").exists()
    config = dataclasses.replace(endless, num_updates=int(newest.name) + 40)
    train(config, tmp_path / "killed", resume=True)
    train(config, tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    trees = [checkpoint.load(RunDir(tmp_path / name).newest_checkpoint())[0] for name in ("killed", "whole")]  # type: ignore[arg-type]
    for name, tensor in trees[0]["agent"]["model"].items():
        assert torch.equal(tensor, trees[1]["agent"]["model"][name]), name
    assert trees[0]["replay"]["generator"] == trees[1]["replay"]["generator"]


def test_a_corrupt_newest_checkpoint_is_passed_over(config, trained, tmp_path):
    shutil.copytree(trained(config), tmp_path / "run")
    run = RunDir(tmp_path / "run")
    newest = run.newest_checkpoint()
    assert newest is not None and newest.name == "00000040"
    (newest / "tensors.safetensors").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="damaged checkpoint.*00000040"):
        older = run.newest_checkpoint()
    assert older is not None and older.name == "00000030"
    (older / "tensors.safetensors").write_bytes(b"broken")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="all 2 checkpoints"):
        train(config, tmp_path / "run", resume=True)
    assert run.read_metrics()  # nothing was lost


def test_a_run_is_not_resumed_with_settings_that_learn_something_else(config, tmp_path):
    train(config, tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(ConfigError, match=r"agent\.lr = 0\.1: it was started with 0\.0003"):
        train(dataclasses.replace(config, agent={**SMALL, "lr": 0.1}), tmp_path / "run", resume=True)
    longer = dataclasses.replace(config, num_updates=60, runner_resources={"here": 1.0})  # on other nodes
    assert train(longer, tmp_path / "run", resume=True)["updates"] == 60
    assert RunDir(tmp_path / "run").config().num_updates == 60


def test_a_folder_that_holds_a_run_is_not_overwritten(config, trained):
    with pytest.raises(ConfigError, match="already holds a run"):
        train(config, trained(config))


def test_a_loss_that_is_not_finite_stops_with_the_metrics(config, tmp_path, pointmaze_dataset):
    dataset = open_dataset(pointmaze_dataset)
    agent, replay = build_agent(config, dataset), build_replay(config, dataset)
    with torch.no_grad():
        agent.model.dynamics[0].weight.fill_(torch.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(NonFiniteLossError, match="update 2 is not finite.*loss/consistency"):
        update_many(agent, replay, 2, 4)


@pytest.mark.parametrize("name", OURS)
def test_whichever_agent_diverges_the_run_ends_with_one_line(name):
    """Its losses see ten updates of what is not finite before anybody looks."""
    agent, rows = make(name, lr=1e30), iter(batches(name, 10))
    replay = SimpleNamespace(sample=lambda *_, **__: next(rows))
    with pytest.raises(NonFiniteLossError, match=r"^update 10 is not finite: \{.*\}; lower agent.lr or check .*$"):
        update_many(agent, replay, 10, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"algorithm": "iqltdmpc"}, ConfigError, "did you mean 'iql_tdmpc'"),
        ({"agent": {"expectle": 0.9}}, ConfigError, "did you mean 'expectile'"),
        ({"env": "Pendulum-v1"}, DataError, "Pendulum-v1"),
        ({"dataset": "wmrl/nothing-v0"}, DataError, "wmrl/nothing-v0"),
        ({"device": "gpu"}, ConfigError, "allowed: auto, cpu, cuda"),
        ({"device": "cuda:7"}, ConfigError, "torch sees 0 GPUs"),
        *(({"device": name}, ConfigError, f"device = '{name}'; allowed") for name in ("mps", "meta", "xpu", "cuda:x", "cuda:")),
        ({"agent": {"plan": {"horizon": 5000, "num_samples": 0, "iterations": 1, "num_policy": 64}}}, DataError, "5000"),
    ],
)
def test_a_users_mistake_is_named_before_anything_is_written(config, tmp_path, change, error, message):
    if change.get("device") == "cuda:7" and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that GPU")
    with pytest.raises(error, match=message):
        train(dataclasses.replace(config, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_device_is_decided_once_and_a_lost_gpu_is_not_quietly_the_cpu(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    run = RunDir(tmp_path / "run")
    train(config, run.path)
    assert config.device == "auto" and run.config().device == "cpu"
    run.write_config(dataclasses.replace(config, device="cuda"))  # as if it had begun on a GPU
    longer = dataclasses.replace(config, num_updates=60)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    with pytest.raises(ConfigError, match=r"device = 'cuda', but torch sees 0 GPUs \(CUDA_VISIBLE_DEVICES = '9'\)"):
        train(longer, run.path, resume=True)
    run.write_config(longer)  # what `wmrl train CONFIG --resume` does first
    assert run.config().device == "cuda"
    assert train(dataclasses.replace(longer, device="cpu"), run.path, resume=True)["updates"] == 60
    assert run.config().device == "cpu"


def test_two_ranks_start_from_the_same_weights_and_draw_their_own_windows(config, pointmaze_dataset):
    dataset = open_dataset(pointmaze_dataset)
    agents = [build_agent(config, dataset, rank) for rank in (0, 1)]
    for a, b in zip(agents[0].model.parameters(), agents[1].model.parameters(), strict=True):
        assert torch.equal(a, b)
    batches: list[Batch] = [build_replay(config, dataset, rank).sample(8, 3) for rank in (0, 1)]
    assert not torch.equal(batches[0].obs, batches[1].obs)
    assert not torch.equal(agents[0].update_generator.get_state(), agents[1].update_generator.get_state())


def test_a_policy_acts_as_the_trained_agent_without_the_dataset(config, trained):
    policy = Policy.load(trained(config))
    obs = np.zeros((3, 4), np.float32)
    policy.reset(seed=5)
    first, second = policy.act(obs), policy.act(obs)
    policy.reset(seed=5)
    assert first.shape == (3, 2) and np.array_equal(policy.act(obs), first) and not np.array_equal(first, second)
    with pytest.raises(ValueError, match="3 environments; call reset"):
        policy.act(np.zeros(4, np.float32))
    policy.reset()
    assert policy.act(np.zeros(4, np.float32)).shape == (2,)
    with pytest.raises(ValueError, match=r"takes \[4\] or \[W, 4\]"):
        policy.act(np.zeros(5, np.float32))


def test_a_policy_loads_without_pickle(config, trained, monkeypatch):
    import pickle

    run = trained(config)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled something")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert Policy.load(run).meta["algorithm"] == "iql_tdmpc"


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Policy.load(tmp_path / "absent")


def test_time_adds_up_over_sessions(config, tmp_path):
    calls = iter([True])
    train(config, tmp_path / "run", should_stop=lambda: next(calls))
    time.sleep(0.01)
    train(config, tmp_path / "run", resume=True)
    times = [line["time_s"] for line in RunDir(tmp_path / "run").read_metrics()]
    assert times == sorted(times)


def test_a_finished_run_that_trains_further_has_no_result_until_it_has_finished(config, trained, tmp_path):
    shutil.copytree(trained(config), tmp_path / "run")
    run, further = RunDir(tmp_path / "run"), dataclasses.replace(config, num_updates=60)
    assert not train(further, run.path, resume=True, should_stop=lambda: True)["finished"]
    assert run.result() is None
    train(further, run.path, resume=True)
    assert (run.result() or {})["updates"] == 60


def test_resuming_a_finished_run_keeps_its_result(config, tmp_path):
    first = train(config, tmp_path / "run")
    again = train(config, tmp_path / "run", resume=True)
    assert again["eval/return_mean"] == first["eval/return_mean"] and again["finished"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["eval/return_mean"] == first["eval/return_mean"]
