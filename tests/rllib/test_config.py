"""What a configuration accepts, and the one line it answers otherwise. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rllib import fakes
from tests.rllib.online_fakes import OwnImitatorConfig, OwnTDMPCConfig, run_config, small_online
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import AGENTS
from wmrl_ray.data.episode import DataError
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.config import CONFIGS, BCConfig, IQLTDMPCConfig, TDMPCConfig
from wmrl_ray.rllib.learner import AgentLearner
from wmrl_ray.rllib.online_learner import OnlineLearner
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.config import OnlineConfig, RunConfig


def test_every_agent_has_a_config_and_an_algorithm_that_know_each_other() -> None:
    assert set(CONFIGS) == set(AGENTS)
    assert CONFIGS["iql_tdmpc"] is IQLTDMPCConfig
    for name, config_class in CONFIGS.items():
        assert config_class.agent_name == name
        assert isinstance(config_class.default_algo_class.get_default_config(), config_class)


def test_a_good_configuration_validates_and_takes_its_environment_and_sizes(iql: Any) -> None:
    iql.validate()
    run = iql.run_config()
    assert run == RunConfig(
        algorithm="iql_tdmpc",
        dataset=iql.dataset_uri,
        env=fakes.PLANE,
        num_updates=3,
        batch_size=8,
        updates_per_call=3,
        eval_every=0,
        eval_episodes=5,
        checkpoint_every=3,
        log_every=3,
        device="cpu",
        num_eval_runners=0,
        envs_per_runner=2,
        agent=fakes.TINY_AGENT,
    )


def test_without_an_environment_the_spaces_come_from_the_dataset(plane_dataset: str) -> None:
    config = TDMPCConfig().dataset(plane_dataset)
    config.validate()
    assert config.env is None
    assert config.observation_space.shape == (fakes.OBS_DIM,)
    assert config.action_space.shape == (fakes.ACTION_DIM,)


def test_a_run_config_becomes_the_same_configuration(plane_dataset: str) -> None:
    run = RunConfig(
        "tdmpc",
        plane_dataset,
        env=fakes.PLANE,
        seed=3,
        num_updates=40,
        updates_per_call=10,
        eval_every=20,
        checkpoint_every=20,
        log_every=10,
        num_learners=2,
        num_eval_runners=3,
        envs_per_runner=4,
        device="cpu",
        env_config={"max_episode_steps": 9},
        agent=fakes.TINY_AGENT,
    )
    config = TDMPCConfig.from_run(run)
    config.validate()
    assert config.run_config() == run
    assert (config.num_learners, config.evaluation_num_env_runners, config.num_envs_per_env_runner) == (2, 3, 4)


def test_what_is_set_after_from_run_is_what_is_trained(plane_dataset: str) -> None:
    run = RunConfig("bc", plane_dataset, env=fakes.PLANE, seed=0, num_updates=1000, eval_every=500)
    config = BCConfig.from_run(run).debugging(seed=7).training(agent={"lr": 0.01}, batch_size=8)
    changed = config.run_config()
    assert (changed.seed, changed.agent, changed.batch_size) == (7, {"lr": 0.01}, 8)
    assert (changed.num_updates, changed.eval_every) == (1000, 500)


def test_compiled_whole_steps_and_several_learners_exclude_each_other(plane_dataset: str) -> None:
    config = BCConfig().dataset(plane_dataset).training(agent={"compile": "default"})
    config.learners(num_learners=1).validate()
    with pytest.raises(ConfigError, match=r"agent.compile = 'default' .*num_learners = 2"):
        config.copy(copy_frozen=False).learners(num_learners=2).validate()
    TDMPCConfig().dataset(plane_dataset).training(agent={"compile": "default"}).learners(num_learners=2).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(batchsize=4), r"no key 'batchsize' \(did you mean 'batch_size'\?\)"),
        (lambda c: c.training(lr=1e-2), r"lr = 0.01 has no effect here; set it in training\(agent="),
        (lambda c: c.training(agent={"expectle": 0.8}), r"unknown key 'agent.expectle' \(did you mean 'expectile'\?\)"),
        (lambda c: c.training(agent={"plan": {"horizn": 3}}), r"unknown key 'agent.plan.horizn' \(did you mean 'horizon'\?\)"),
        (
            lambda c: c.update_from_dict({"updates_per_cal": 4}),
            r"unknown key 'updates_per_cal' \(did you mean 'updates_per_call'\?\)",
        ),
        (lambda c: c.update_from_dict({"lr": 2e-3}), r"lr = 0.002 has no effect here"),
        (lambda c: c.update_from_dict({"train_batch_size_per_learner": 7}), r"train_batch_size_per_learner = 7 has no effect"),
        (lambda c: c.evaluation(evaluation_config={"explor": False}), r"unknown key 'explor' \(did you mean 'explore'\?\)"),
        (
            lambda c: c.evaluation(evaluation_duration_unit="timesteps"),
            r"evaluation_duration_unit = 'timesteps' .*episodes",
        ),
        (lambda c: c.training(batch_size=0), r"batch_size = 0; it must be at least 1"),
        (
            lambda c: c.offline_data(input_=["x.parquet"]),
            r"reads through Ray Data, which is not used here; use .dataset\(uri\)",
        ),
        (lambda c: c.env_runners(gym_env_vectorize_mode="async"), r"gym_env_vectorize_mode = 'async' has no effect here"),
        (lambda c: c.environment(fakes.PLANE, env_config={"x": object()}), r"env_config = .* cannot be recorded"),
        (lambda c: c.environment(fakes.PLANE, env_config={"x": 1}), r"cannot be made with env_config = \{'x': 1\}"),
        (lambda c: c.debugging(seed=None), r"seed = None; a whole number"),
        (lambda c: setattr(c, "dataset_uri", None), r"no dataset: add .dataset\('<uri>'\) to IQLTDMPCConfig\(\)"),
        (lambda c: c.environment("wmrl/PointMaze-Umase-v0"), r"'wmrl/PointMaze-Umase-v0' cannot be made .*did you mean"),
    ],
)
def test_a_mistake_is_one_clear_line(iql: Any, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        change(iql)
        iql.validate()
        iql.get_evaluation_config_object().validate()
    assert "\n" not in str(caught.value)


def test_a_dataset_that_does_not_fit_the_environment_is_refused(iql: Any) -> None:
    with pytest.raises(DataError, match="obs_dim = 4, but environment 'Pendulum-v1' has 3"):
        iql.environment("Pendulum-v1").validate()


def test_a_dataset_that_is_not_there_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing.npz"):
        BCConfig().dataset(str(tmp_path / "nothing.npz")).environment(fakes.PLANE).validate()


# -- online -----------------------------------------------------------------------------------------------------------------


def test_an_online_run_becomes_the_same_configuration_and_its_learner() -> None:
    online = OnlineConfig(2, num_envs=3, seed_steps=60, steps_per_turn=2, updates_per_step=0.5, capacity=500)
    run = run_config(online=online, num_learners=2, num_eval_runners=1)
    config = OwnTDMPCConfig.from_run(run)
    config.validate()
    assert config.run_config() == run
    assert config.num_env_runners == 2  # what Tune reserves
    assert config.get_default_learner_class() is OnlineLearner
    assert BCConfig().get_default_learner_class() is AgentLearner
    assert config.get_evaluation_config_object().num_env_runners == 1


def test_rllibs_number_of_runners_is_another_name_of_ours() -> None:
    config = small_online().env_runners(num_env_runners=3)
    config.validate()
    assert config.run_config().online == OnlineConfig(3, num_envs=2, seed_steps=48)
    config.validate()  # again, as Tune does


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(online={"num_runer": 2}), r"unknown key 'online.num_runer' \(did you mean 'num_runners'\?\)"),
        (
            lambda c: c.training(online={"num_runners": 2}).env_runners(num_env_runners=1),
            r"num_env_runners = 1, but online\['num_runners'\] = 2; set one of the two",
        ),
        (lambda c: c.learners(num_learners=2), r"num_learners = 2 with online.num_runners = 0: .* use at least 1 runner"),
        (lambda c: c.training(online={"schedule": "asynchronous"}), r"'asynchronous' with num_runners = 0"),
        (lambda c: c.training(updates_per_call=5), r"updates_per_call = 5 is not a multiple of the 2 updates of a turn"),
        (lambda c: c.environment("wmrl/PointMaze-Umase-v0"), r"'wmrl/PointMaze-Umase-v0' cannot be made .*did you mean"),
        (lambda c: setattr(c, "algo_class", CONFIGS["bc"].default_algo_class), r"does not learn online; derive it from Onl"),
    ],
)
def test_a_mistake_online_is_one_clear_line(change: Any, message: str) -> None:
    config = small_online()
    with pytest.raises(ConfigError, match=message) as caught:
        change(config)
        config.validate()
    assert "\n" not in str(caught.value)


def test_an_imitator_needs_demonstrations_and_an_offline_agent_no_online_settings(bc: Any) -> None:
    with pytest.raises(ConfigError, match=r"no dataset: add .dataset\('<uri>'\) to OwnImitatorConfig"):
        OwnImitatorConfig().environment(fakes.PLANE).validate()
    with pytest.raises(ConfigError, match=r"'bc' takes no steps of its own; drop online.num_envs"):
        bc.training(online={"num_envs": 2}).validate()


@pytest.mark.parametrize(
    ("online", "changes", "message"),
    [
        ({"num_runners": 1, "schedule": "asynchronous", "max_steps_ahead": 1}, {}, "max_steps_ahead = 1: runners would wait"),
        ({}, {"num_learners": 2}, "num_learners = 2 with online.num_runners = 0"),
    ],
)
def test_a_mistake_of_an_online_run_leaves_no_folder_and_no_ray(
    online: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(**kwargs: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(compat, "init", never)
    config = run_config(online=OnlineConfig(**{"seed_steps": 48, "num_envs": 2, **online}), **changes)
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        train_on_ray(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_under_local_mode_runners_become_steps_in_turn_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "in_local_mode", lambda: True)
    for config in (small_online(num_runners=2, schedule="asynchronous"), small_online().env_runners(num_env_runners=2)):
        with pytest.warns(UserWarning, match=r"online\.num_runners = 2 becomes 0 under local_mode"):
            config.validate()
        assert (config.num_env_runners, config.online["num_runners"], config.online["schedule"]) == (0, 0, "synchronous")
