"""The online loop without Ray: its clock, what it records, and continuation to the bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import ImageActor, Imitator, OnlineTDMPC, registered
from wmrl_ray import checkpoint
from wmrl_ray.collect import Collector
from wmrl_ray.config import ConfigError, from_dict, to_dict
from wmrl_ray.data.datasets import dataset_from_episodes
from wmrl_ray.data.episode import DataError
from wmrl_ray.online import Clock, make_clock, train_online
from wmrl_ray.policy import Policy
from wmrl_ray.run import OnlineConfig, RunConfig, RunDir
from wmrl_ray.train import build_replay, train, with_episode_len

SMALL = {
    "model": {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 3, "num_samples": 8, "num_policy": 4, "num_elites": 4, "iterations": 2},
}


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(online=OnlineTDMPC, imitator=Imitator, images=ImageActor):
        yield


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        algorithm="online",
        env="Drift-v0",
        num_updates=120,
        updates_per_call=10,
        batch_size=16,
        log_every=20,
        eval_every=0,
        eval_episodes=2,
        envs_per_runner=2,
        checkpoint_every=20,
        online=OnlineConfig(num_envs=2, seed_steps=60, capacity=80),
        agent=SMALL,
    )


def learned(path: Path) -> list[dict[str, float]]:
    """What a run logged, without its times."""
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in RunDir(path).read_metrics()]


def same_checkpoint(a: Path, b: Path) -> None:
    trees = [checkpoint.load(RunDir(path).newest_checkpoint() or path)[0] for path in (a, b)]
    for tree in trees:
        for name in ("act_s", "env_s"):
            del tree["collector"]["statistics"][name]
    equal(*trees)


def equal(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            equal(*pair, f"{path}/{i}")
    elif isinstance(a, torch.Tensor | np.ndarray):
        assert np.array_equal(np.asarray(a), np.asarray(b)), path
    else:
        assert a == b, path


# -- the clock ----------------------------------------------------------------------------------------------------------------


def simulated(online: OnlineConfig, seed_steps: int, until: int, call: int) -> list[tuple[int, int, bool]]:
    """(steps so far, updates so far, random) after each turn, up to `until` updates in calls of `call`."""
    clock, steps, update, seen = Clock(online, seed_steps), 0, 0, []
    for end in range(call, until + 1, call):
        while update < end:
            turn = clock.turn(update, steps, end)
            assert turn.steps or turn.updates
            steps += turn.steps * online.total_envs
            update += turn.updates
            seen.append((steps, update, turn.random))
        assert update == end
    return seen


def test_the_papers_loop_seeds_then_updates_as_often_then_alternates() -> None:
    seen = simulated(OnlineConfig(), 30, until=60, call=10)
    assert seen[0] == (30, 0, True)
    assert seen[1:4] == [(30, 10, False), (30, 20, False), (30, 30, False)]
    assert seen[4:] == [(30 + i, 30 + i, False) for i in range(1, 31)]


@pytest.mark.parametrize(
    "online",
    [
        OnlineConfig(num_envs=4),
        OnlineConfig(num_envs=2, updates_per_step=2.0),
        OnlineConfig(num_envs=2, updates_per_step=0.5),
        OnlineConfig(num_runners=2, num_envs=1, steps_per_turn=5, updates_per_step=0.5),
        OnlineConfig(num_envs=3, steps_per_turn=2, updates_per_step=1 / 3),
    ],
)
def test_updates_wait_for_their_steps_and_steps_for_their_updates(online: OnlineConfig) -> None:
    seen = simulated(online, 50, until=400, call=20)
    per_turn = round(online.updates_per_turn)
    for steps, update, is_random in seen:
        if not is_random:
            assert update <= steps * online.updates_per_step + 1e-6
        if steps > 50 + online.total_envs:  # after the first burst neither is ahead by more than a turn
            assert steps * online.updates_per_step - update < per_turn + online.total_envs * online.updates_per_step
    assert seen[-1][1] == 400
    assert sum(1 for *_, is_random in seen if is_random) == 1


def test_the_number_of_random_steps_comes_from_the_step_limit() -> None:
    config = RunConfig(algorithm="online", env="Drift-v0", agent=SMALL)
    assert make_clock(config, "Drift-v0").seed_steps == 1000
    assert make_clock(dataclasses.replace(config, env_config={"max_episode_steps": 700}), "Drift-v0").seed_steps == 3500
    many = dataclasses.replace(config, online=OnlineConfig(num_envs=100))
    assert make_clock(many, "Drift-v0").seed_steps == 2000  # an episode of each
    with pytest.raises(ConfigError, match=r"no step limit; set online\.seed_steps"):
        make_clock(dataclasses.replace(config, env_config={"max_episode_steps": -1}), "Drift-v0")


# -- a run --------------------------------------------------------------------------------------------------------------------


def test_a_run_records_itself(config: RunConfig, tmp_path: Path) -> None:
    events = []
    result = train_online(dataclasses.replace(config, eval_every=40), tmp_path / "run", on_event=events.append)
    run = RunDir(tmp_path / "run")
    assert result["finished"] and result["updates"] == result["steps"] == 120 and result["episodes"] > 5
    assert run.config() == dataclasses.replace(config, eval_every=40).resolved()
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


def test_an_environment_without_a_step_limit_needs_a_discount(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, algorithm="tdmpc2", agent=TDMPC2, env_config={"max_episode_steps": -1})
    with pytest.raises(ConfigError, match=r"no step limit; set agent\.episode_len.*agent\.gamma"):
        train_online(config, tmp_path)
    given = dataclasses.replace(config, agent={**TDMPC2, "gamma": 0.9})
    assert with_episode_len(given, "Drift-v0") == given


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


KILLED = """
import json, sys
from tests.fakes import OnlineTDMPC
from wmrl_ray.config import from_dict
from wmrl_ray.core.agents import AGENTS
AGENTS["online"] = OnlineTDMPC
from wmrl_ray.online import train_online
from wmrl_ray.run import RunConfig
config = from_dict(RunConfig, json.loads(sys.argv[1]))
train_online(config, sys.argv[2], resume=True, on_event=lambda e: print(e.kind, e.update, flush=True))
"""


def test_a_run_killed_with_sigkill_and_resumed_equals_one_in_one_go(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, num_updates=300, log_every=100)
    command = [sys.executable, "-c", KILLED, json.dumps(to_dict(config)), str(tmp_path / "killed")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("checkpoint") and int(line.split()[1]) >= 80:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert RunDir(tmp_path / "killed").result() is None
    train_online(config, tmp_path / "killed", resume=True)
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


# -- demonstrations -----------------------------------------------------------------------------------------------------------


def test_half_of_every_batch_is_the_experts(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = Collector("Drift-v0", num_envs=4, seed=9).collect(None, 60)
    card = {"env_id": "Drift-v0", "ref_min_score": -20.0, "ref_max_score": 20.0}
    dataset = dataset_from_episodes(episodes, name="expert", **card)
    monkeypatch.setattr("wmrl_ray.online.open_dataset", lambda uri: dataset)
    online = dataclasses.replace(config.online, num_demonstrations=3)
    config = dataclasses.replace(config, algorithm="imitator", dataset="expert", env=None, online=online)
    train_online(config, tmp_path / "whole")
    lines = RunDir(tmp_path / "whole").read_metrics()
    assert all(line["batch/expert"] == 0.5 for line in lines if "loss/model" in line)
    assert any("eval/score_mean" in line for line in lines)  # on the demonstrations' scale
    assert json.loads((tmp_path / "whole" / "dataset.json").read_text())["name"] == "expert"
    answers = iter([False] * 4 + [True])
    train_online(config, tmp_path / "parts", should_stop=lambda: next(answers))
    train_online(config, tmp_path / "parts", resume=True)
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")

    replay = build_replay(config, dataset)
    with pytest.raises(DataError, match="replay is empty"):
        replay.check_window(3)
    for episode in episodes[5:9]:
        replay.add(episode)
    batch = replay.sample(200, 3, return_to_go=True)
    assert batch.is_expert is not None and batch.obs.shape == (400, 4, 3) and batch.return_to_go is not None

    def sources(rows: torch.Tensor) -> set[int]:
        """Numbers of the episodes that the rows' first observations are of."""
        return {n for obs in rows for n, e in enumerate(episodes) if (e.obs == obs.numpy()).all(1).any()}

    assert sources(batch.obs[batch.is_expert][:, 0]) == {0, 1, 2}
    assert sources(batch.obs[~batch.is_expert][:, 0]) == {5, 6, 7, 8}


# -- mistakes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "tdmpc"}, "learns from a dataset; set dataset"),
        ({"algorithm": "tdmpc", "dataset": "x"}, r"takes no steps of its own; drop online\.num_envs, online\.seed_steps"),
        ({"algorithm": "imitator"}, r"imitates; set dataset = <demonstrations>"),
        ({"env": None}, "steps in an environment; set env"),
        ({"online": {"num_envs": 3}}, r"updates_per_call = 10 is not a multiple of the 3 updates of a turn"),
        ({"online": {"updates_per_step": 0.3}}, r"the 0\.3 updates of a turn"),
        ({"online": {"num_demonstrations": 5}}, "num_demonstrations, but no dataset"),
        ({"online": {"schedule": "asynchronous"}}, "online: .*needs at least 1 runner"),
        ({"online": {"capacity": 0}}, r"online: capacity = 0"),
        ({"online": {"nun_envs": 2}}, "did you mean 'num_envs'"),
    ],
)
def test_a_users_mistake_is_named_at_the_door(config: RunConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, {**to_dict(config), **change})


def test_a_run_that_cannot_go_on_says_why(config: RunConfig, tmp_path: Path) -> None:
    with_runners = dataclasses.replace(config, online=OnlineConfig(num_runners=2, seed_steps=60))
    with pytest.raises(ConfigError, match="num_runners = 2 are Ray actors"):
        train_online(with_runners, tmp_path / "run")
    with pytest.raises(ConfigError, match="takes its own steps; train it with online"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    early = dataclasses.replace(config, online=OnlineConfig(seed_steps=1))
    with pytest.raises(ConfigError, match=r"after 1 steps: the replay is empty.*raise online\.seed_steps"):
        train_online(early, tmp_path / "run")


def test_a_resumed_run_keeps_its_schedule_but_may_drop_unfinished_episodes(config: RunConfig, tmp_path: Path) -> None:
    train_online(config, tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(ConfigError, match=r"online\.num_envs = 1: it was started with 2"):
        train_online(
            dataclasses.replace(config, online=OnlineConfig(seed_steps=60, capacity=80)), tmp_path / "run", resume=True
        )
    dropped = dataclasses.replace(config, online=dataclasses.replace(config.online, replay_unfinished=False))
    assert train_online(dropped, tmp_path / "run", resume=True)["finished"]


def test_a_replay_without_room_for_an_episode_is_refused_at_the_door(config: RunConfig, tmp_path: Path) -> None:
    small = dataclasses.replace(config, online=dataclasses.replace(config.online, capacity=19))
    with pytest.raises(ConfigError, match=r"online\.capacity = 19, but an episode of Drift-v0 has up to 20 steps"):
        train_online(small, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_updates_of_a_turn_may_be_whole_only_but_for_rounding(config: RunConfig) -> None:
    uneven = OnlineConfig(num_envs=10, updates_per_step=0.7 + 0.1 + 0.1 + 0.1)
    assert uneven.updates_per_turn != 10
    dataclasses.replace(config, online=uneven)
    with pytest.raises(ConfigError, match="the 1e-10 updates of a turn"):
        dataclasses.replace(config, online=OnlineConfig(updates_per_step=1e-10))


def test_environments_are_closed_when_a_run_fails(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Collector, "close", lambda self: closed.append(self))
    early = dataclasses.replace(config, online=dataclasses.replace(config.online, seed_steps=1))
    with pytest.raises(ConfigError, match="the replay is empty"):
        train_online(early, tmp_path / "run")
    assert len(closed) == 1
