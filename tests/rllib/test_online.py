"""On Ray an online run is the loop without it, to the bit where everything is local."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rllib import fakes
from tests.rllib.online_fakes import OwnTDMPC, run_config, small_online
from wmrl_ray import checkpoint
from wmrl_ray.collect import Collector, Statistics
from wmrl_ray.online import train_online
from wmrl_ray.policy import Policy
from wmrl_ray.rllib.metrics import Sums
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import OnlineConfig
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def logged(run_dir: Path) -> list[dict[str, float]]:
    """What was learned and collected, without times and evaluations (whose planners draw other rows of noise)."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(("time", "eval/"))} for line in lines]
    return [line for line in kept if len(line) > 1]


def restricted(lines: list[dict[str, float]], to: list[dict[str, float]]) -> list[dict[str, float]]:
    """With the keys of `to` only."""
    return [{k: line[k] for k in wanted} for line, wanted in zip(lines, to, strict=True)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without Ray."""
    path = tmp_path_factory.mktemp("plain") / "run"
    train_online(run_config(), path)
    return path


def test_with_everything_local_it_is_the_loop_without_ray_to_the_bit(plain: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    result = train_on_ray(run_config(), tmp_path / "ray", on_event=events.append)
    assert logged(tmp_path / "ray") == logged(plain)
    assert len(logged(plain)) == 5
    without = json.loads((plain / "result.json").read_text())
    assert list(result) == list(without)
    assert (result["steps"], result["episodes"]) == (without["steps"], without["episodes"]) == (120, 9)
    assert sorted(p.name for p in plain.iterdir()) == sorted(p.name for p in (tmp_path / "ray").iterdir())
    assert [event.kind for event in events].count("checkpoint") == 3


def test_with_demonstrations_too(plane_dataset: str, tmp_path: Path) -> None:
    config = run_config(algorithm="own_imitator", dataset=plane_dataset, num_updates=48, eval_every=48)
    train_online(config, tmp_path / "plain")
    result = train_on_ray(config, tmp_path / "ray")
    assert logged(tmp_path / "ray") == logged(tmp_path / "plain")
    assert result["eval/episodes"] == 4


MODEL = {"latent_dim": 16, "encoder_dim": 16, "mlp_dim": 16, "simnorm_dim": 4, "num_critics": 2}
PLAN = {"num_samples": 8, "num_policy": 4, "num_elites": 4, "iterations": 2}
PAPERS: dict[str, dict[str, Any]] = {
    "tdmpc2": {"model": {**MODEL, "num_bins": 11}, "plan": PLAN},
    "iq_mpc": {"model": {**MODEL, "num_bins": 1}, "plan": PLAN},
    "iq_sac": {},
}


@pytest.mark.parametrize("algorithm", PAPERS)
def test_the_papers_agents_too(plane_dataset: str, tmp_path: Path, algorithm: str) -> None:
    """Stopped after a checkpoint half-way and resumed; imitators with a few of the demonstrations."""
    imitates = algorithm != "tdmpc2"
    online = OnlineConfig(num_envs=2, seed_steps=24, num_demonstrations=20 if imitates else None)
    config = run_config(
        algorithm=algorithm,
        dataset=plane_dataset if imitates else None,
        num_updates=48,
        eval_every=0,
        checkpoint_every=24,
        log_every=12,
        online=online,
        env_config={"max_episode_steps": 10},
        agent=PAPERS[algorithm],
    )
    train_online(config, tmp_path / "plain")
    calls = iter(range(100))
    train_on_ray(config, tmp_path / "ray", should_stop=lambda: next(calls) >= 1)
    train_on_ray(config, tmp_path / "ray", resume=True)
    assert logged(tmp_path / "ray") == logged(tmp_path / "plain")
    assert len(logged(tmp_path / "plain")) == 4
    for run in (RunDir(tmp_path / "plain"), RunDir(tmp_path / "ray")):  # the environment's step limit, everywhere
        newest = run.newest_checkpoint()
        assert newest is not None
        if PAPERS[algorithm]:
            assert run.config().agent["episode_len"] == 10
            assert Policy.load(newest).agent.config.episode_len == 10  # type: ignore[attr-defined]


def test_one_runner_and_one_remote_learner_change_nothing(plain: Path, tmp_path: Path) -> None:
    config = run_config(num_learners=1, num_updates=48, eval_every=0)
    config = dataclasses.replace(config, online=dataclasses.replace(config.online, num_runners=1))
    train_on_ray(config, tmp_path / "ray")
    expected = logged(plain)[:2]
    assert restricted(logged(tmp_path / "ray"), expected) == expected


def test_stopped_and_resumed_it_is_the_run_that_was_never_stopped(plain: Path, tmp_path: Path) -> None:
    calls = iter(range(100))
    first = train_on_ray(run_config(), tmp_path / "run", should_stop=lambda: next(calls) >= 2)
    assert (first["updates"], first["finished"]) == (36, False)  # not at a line of the log
    second = train_on_ray(run_config(), tmp_path / "run", resume=True)
    assert (second["updates"], second["finished"]) == (120, True)
    assert logged(tmp_path / "run") == logged(plain)


def test_debug_takes_the_steps_of_all_runners_in_this_process(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = set()
    original = Collector.collect

    def noted(self: Collector, *args: Any) -> Any:
        pids.add(os.getpid())
        return original(self, *args)

    monkeypatch.setattr(Collector, "collect", noted)
    online = OnlineConfig(2, num_envs=2, schedule="asynchronous", seed_steps=48, capacity=200, steps_per_turn=1)
    train_on_ray(run_config(num_learners=2, online=online), tmp_path / "debug", debug=True)
    assert pids == {os.getpid()}
    assert logged(tmp_path / "debug") == logged(plain)  # in turn, as everything in one process


def test_rllibs_get_state_and_set_state_carry_everything_too() -> None:
    algorithm = small_online().build_algo()
    for _ in range(5):
        algorithm.train()
    state = algorithm.get_state()
    expected, steps = fakes.losses(algorithm.train()), algorithm.num_steps
    algorithm.set_state(state)
    assert (algorithm.num_updates, algorithm.num_steps) == (60, 60)
    assert fakes.losses(algorithm.train()) == expected
    assert algorithm.num_steps == steps == 72
    algorithm.stop()


def test_tune_reserves_a_cpu_for_every_runner() -> None:
    config = small_online(num_runners=3).evaluation(evaluation_num_env_runners=2)
    bundles = OwnTDMPC.default_resource_request(config.to_dict()).bundles
    assert len(bundles) == 1 + 3 + 2


def test_what_a_checkpoint_brought_counts_in_means_and_not_in_rates() -> None:
    restored = Statistics(steps=1000, episodes=2, return_sum=10.0, length_sum=1000, act_s=50.0, env_s=5.0)
    sums = Sums(statistics=copy.deepcopy(restored), before=restored, runner_wait_s=1.0)
    found = sums.metrics(has_runners=True)
    assert (found["online/steps_per_s"], found["time/runner_wait_share"], found["online/return_mean"]) == (0.0, 1.0, 5.0)
    sums.statistics.add(Statistics(steps=30, act_s=1.0))
    sums.started -= 10.0
    found = sums.metrics(has_runners=True)
    assert found["online/steps_per_s"] == pytest.approx(3.0, rel=0.05) and found["time/runner_wait_share"] == 0.5


def test_the_learners_replay_is_a_part_of_a_checkpoint_which_never_passes_the_driver(tmp_path: Path) -> None:
    algorithm = small_online().build_algo()
    for _ in range(5):
        algorithm.train()
    path = Path(algorithm.save_to_path(tmp_path / "saved"))
    (part,) = [stream["replay"] for stream in checkpoint.load(path / "policy", parts=False)[0]["streams"]]
    assert isinstance(part, checkpoint.Part) and (path / "policy" / part.file).is_file()
    whole = algorithm.policy_tree()  # what an older version wrote: the replay in the driver's own file
    assert flat(checkpoint.read_part(part)) == flat(whole["streams"][0]["replay"])
    older = tmp_path / "older"
    shutil.copytree(path, older)
    meta = checkpoint.read_meta(path / "policy")
    own = {"score": algorithm.score, "iteration": algorithm.training_iteration}
    checkpoint.save(older / "policy", {**whole, "algorithm": own}, meta)
    checkpoint.seal(older)
    going_on = []
    for source in (path, older, path):
        algorithm.restore_from_path(source)
        algorithm.train()
        tree = algorithm.policy_tree()
        going_on.append((flat(tree["streams"][0]["replay"]), flat(tree["agent"])))
        if len(going_on) == 2:  # and where a learner's node does not see the folder
            patched = pytest.MonkeyPatch()
            patched.setattr("wmrl_ray.rllib.online.sees", lambda part: False)
            patched.setattr("wmrl_ray.rllib.online_learner._read", lambda replay: replay)
    patched.undo()
    assert going_on[0] == going_on[1] == going_on[2]
    algorithm.stop()


def flat(tree: Any) -> dict[str, bytes]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {f"{key}/{name}": value for key, each in items for name, value in flat(each).items()}
    return {"": bytes(np.asarray(tree).tobytes()) if hasattr(tree, "shape") else repr(tree).encode()}
