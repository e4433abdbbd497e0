"""The hierarchy on Ray: a Manager is trained, its intents reach runners, and Workers that know nothing of them learn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.bc import BCConfig as RLlibsBCConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.tune import register_env

from tests.envs.test_intent_envs import Spy, save_manager
from tests.rllib import fakes
from tests.rllib.test_algorithm import assert_same_episodes
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents.manager import Manager
from wmrl_ray.core.batch import Batch
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.replay import Replay
from wmrl_ray.envs import make_env
from wmrl_ray.envs.intents import intent_env_id, load_manager
from wmrl_ray.intents import augment
from wmrl_ray.policy import Policy
from wmrl_ray.rllib import ManagerConfig
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.rollout import evaluate
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

MANAGER = {
    "model": {"latent_dim": 6, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 2, "num_samples": 0, "num_policy": 8, "num_elites": 4, "iterations": 1},
    "skip": 3,
}


@pytest.fixture
def manager_run(plane_dataset: str) -> RunConfig:
    every = dict.fromkeys(("num_updates", "eval_every", "checkpoint_every"), 12)
    settings = {"batch_size": 8, "updates_per_call": 2, "log_every": 4, "seed": 5, "device": "cpu", **every}
    return from_dict(RunConfig, {"algorithm": "manager", "dataset": plane_dataset, "agent": MANAGER, **settings})


def logged(run_dir: Path) -> list[dict[str, float]]:
    """The updates' numbers, without times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time")} for line in lines]


@pytest.mark.parametrize("num_learners", [0, 1])
def test_a_manager_trained_on_ray_is_the_one_of_the_loop_without_ray(
    manager_run: RunConfig, tmp_path: Path, num_learners: int
) -> None:
    config = dataclasses.replace(manager_run, num_learners=num_learners, num_eval_runners=2)
    train(manager_run, tmp_path / "plain")
    result = train_on_ray(config, tmp_path / "ray")
    assert result["finished"] and not any(name.startswith("eval/") for name in result)
    losses = logged(tmp_path / "ray")
    assert [line["update"] for line in losses] == [4, 8, 12]
    assert losses == logged(tmp_path / "plain")
    ours, theirs = (load_manager(tmp_path / name) for name in ("ray", "plain"))
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, theirs.model.state_dict()[name], msg=name)


def test_the_managers_rllib_algorithm_trains_saves_and_refuses_to_act(plane_dataset: str, tmp_path: Path) -> None:
    config = ManagerConfig().dataset(plane_dataset).training(agent=MANAGER, batch_size=8, updates_per_call=3)
    algorithm = config.learners(num_learners=1).evaluation(evaluation_num_env_runners=1).build_algo()
    try:
        assert algorithm.eval_env_runner_group is None
        assert all(np.isfinite(value) for value in fakes.losses(algorithm.train()).values())
        manager = load_manager(algorithm.save_to_path(tmp_path / "saved"))
        assert isinstance(manager, Manager) and manager.config.skip == 3
        with pytest.raises(ConfigError, match="evaluate its Workers"):
            algorithm.evaluate()
    finally:
        algorithm.stop()


class RLlibsWorker:
    """RLlib's BC, which knows nothing of intents, fed with our batches: its learner, and its own runner in the environment."""

    def __init__(self, uri: str, num_updates: int):
        self.dataset = open_dataset(uri)
        env_id = self.dataset.card.env_id
        register_env("worker", lambda context: make_env(str(env_id), max_episode_steps=20))
        runners = {"num_envs_per_env_runner": 2, "explore": False}
        config = RLlibsBCConfig().environment("worker").env_runners(**runners).training(lr=1e-3).debugging(seed=0)
        replay = Replay(self.dataset, seed=0)
        # Why not through an Algorithm: RLlib's offline algorithms read with Ray Data only
        learners = config.build_learner_group(env=make_env(str(env_id)))
        self.runner = SingleAgentEnvRunner(config=config, worker_index=0)
        self.errors = [self.error(replay.sample(2_000, 1))]
        for _ in range(num_updates):
            batch = replay.sample(256, 1)
            rows = SampleBatch({Columns.OBS: batch.obs[:, 0].numpy(), Columns.ACTIONS: batch.action[:, 0].numpy()})
            learners.update(batch=MultiAgentBatch({DEFAULT_MODULE_ID: rows}, env_steps=len(rows)))
        path = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        self.runner.set_state(learners.get_state(components=path)[COMPONENT_LEARNER])
        self.errors.append(self.error(replay.sample(2_000, 1)))
        learners.shutdown()

    def actions(self, obs: torch.Tensor) -> torch.Tensor:
        """[B, O] -> the means of the policy [B, A]."""
        with torch.no_grad():
            return self.runner.module.forward_inference({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS].chunk(2, 1)[0]

    def error(self, batch: Batch) -> float:
        """The mean squared error of actions, as a share of their variance."""
        action = batch.action[:, 0]
        return float((self.actions(batch.obs[:, 0]) - action).square().mean() / action.var())


def test_rllibs_own_bc_is_a_worker(pointmaze_dataset: str, tmp_path: Path) -> None:
    worker = RLlibsWorker(augment(pointmaze_dataset, save_manager(tmp_path / "manager"), "test/rllib-bc-v0"), num_updates=300)
    before, after = worker.errors
    assert before > 0.95 and after < 0.75  # 1: the dataset's mean action
    for episode in worker.runner.sample(num_episodes=4, explore=False):
        obs = torch.from_numpy(episode.get_observations())
        assert obs.shape == (21, 10) and len(obs[:, 4:].unique(dim=0)) > 1
        actions = worker.actions(obs[:-1])
        np.testing.assert_allclose(episode.get_actions(), actions, atol=1e-5)
        without = torch.cat([obs[:-1, :4], torch.zeros(20, 6)], 1)
        assert (worker.actions(without) - actions).abs().max() > 0.05  # it reads the intents
    worker.runner.stop()


@pytest.mark.parametrize("planned", [False, True], ids=["random", "planned"])
def test_intents_on_runners_are_those_of_the_loop_without_ray(plane_dataset: str, tmp_path: Path, planned: bool) -> None:
    source = save_manager(tmp_path / "manager") if planned else 3
    uri, env_id = augment(plane_dataset, source, f"test/plane-{planned}-v0".lower()), intent_env_id(source, fakes.PLANE)
    evaluations = []
    for num_runners, num_envs in [(0, 1), (2, 3)]:
        config = fakes.small_bc(uri).environment(env_id).env_runners(num_envs_per_env_runner=num_envs)
        algorithm = config.evaluation(evaluation_num_env_runners=num_runners, evaluation_duration=7).build_algo()
        algorithm.evaluate()
        evaluations.append(algorithm.last_evaluation)
        path = algorithm.save_to_path(tmp_path / "saved")
        algorithm.stop()
    assert evaluations[0].episodes[0].obs.shape[1] == (10 if planned else 7)
    assert_same_episodes([evaluate(Policy.load(path).agent, env_id, 7, num_envs=4), *evaluations])


def test_a_runner_plans_the_intents_of_its_environments_in_one_call(
    plane_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = save_manager(tmp_path / "manager")
    config = fakes.small_bc(augment(plane_dataset, manager, "test/plane-intents-v0"))
    algorithm = config.environment(intent_env_id(manager, fakes.PLANE)).env_runners(num_envs_per_env_runner=3).build_algo()
    spy = Spy(monkeypatch)
    runner = algorithm.eval_env_runner_group.local_env_runner
    steps, step = [], runner.env.step
    monkeypatch.setattr(runner.env, "step", lambda actions: (steps.append(len(actions)), step(actions))[1])
    algorithm.evaluate()
    first = algorithm.last_evaluation
    assert spy.rows == [3] * (1 + len(steps)) and spy.loads == 0
    algorithm.evaluate()
    for a, b in zip(first.episodes, algorithm.last_evaluation.episodes, strict=True):
        np.testing.assert_array_equal(a.obs, b.obs)
    assert len(first.episodes) == 5 and first.episodes[0].obs.shape[1] == 10
    algorithm.stop()
