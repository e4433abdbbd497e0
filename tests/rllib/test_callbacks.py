"""What an RLlib user sees of a run: results under RLlib's names, callbacks, modules, environments of his own, checkpoints."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

from tests.rllib import fakes
from tests.rllib.online_fakes import OwnTDMPC, small_online
from wmrl_ray.config import ConfigError
from wmrl_ray.rllib.compat import HAS_LOCAL_MODE

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

HEARD: Counter[str] = Counter()


class Notes(RLlibCallback):
    """Checks each episode, and logs through the logger that it is given."""

    def on_environment_created(self, *, metrics_logger: Any, env: Any, env_context: Any, **kwargs: Any) -> None:
        assert len(env.envs) == env.num_envs and dict(env_context) == {}
        metrics_logger.log_value("environments", 1, reduce="lifetime_sum")

    def on_episode_start(self, *, episode: Any, **kwargs: Any) -> None:
        assert len(episode) == 0 and len(episode.get_observations()) == 1

    def on_episode_step(self, *, episode: Any, env: Any, env_index: int, metrics_logger: Any, **kwargs: Any) -> None:
        np.testing.assert_allclose(episode.get_observations(-1)[:2], env.envs[env_index].unwrapped.xy, atol=1e-6)
        metrics_logger.log_value("steps_heard", 1, reduce="sum")

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, prev_episode_chunks: Any, **kwargs: Any) -> None:
        whole = sum(len(chunk) for chunk in [*prev_episode_chunks, episode])
        assert episode.is_terminated and whole in fakes.LENGTHS
        metrics_logger.log_value("episodes_heard", 1, reduce="sum")
        metrics_logger.log_value("length_heard", whole, reduce="sum")


@pytest.fixture(scope="module")
def remote(local_ray: None) -> Iterator[Any]:
    """A runner and a runner of evaluations, both actors, with callbacks, after 4 iterations."""
    config = small_online(num_runners=1).callbacks(Notes).reporting(metrics_num_episodes_for_smoothing=3)
    config.evaluation(evaluation_num_env_runners=1, evaluation_interval=100)
    algorithm = config.build_algo()
    yield algorithm, [algorithm.train() for _ in range(4)]
    algorithm.stop()


def test_callbacks_see_the_episodes_that_are_collected(remote: Any) -> None:
    algorithm, results = remote
    heard = [result["env_runners"] for result in results]
    assert np.nansum([each["steps_heard"] for each in heard]) == algorithm.num_steps > 0  # NaN: none in an iteration
    assert np.nansum([each.get("episodes_heard", 0) for each in heard]) == algorithm.num_episodes > 3
    assert heard[-1]["environments"] == 1


def test_what_callbacks_log_in_an_evaluation_is_in_its_result_and_of_its_episodes_alone(remote: Any) -> None:
    algorithm, _ = remote
    for _ in range(2):
        found = algorithm.evaluate()["env_runners"]
        lengths = algorithm.last_evaluation.lengths
        assert (found["episodes_heard"], found["length_heard"], found["steps_heard"]) == (4, sum(lengths), sum(lengths))
        assert found["episode_return_mean"] == pytest.approx(np.mean(algorithm.last_evaluation.returns))


def test_counts_and_means_have_rllibs_names_and_survive_a_restore(remote: Any, tmp_path: Path) -> None:
    algorithm, results = remote
    last, steps = results[-1], [result["env_runners"]["num_env_steps_sampled"] for result in results]
    runners = last["env_runners"]
    assert last["num_env_steps_sampled_lifetime"] == runners["num_env_steps_sampled_lifetime"] == sum(steps) > 0
    assert runners["num_agent_steps_sampled_lifetime"] == {"default_agent": sum(steps)}
    assert runners["num_module_steps_sampled"] == {"default_policy": steps[-1]}
    assert runners["num_episodes_lifetime"] == algorithm.num_episodes == sum(r["env_runners"]["num_episodes"] for r in results)
    rates = [result["env_runners"]["num_env_steps_sampled_lifetime_throughput"] for result in results]
    assert [rate["throughput_since_last_reduce"] > 0 for rate in rates] == [taken > 0 for taken in steps]
    recent = list(algorithm._told._recent)
    assert len(recent) == 3 < algorithm.num_episodes
    assert runners["episode_return_mean"] == pytest.approx(np.mean([one[0] for one in recent]))
    assert runners["episode_return_min"] == min(one[0] for one in recent)
    assert runners["episode_len_max"] == max(one[1] for one in recent)
    assert runners["agent_episode_return_mean"]["default_agent"] == runners["episode_return_mean"]
    assert {"replay_steps", "lost_steps", "lost_runners", "steps_per_s", "runner_wait_share", "success_mean"} <= set(runners)
    window = 3  # of the tiny agent
    assert last["learners"]["default_policy"]["num_module_steps_trained"] == 12 * 8 * window
    assert last["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 4 * 12 * 8 * window

    path = algorithm.save_to_path(tmp_path / "saved")
    other = OwnTDMPC.from_checkpoint(path)
    assert list(other._told._recent) == recent
    again = other.train()
    new = again["env_runners"]["num_env_steps_sampled"]
    assert again["num_env_steps_sampled_lifetime"] == sum(steps) + new and new > 0
    assert math.isfinite(again["env_runners"]["episode_return_mean"])
    assert again["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"] == 5 * 12 * 8 * window
    assert again["env_runners"]["environments"] >= 1
    other.stop()


def test_from_checkpoint_has_callbacks_and_the_evaluations_interval(remote: Any, tmp_path: Path) -> None:
    algorithm, _ = remote
    path = algorithm.save_to_path(tmp_path / "saved")
    other = OwnTDMPC.from_checkpoint(path, changes={"evaluation_interval": 7, "evaluation_num_env_runners": 0})
    config = other.config
    assert [type(one) for one in other.callbacks] == [Notes]
    assert (config.evaluation_interval, config.metrics_num_episodes_for_smoothing) == (7, 3)
    other.stop()


def test_callbacks_that_are_not_imported_are_one_line(remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, _ = remote
    path = algorithm.save_to_path(tmp_path / "saved")
    monkeypatch.delattr(f"{__name__}.Notes")
    with pytest.raises(ConfigError, match=r"callbacks_class Notes of .* is not imported here; import .* changes=\{'callb"):
        OwnTDMPC.from_checkpoint(path)


def test_get_module_is_the_learners_and_acts_without_is_first(remote: Any) -> None:
    algorithm, _ = remote
    module = algorithm.get_module()
    (learned,) = algorithm.on_learners(lambda learner: {k: v.clone() for k, v in learner.agent.model.state_dict().items()})
    for name, value in module.agent.model.state_dict().items():
        assert torch.equal(value, learned[name]), name
    assert algorithm.get_module("other") is None
    obs = torch.zeros(2, fakes.OBS_DIM)
    module.reset_plan(seed=0)
    first = module.forward_inference({"obs": obs})["actions"]
    module.agent.act_generator.manual_seed(0)
    assert torch.equal(module.forward_inference({"obs": obs})["actions"], first)  # no warm start from the call before
    marked = {"obs": obs, "is_first": torch.ones(2), "last_reward": torch.zeros(2)}
    module.reset_plan(seed=0)
    assert torch.equal(module.forward_inference(marked)["actions"], first)


def test_functions_are_called_as_methods_are(plane_dataset: str, tmp_path: Path) -> None:
    def hears(name: str) -> Any:
        return lambda **kwargs: HEARD.update([name])

    names = ["algorithm_init", "train_result", "checkpoint_loaded", "environment_created", "episode_created"]
    names += ["episode_start", "episode_step", "episode_end", "evaluate_start", "evaluate_end"]
    HEARD.clear()
    config = small_online().callbacks(**{f"on_{name}": hears(name) for name in names})
    algorithm = config.build_algo()
    algorithm.train()
    sampled, episodes = algorithm.num_steps, algorithm.num_episodes
    assert HEARD["episode_step"] == sampled and HEARD["episode_end"] == episodes
    assert HEARD["episode_created"] == HEARD["episode_start"] == episodes + 2
    algorithm.restore(algorithm.save(str(tmp_path / "saved")))
    algorithm.evaluate()
    assert set(names) == set(HEARD)
    assert HEARD["episode_end"] == episodes + 4
    algorithm.stop()


def test_an_iteration_is_as_long_as_was_asked_for(bc: Any) -> None:
    algorithm = small_online().reporting(min_sample_timesteps_per_iteration=70).build_algo()
    results = [algorithm.train() for _ in range(2)]
    assert all(70 <= result["env_runners"]["num_env_steps_sampled"] < 70 + 24 for result in results)
    algorithm.stop()
    algorithm = bc.reporting(min_train_timesteps_per_iteration=60, min_time_s_per_iteration=1.0).build_algo()
    result = algorithm.train()
    assert result["learners"]["__all_modules__"]["num_env_steps_trained"] >= 60
    assert result["time_this_iter_s"] >= 1.0  # far longer than those steps take
    algorithm.stop()


def test_evaluation_explores_only_where_it_is_told_to() -> None:
    for given, explores in ((None, False), ({"explore": True}, True)):
        algorithm = small_online().evaluation(evaluation_config=given).build_algo()
        module, told = algorithm.eval_env_runner_group.local_env_runner.module, set()
        act = module.agent.act

        def spy(*args: Any, explore: bool, act: Any = act, told: set[bool] = told, **kwargs: Any) -> Any:
            told.add(explore)
            return act(*args, explore=explore, **kwargs)

        module.agent.act = spy
        algorithm.evaluate()
        assert told == {explores}
        algorithm.stop()


def test_results_go_to_the_users_logger(bc: Any, tmp_path: Path) -> None:
    bc.debugging(log_level="INFO")
    if not HAS_LOCAL_MODE:  # newer versions have no such setting
        bc.build_algo().stop()
        assert logging.getLogger("ray.rllib").level == logging.INFO
        return
    from ray.tune.logger import NoopLogger

    seen = []

    class Own(NoopLogger):
        def on_result(self, result: dict[str, Any]) -> None:
            seen.append(result["num_updates"])

    algorithm = bc.debugging(logger_creator=lambda config: Own(config, str(tmp_path))).build_algo()
    assert logging.getLogger("ray.rllib").level == logging.INFO
    algorithm.train()
    assert seen == [3]
    algorithm.stop()


class Limited(gym.Wrapper):
    """As RLlib makes an environment of a class."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(gym.make(fakes.PLANE, **config))


@pytest.mark.parametrize("registered", [False, True])
def test_an_environment_of_the_users_own_is_learned_in(registered: bool, tmp_path: Path) -> None:
    env: Any = Limited
    if registered:
        env = "my plane"
        tune.register_env(env, lambda config: Limited(dict(config)))
    config = small_online(num_runners=int(registered)).environment(env, env_config={"max_episode_steps": 5})
    algorithm = config.build_algo()
    result = algorithm.train()
    assert result["env_runners"]["episode_len_max"] == 5
    algorithm.evaluate()
    assert algorithm.last_evaluation.lengths == [5] * 4
    path = algorithm.save_to_path(tmp_path / "saved")
    algorithm.stop()
    other = OwnTDMPC.from_checkpoint(path, changes={"env": env})
    assert other.num_steps == result["num_env_steps_sampled_lifetime"]
    other.train()
    other.stop()


def test_tunes_own_population_and_stop_use_rllibs_names(tmp_path: Path) -> None:
    from ray.tune.schedulers import PopulationBasedTraining

    config = small_online().training(batch_size=tune.grid_search([4, 8]))
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="env_runners/episode_return_mean",
        mode="max",
        perturbation_interval=3,
        quantile_fraction=0.5,
        synch=True,  # Why: one that ends before the other has a score is exploited by nobody
        hyperparam_mutations={"batch_size": [4, 8]},
    )
    grid = tune.Tuner(
        OwnTDMPC,
        param_space=config,
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(name="t", storage_path=str(tmp_path), stop={"num_env_steps_sampled_lifetime": 60}, verbose=0),
    ).fit()
    assert not grid.errors
    assert all((result.metrics or {})["num_env_steps_sampled_lifetime"] >= 60 for result in grid)
    assert scheduler._num_perturbations > 0
