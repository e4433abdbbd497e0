"""`train_on_ray` against the loop without Ray: the same losses, the same folder, the same events."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rllib import fakes
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.data.episode import DataError
from wmrl_ray.policy import Policy
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.rollout import evaluate
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event
from wmrl_ray.train import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def config(plane_dataset: str) -> RunConfig:
    return RunConfig(
        algorithm="iql_tdmpc",
        dataset=plane_dataset,
        env=fakes.PLANE,
        seed=5,
        num_updates=24,
        batch_size=8,
        updates_per_call=2,
        eval_every=12,
        eval_episodes=4,
        checkpoint_every=8,
        log_every=4,
        device="cpu",
        num_eval_runners=0,
        envs_per_runner=2,
        agent=fakes.TINY_AGENT,
    )


def logged(run_dir: Path, prefix: str = "") -> dict[int, dict[str, float]]:
    """The agent's metrics by update, without times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    values: dict[int, dict[str, float]] = {}
    for line in lines:
        own = {k: v for k, v in line.items() if "/" in k and not k.startswith(("time/", "eval/"))}
        if own:
            values[line["update"]] = own
    return values


@pytest.mark.parametrize("algorithm", ["iql_tdmpc", "tdmpc", "bc", "iql", "cql", "dt"])
def test_with_everything_local_it_logs_exactly_the_losses_of_the_loop_without_ray(
    config: RunConfig, tmp_path: Path, algorithm: str
) -> None:
    agents = {"bc": {}, "iql": {}, "cql": {"hidden_dim": 8}, "dt": {"embedding_dim": 8, "sequence": 5}}
    config = dataclasses.replace(config, algorithm=algorithm, agent=agents.get(algorithm, config.agent), num_updates=12)
    train(config, tmp_path / "plain")
    train_on_ray(config, tmp_path / "ray")
    plain, on_ray = logged(tmp_path / "plain"), logged(tmp_path / "ray")
    assert list(plain) == [4, 8, 12]
    assert plain == on_ray


def test_the_folder_and_the_events_are_those_of_the_loop_without_ray(config: RunConfig, tmp_path: Path) -> None:
    events: dict[str, list[Event]] = {"plain": [], "ray": []}
    plain = train(config, tmp_path / "plain", on_event=events["plain"].append)
    on_ray = train_on_ray(config, tmp_path / "ray", on_event=events["ray"].append)

    def shape(found: list[Event]) -> list[Any]:
        return [(e.kind, e.update, e.total, sorted(e.metrics)) for e in found]

    assert shape(events["ray"]) == shape(events["plain"])
    assert sorted(plain) == sorted(on_ray)
    assert on_ray["updates"] == 24
    assert on_ray["finished"] is True
    names = [
        sorted(p.relative_to(tmp_path / kind).as_posix() for p in (tmp_path / kind).iterdir()) for kind in ("plain", "ray")
    ]
    assert names[0] == names[1]
    assert json.loads((tmp_path / "ray" / "result.json").read_text()) == on_ray
    with np.load(tmp_path / "ray" / "trajectories.npz") as saved:
        assert len(saved["returns"]) == 4
        assert saved["returns"].mean() == pytest.approx(on_ray["eval/return_mean"])
    policy = Policy.load(tmp_path / "ray")
    assert policy.meta["update"] == 24
    assert policy.meta["run"] == to_dict(config.resolved())


def test_nothing_is_left_in_rllibs_own_folder(config: RunConfig, tmp_path: Path, rllib_folder: Path) -> None:
    before = sorted(rllib_folder.iterdir())
    train_on_ray(dataclasses.replace(config, num_updates=4, eval_every=0, checkpoint_every=4), tmp_path / "run")
    assert sorted(rllib_folder.iterdir()) == before


def test_stopped_and_resumed_it_logs_what_an_uninterrupted_run_logs(config: RunConfig, tmp_path: Path) -> None:
    calls = iter(range(100))
    first = train_on_ray(config, tmp_path / "run", should_stop=lambda: next(calls) >= 4)
    assert first["finished"] is False
    assert first["updates"] == 10
    assert not (tmp_path / "run" / "result.json").exists()
    second = train_on_ray(config, tmp_path / "run", resume=True)
    assert (second["updates"], second["finished"]) == (24, True)
    train(config, tmp_path / "plain")
    assert logged(tmp_path / "run") == logged(tmp_path / "plain")


@pytest.mark.parametrize("update", [12, 24])
def test_a_stop_during_an_evaluation_does_not_keep_the_checkpoint_waiting(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    monkeypatch.setattr("wmrl_ray.rllib.train.STOPPING_S", 0.0)
    config = dataclasses.replace(config, num_eval_runners=1, eval_episodes=60)
    seen: list[tuple[str, int]] = []
    first = train_on_ray(
        config,
        tmp_path / "run",
        on_event=lambda event: seen.append((event.kind, event.update)),
        should_stop=lambda: ("update", update) in seen,
    )
    assert (first["updates"], first["finished"]) == (update, False)
    assert seen[-2:] == [("checkpoint", update), ("end", update)] and ("eval", update) not in seen
    train_on_ray(config, tmp_path / "run", resume=True, on_event=lambda event: seen.append((event.kind, event.update)))
    assert [event for event in seen if event[0] == "eval"] == [("eval", 12), ("eval", 24)]
    assert (tmp_path / "run" / "result.json").exists()


def test_with_actors_it_learns_the_same_and_evaluates_beside_training(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, num_learners=1, num_eval_runners=2, eval_episodes=9)
    events: list[Event] = []
    result = train_on_ray(config, tmp_path / "actors", on_event=events.append)
    train(dataclasses.replace(config, num_eval_runners=0), tmp_path / "plain")
    assert logged(tmp_path / "actors") == logged(tmp_path / "plain")
    assert [e.update for e in events if e.kind == "eval"] == [12, 24]
    assert result["eval/episodes"] == 9
    assert math.isfinite(result["eval/return_mean"])


def test_every_way_to_evaluate_a_deterministic_policy_gives_the_same_returns(config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, algorithm="bc", agent={}, num_updates=8, eval_every=8, eval_episodes=5)
    train(config, tmp_path / "plain")
    train_on_ray(config, tmp_path / "local")
    train_on_ray(dataclasses.replace(config, num_eval_runners=2, envs_per_runner=1), tmp_path / "remote")
    returns = []
    for name in ("plain", "local", "remote"):
        with np.load(tmp_path / name / "trajectories.npz") as saved:
            returns.append(saved["returns"].tolist())
    policy = Policy.load(tmp_path / "remote")
    returns.append(evaluate(policy.agent, fakes.PLANE, 5, num_envs=3, seed=config.seed).returns)
    assert len(set(returns[0])) == 5
    for others in returns[1:]:
        assert others == pytest.approx(returns[0], rel=1e-6)


def test_debug_keeps_everything_in_this_process(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from wmrl_ray.rllib.env_runner import PlannerEnvRunner
    from wmrl_ray.rllib.learner import AgentLearner

    pids: set[tuple[str, int]] = set()
    for owner, name in ((AgentLearner, "update_many"), (PlannerEnvRunner, "run_episodes")):
        original = getattr(owner, name)

        def noted(self: Any, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            pids.add((_name, os.getpid()))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, noted)
    config = dataclasses.replace(config, num_learners=2, num_eval_runners=2, num_updates=12)
    train_on_ray(config, tmp_path / "debug", debug=True)
    assert pids == {("update_many", os.getpid()), ("run_episodes", os.getpid())}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"agent": {"plan": {"horizon": 50, "num_samples": 0, "num_policy": 64, "iterations": 1}}}, DataError),
        ({"dataset": "nowhere.npz"}, DataError),
        ({"agent": {"expectle": 0.9}}, ConfigError),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(config: RunConfig, tmp_path: Path, change: Any, error: type) -> None:
    with pytest.raises(error):
        train_on_ray(dataclasses.replace(config, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_loop_without_ray_is_refused_with_one_line(config: RunConfig, tmp_path: Path) -> None:
    calls = iter(range(100))
    train(config, tmp_path / "run", should_stop=lambda: next(calls) >= 3)
    with pytest.raises(CheckpointError, match="has no policy folder.*resume it there") as caught:
        train_on_ray(config, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
