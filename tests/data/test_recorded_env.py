"""A dataset's environment is the one that it names: with its arguments, its step limit, and the module that registers it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.fakes import write_minari
from wmrl_ray import checkpoint
from wmrl_ray.cli.app import app
from wmrl_ray.data.catalog import import_dataset, list_datasets
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.episode import Episode
from wmrl_ray.data.exporting import export
from wmrl_ray.envs import make_env
from wmrl_ray.envs.recorded import overridden, recorded_config
from wmrl_ray.rllib.config import AgentAlgorithmConfig
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.folder import RunDir
from wmrl_ray.train import train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

MODULE = '''
import gymnasium as gym
import numpy as np

class Goal(gym.Env):
    """Earns `goal` at every step."""
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, goal=1.0, render_mode=None):
        self.goal = goal
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), self.goal, False, False, {}

gym.register("RecordedGoal-v0", entry_point="recorded_goal:Goal", max_episode_steps=50)
'''


@pytest.fixture
def goal(home: Path, monkeypatch: pytest.MonkeyPatch) -> gym.Env:
    """The environment of a module on the path; the registry forgets it, as in a process that has not imported it."""
    (home / "recorded_goal.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setitem(sys.modules, "recorded_goal", None)
    monkeypatch.delitem(sys.modules, "recorded_goal")
    monkeypatch.delitem(gym.registry, "RecordedGoal-v0", raising=False)
    env = gym.make("recorded_goal:RecordedGoal-v0", goal=3.0, max_episode_steps=7)
    del gym.registry["RecordedGoal-v0"], sys.modules["recorded_goal"]
    return env


@pytest.fixture
def dataset(goal: gym.Env) -> str:
    rng = np.random.default_rng(0)
    episodes = [Episode(np.zeros((8, 2), np.float32), rng.uniform(-1, 1, (7, 1)).astype(np.float32),
                        np.full(7, 3, np.float32), False) for _ in range(3)]  # fmt: skip
    write_minari("goal-v0", episodes, env=gym.spec("Pendulum-v1"), eval_env=goal.spec, ref_min_score=0.0, ref_max_score=42.0)
    return "goal-v0"


def config(dataset: str, **more: Any) -> RunConfig:
    values = {"num_updates": 2, "updates_per_call": 1, "eval_every": 0, "eval_episodes": 2, "batch_size": 4, "log_every": 1}
    return RunConfig("bc", dataset=dataset, device="cpu", checkpoint_every=1, **{**values, **more})


def test_the_card_names_the_evaluation_environment_its_module_and_arguments(dataset: str) -> None:
    card = open_dataset(dataset).card
    assert card.env_id == "recorded_goal:RecordedGoal-v0"
    assert recorded_config(card.env_id, card.env_spec) == {"goal": 3.0, "max_episode_steps": 7}
    assert [entry.env_id for entry in list_datasets()] == [card.env_id]
    shown = CliRunner().invoke(app, ["data", "info", dataset])
    assert "recorded_goal:RecordedGoal-v0 (goal = 3.0, max_episode_steps = 7)" in shown.output


def test_a_run_is_evaluated_there_and_its_files_say_so(dataset: str, home: Path) -> None:
    result = train(config(dataset), home / "run")
    assert result["eval/return_mean"] == 21.0 and result["eval/length_mean"] == 7.0  # 7 steps that earn 3
    assert result["eval/score_mean"] == 50.0
    run = RunDir(home / "run")
    assert run.config().env_config == {"goal": 3.0, "max_episode_steps": 7}
    newest = run.newest_checkpoint()
    assert newest is not None
    meta = checkpoint.read_meta(newest)
    assert (meta["env"], meta["env_config"]) == ("recorded_goal:RecordedGoal-v0", {"goal": 3.0, "max_episode_steps": 7})
    assert run.difference(config(dataset)) is None  # what the run took from its dataset is no other setting
    assert run.difference(config(dataset, env_config={"goal": 2.0})) == "env_config.goal = 2.0: it was started with 3.0"
    train(config(dataset, num_updates=3), home / "run", resume=True)
    for env in ([], ["--env", "RecordedGoal-v0"]):
        shown = CliRunner().invoke(app, ["evaluate", str(home / "run"), "--episodes", "2", "--json", *env])
        numbers = json.loads(shown.stdout)
        assert (numbers["return_mean"], numbers["score_mean"], numbers["env_config"]["goal"]) == (21.0, 50.0, 3.0)


def test_what_a_run_sets_otherwise_stays_and_is_said_in_one_line(dataset: str, home: Path) -> None:
    said: list[str] = []
    result = train(
        config(dataset, env_config={"max_episode_steps": 5}, env="recorded_goal:RecordedGoal-v0"),
        home / "run",
        on_event=lambda event: said.append(event.message),
    )
    assert result["eval/return_mean"] == 15.0
    (line,) = [text for text in said if "env_config changes" in text]
    assert "changes the dataset's environment: max_episode_steps = 5 (the dataset's: 7); scores are still on" in line
    assert "\n" not in line


def test_rllibs_configuration_takes_it_too(dataset: str) -> None:
    from wmrl_ray.rllib import BCConfig

    algorithm = BCConfig().dataset(dataset)
    assert isinstance(algorithm, AgentAlgorithmConfig)
    algorithm.validate()
    assert (algorithm.env, algorithm.env_config) == (
        "recorded_goal:RecordedGoal-v0", {"goal": 3.0, "max_episode_steps": 7}
    )  # fmt: skip


def test_an_import_and_every_export_keep_the_module(goal: gym.Env, home: Path) -> None:
    arrays = {"obs": np.zeros((8, 2)), "action": np.zeros((8, 1)), "reward": np.zeros(8), "terminated": np.zeros(8)}
    np.savez(home / "d.npz", **arrays, episode_starts=[0, 8])
    card = import_dataset(home / "d.npz", "mine-v0", env="recorded_goal:RecordedGoal-v0").card
    assert card.env_id == "recorded_goal:RecordedGoal-v0" and recorded_config(card.env_id, card.env_spec) == {}
    for format in ("npz", "hdf5", "parquet", "arrow", "minari"):
        path = home / ("x-v0" if format == "minari" else f"x.{format}")
        again = open_dataset(export("mine-v0", path, format)).card
        assert (again.env_id, again.env_spec) == (card.env_id, card.env_spec)
    code = f"from wmrl_ray.envs import make_env; print(make_env({card.env_id!r}).spec.id)"
    made = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True,
                          env={**__import__("os").environ, "PYTHONPATH": str(home)})  # fmt: skip
    assert made.stdout.strip() == "RecordedGoal-v0"


def test_a_step_limit_counts_after_repeated_actions_and_gives_way_to_a_fixed_length(dataset: str) -> None:
    card = open_dataset(dataset).card
    assert recorded_config(card.env_id, card.env_spec, {"action_repeat": 2})["max_episode_steps"] == 4
    assert recorded_config(card.env_id, card.env_spec, {"fixed_length": 9}) == {"goal": 3.0}


def test_whatever_differs_from_the_datasets_environment_is_said(dataset: str) -> None:
    spec = gym.spec("wmrl/PointMaze-UMaze-v0").to_json()  # registered as it is recorded
    limit = gym.spec("wmrl/PointMaze-UMaze-v0").max_episode_steps or 0
    said = "env_config changes the dataset's environment: "
    for config, reads in (
        ({"max_episode_steps": 5}, f"max_episode_steps = 5 (the dataset's: {limit})"),
        ({"fixed_length": 5}, f"fixed_length = 5 (the dataset's: {limit})"),
        ({"p_tremble": 0.1}, "p_tremble = 0.1 (the dataset's: not set)"),
        ({"max_episode_steps": limit}, None),
        ({"action_repeat": 2, "max_episode_steps": -(-limit // 2), "render_mode": "rgb_array"}, None),
    ):
        assert overridden(spec, config) == (None if reads is None else said + reads)
    assert overridden(None, {"goal": 2.0}) is None  # nothing is known of it
    assert len(overridden(open_dataset(dataset).card.env_spec, {"goal": [[0.0] * 99] * 99}) or "") < 200


def test_a_run_that_began_without_the_datasets_environment_says_that_it_goes_on_there(dataset: str, home: Path) -> None:
    train(config(dataset), home / "run")
    run = RunDir(home / "run")
    run.write_config(dataclasses.replace(run.config(), env_config={}))
    with pytest.warns(UserWarning, match="from here on it is evaluated with {'goal': 3.0, 'max_episode_steps': 7}"):
        train(config(dataset, num_updates=3), home / "run", resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config(dataset, num_updates=4), home / "run", resume=True)


def test_what_is_registered_alike_is_not_repeated() -> None:
    spec = gym.spec("wmrl/PointMaze-UMaze-v0")
    assert recorded_config("wmrl/PointMaze-UMaze-v0", spec.to_json()) == {}
    drawn = dataclasses.replace(spec, kwargs={**spec.kwargs, "render_mode": "rgb_array"})
    assert recorded_config("wmrl/PointMaze-UMaze-v0", drawn.to_json()) == {}
    shorter = dataclasses.replace(spec, max_episode_steps=9)
    assert recorded_config("wmrl_ray.envs:wmrl/PointMaze-UMaze-v0", shorter.to_json()) == {"max_episode_steps": 9}


def test_a_maze_of_minari_is_the_map_of_its_spec() -> None:
    """As D4RL's own mazes at Minari: the id is of one map, the spec's argument is another."""
    pytest.importorskip("gymnasium_robotics")
    maze = [[1, 1, 1, 1, 1], [1, "r", 0, "g", 1], [1, 1, 1, 1, 1]]
    spec = gym.make("PointMaze_UMaze-v3", maze_map=maze, max_episode_steps=11).spec
    assert spec is not None
    found = recorded_config("PointMaze_UMaze-v3", spec.to_json())
    assert found == {"maze_map": maze, "max_episode_steps": 11}
    env = make_env("PointMaze_UMaze-v3", **found)
    assert env.unwrapped.maze.maze_map == maze and env.spec is not None and env.spec.max_episode_steps == 11
    env.close()


def test_wrappers_of_a_spec_are_noted(home: Path, dataset: str) -> None:
    path = home / "minari/goal-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["eval_env_spec"])
    spec["additional_wrappers"] = [{"name": "RescaleReward", "entry_point": "x:Y", "kwargs": {}}]
    path.write_text(json.dumps(metadata | {"eval_env_spec": json.dumps(spec)}))
    assert "its environment was wrapped in RescaleReward, which is not done here" in open_dataset(dataset).card.notes
