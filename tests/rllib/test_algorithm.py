"""One cluster; learners and runners in every place they can be."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rllib import fakes
from tests.rllib.fakes import losses, small_iql
from wmrl_ray.policy import Policy
from wmrl_ray.rllib.failures import RemoteError
from wmrl_ray.rollout import episode_seed, evaluate
from wmrl_ray.train import NonFiniteLossError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def weights(algorithm: Any) -> list[dict[str, np.ndarray]]:
    """Of every rank."""
    return algorithm.on_learners(lambda learner: {k: v.numpy().copy() for k, v in learner.agent_module.state_dict().items()})


@pytest.fixture(scope="module")
def local_losses(local_ray: None, plane_dataset: str) -> dict[str, float]:
    algorithm = small_iql(plane_dataset).build_algo()
    try:
        algorithm.train()
        return losses(algorithm.train())
    finally:
        algorithm.stop()


@pytest.fixture(scope="module")
def two_learners(local_ray: None, plane_dataset: str) -> Iterator[Any]:
    algorithm = small_iql(plane_dataset).learners(num_learners=2).build_algo()
    yield algorithm
    algorithm.stop()


@pytest.fixture(scope="module")
def one_runner(local_ray: None, plane_dataset: str) -> Iterator[Any]:
    """One evaluation runner, used in parallel with training in every iteration."""
    config = small_iql(plane_dataset).evaluation(
        evaluation_num_env_runners=1, evaluation_interval=1, evaluation_parallel_to_training=True, evaluation_duration=30
    )
    algorithm = config.build_algo()
    yield algorithm
    algorithm.stop()


def test_one_remote_learner_logs_the_losses_of_the_local_one(iql: Any, local_losses: dict[str, float]) -> None:
    algorithm = iql.learners(num_learners=1).build_algo()
    algorithm.train()
    assert losses(algorithm.train()) == local_losses
    algorithm.stop()


def test_two_learners_see_different_batches_and_keep_identical_parameters(
    two_learners: Any, local_losses: dict[str, float]
) -> None:
    two_learners.train()
    result = two_learners.train()
    first, second = weights(two_learners)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    batches = two_learners.on_learners(lambda learner: learner.replay.sample(4, 2).obs.numpy())
    assert not np.array_equal(*batches)
    assert losses(result) != local_losses
    moments = two_learners.on_learners(
        lambda learner: [s["exp_avg"].numpy().copy() for o in learner.agent.optimizers.values() for s in o.state.values()]
    )
    assert len(moments[0]) > 4
    for a, b in zip(*moments, strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_of_two_learners_that_fails_does_not_leave_the_other_waiting(two_learners: Any) -> None:
    def break_rank_one(learner: Any) -> None:
        if learner.rank == 1:
            learner.replay.sample = None

    two_learners.on_learners(break_rank_one)
    with pytest.raises(RemoteError, match="'NoneType' object is not callable"):
        two_learners.train()


def test_a_remote_loss_that_is_not_finite_and_then_the_learners_death_reach_the_driver(bc: Any) -> None:
    algorithm = bc.learners(num_learners=1).build_algo()
    algorithm.train()
    algorithm.on_learners(spoil_learning_rate)
    with pytest.raises(RemoteError, match=r"NonFiniteLossError: .*not finite: .*loss/actor"):
        train_until_error(algorithm)
    with pytest.raises(RemoteError, match="learner"):
        algorithm.on_learners(lambda learner: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RemoteError, match="learners? died"):
        algorithm.train()
    algorithm.stop()


def test_a_local_loss_that_is_not_finite_raises_with_its_metrics(bc: Any) -> None:
    algorithm = bc.build_algo()
    algorithm.on_learners(spoil_learning_rate)
    with pytest.raises(NonFiniteLossError, match=r"not finite: .*loss/actor"):
        train_until_error(algorithm)
    algorithm.stop()


def spoil_learning_rate(learner: Any) -> None:
    for group in learner.agent.optimizers["actor"].param_groups:
        group["lr"] = 1e30


def train_until_error(algorithm: Any) -> None:
    for _ in range(20):
        algorithm.train()


@pytest.mark.parametrize("num_runners", [0, 2])
def test_evaluation_runs_exactly_the_episodes_asked_for(iql: Any, num_runners: int) -> None:
    """Offline there is nothing to sample while training, so `num_env_runners` are runners for evaluation."""
    algorithm = iql.env_runners(num_env_runners=num_runners).evaluation(evaluation_interval=2).build_algo()
    assert algorithm.env_runner_group is None
    assert algorithm.eval_env_runner_group.num_healthy_remote_workers() == num_runners
    assert math.isnan(algorithm.train()["score"])
    result = algorithm.train()
    evaluation = algorithm.last_evaluation
    assert len(evaluation.returns) == len(evaluation.episodes) == 5
    assert result["score"] == pytest.approx(np.mean(evaluation.returns))
    assert result["evaluation"]["env_runners"]["episode_return_mean"] == pytest.approx(np.mean(evaluation.returns))
    assert result["evaluation"]["env_runners"]["num_episodes"] == 5
    for episode, length in zip(evaluation.episodes, evaluation.lengths, strict=True):
        assert length == len(episode) in fakes.LENGTHS
        assert episode.terminated
        episode.validate()
        # The environment's own law, so observations and actions belong together.
        np.testing.assert_allclose(np.diff(episode.obs[:, :2], axis=0), 0.1 * episode.action, atol=1e-5)
        np.testing.assert_allclose(episode.obs[:, 2], np.arange(length + 1) / 20, atol=1e-6)
        assert episode.obs[0, 3] == pytest.approx(length / 20)
    assert evaluation.reports_success
    assert evaluation.successes == [bool(np.linalg.norm(e.obs[-1, :2]) < 1) for e in evaluation.episodes]
    assert evaluation.act_metrics["plan/nan_frac"] == 0
    algorithm.evaluate()
    assert algorithm.last_evaluation.returns == evaluation.returns  # same weights, same seed
    algorithm.stop()


@pytest.mark.parametrize("at_end", [False, True])
def test_runners_count_the_last_steps_success_where_the_environment_says_so(bc: Any, at_end: bool) -> None:
    env = f"tests.rllib.fakes:test/Passing{'AtEnd' * at_end}Plane-v0"
    algorithm = bc.environment(env).evaluation(evaluation_duration=12).build_algo()
    algorithm.evaluate()
    evaluation = algorithm.last_evaluation
    algorithm.stop()
    is_long = [length == max(fakes.LENGTHS) for length in evaluation.lengths]
    assert len(set(is_long)) == 2
    assert evaluation.successes == (is_long if at_end else [True] * 12)


def test_evaluation_does_not_prefer_short_episodes(bc: Any) -> None:
    """With lengths 6, 11 and 20 side by side, the first 60 to end would be shorter than those that were drawn."""
    algorithm = bc.evaluation(evaluation_duration=60).build_algo()
    algorithm.evaluate()
    lengths = []
    for k in range(60):
        env = fakes.Plane()
        env.reset(seed=episode_seed(algorithm.config.seed, k))
        lengths.append(env.length)
    assert algorithm.last_evaluation.lengths == lengths
    algorithm.stop()


def test_rllibs_evaluation_parallel_to_training_works(one_runner: Any) -> None:
    result = one_runner.train()
    assert result["evaluation"]["env_runners"]["num_episodes"] == 30
    assert math.isfinite(result["score"])


def test_an_evaluation_can_run_while_training_goes_on(one_runner: Any, tmp_path: Path) -> None:
    gate = tmp_path / "open"

    def wait_at_gate(runner: Any) -> None:  # so that the evaluation cannot end before the training step
        while not gate.exists():
            time.sleep(0.01)

    one_runner.eval_env_runner_group.foreach_env_runner_async(wait_at_gate, tag="gate")
    before = one_runner.num_updates
    one_runner.start_evaluation()
    assert one_runner.finish_evaluation(0.0) is None
    one_runner.training_step()
    assert one_runner.num_updates == before + 3
    gate.touch()
    assert one_runner.finish_evaluation() == before  # the update whose weights were evaluated
    assert len(one_runner.last_evaluation.returns) == 30


def test_runners_receive_the_inference_weights_only(one_runner: Any) -> None:
    def pause(runner: Any) -> None:
        time.sleep(0.5)

    group = one_runner.eval_env_runner_group
    for _ in range(2):  # a runner that is slow to take the first weights still gets the second
        group.foreach_env_runner_async(pause, tag="pause")
        one_runner.training_step()
        one_runner.evaluate()
    (on_runner,) = group.foreach_env_runner(
        lambda runner: {k: v.numpy().copy() for k, v in runner.module.state_dict().items()}, local_env_runner=False
    )
    (on_learner,) = weights(one_runner)
    assert {name.split(".")[0] for name in on_learner} == {"model", "target"}
    assert {name.split(".")[0] for name in on_runner} == {"model"}
    for name, value in on_runner.items():
        np.testing.assert_array_equal(value, on_learner[name], err_msg=name)


def test_an_exception_in_a_runner_actor_reaches_the_driver_with_its_cause(bc: Any) -> None:
    algorithm = bc.environment(fakes.RAISING_PLANE).evaluation(evaluation_num_env_runners=1).build_algo()
    with pytest.raises(RemoteError, match="boom in step 3") as caught:
        algorithm.evaluate()
    first, *rest = str(caught.value).splitlines()
    assert first == "evaluation runner failed: ValueError: boom in step 3"
    assert any("fakes.py" in line for line in rest)  # the remote traceback
    algorithm.stop()


def test_an_exception_in_the_local_runner_is_the_environments_own(bc: Any) -> None:
    algorithm = bc.environment(fakes.RAISING_PLANE).build_algo()
    with pytest.raises(ValueError, match="boom in step 3"):
        algorithm.evaluate()
    algorithm.stop()


def test_a_runner_that_dies_is_an_error_and_not_an_empty_result(bc: Any) -> None:
    algorithm = bc.environment(fakes.DYING_PLANE).evaluation(evaluation_num_env_runners=1).build_algo()
    with pytest.raises(RemoteError, match="evaluation runner"):
        algorithm.evaluate()
    algorithm.stop()


def test_is_first_marks_exactly_the_observations_after_a_reset_and_modes_are_explicit(iql: Any) -> None:
    algorithm = iql.evaluation(evaluation_duration=12).build_algo()
    algorithm.train()
    module = algorithm.eval_env_runner_group.local_env_runner.module
    calls: list[tuple[np.ndarray, np.ndarray, bool, int | None]] = []
    act = module.agent.act

    def spy(obs: Any, plan_state: Any, is_first: Any, *, explore: bool, reward: Any) -> Any:
        rows = None if plan_state is None else len(plan_state)
        calls.append((obs.numpy().copy(), is_first.numpy().copy(), module.training, rows))
        earned = np.where(is_first, 0.0, -np.linalg.norm(obs[:, :2], axis=1) / 10)  # what the plane pays
        np.testing.assert_allclose(reward.numpy(), earned, atol=1e-6)
        assert explore is False
        return act(obs, plan_state, is_first, explore=explore, reward=reward)

    module.agent.act = spy
    algorithm.evaluate()
    assert len({length for length in algorithm.last_evaluation.lengths}) > 1  # resets at different times
    for obs, is_first, _, _ in calls:
        np.testing.assert_array_equal(is_first, obs[:, 2] == 0)  # obs[2] counts the steps since the reset
    assert sum(is_first.sum() for _, is_first, _, _ in calls) >= 12
    assert not any(training for _, _, training, _ in calls)
    assert [rows for _, _, _, rows in calls] == [None] + [2] * (len(calls) - 1)
    (modes,) = algorithm.on_learners(lambda learner: (learner.agent.model.training, learner.agent.target.training))
    assert modes == (True, False)
    algorithm.stop()


def test_episode_k_is_the_same_one_on_any_runners_and_without_ray(plane_dataset: str, tmp_path: Path) -> None:
    """Without Ray: `rollout.evaluate`, which `wmrl evaluate` and `wmrl train --no-ray` call."""
    evaluations: list[Any] = []
    for num_runners, num_envs in [(0, 1), (2, 3)]:
        config = fakes.small_bc(plane_dataset).debugging(seed=11).env_runners(num_envs_per_env_runner=num_envs)
        algorithm = config.evaluation(evaluation_num_env_runners=num_runners, evaluation_duration=7).build_algo()
        algorithm.evaluate()
        algorithm.evaluate()  # the second one as the first
        evaluations.append(algorithm.last_evaluation)
        path = algorithm.save_to_path(tmp_path / "saved")
        algorithm.stop()
    evaluations += [evaluate(Policy.load(path).agent, fakes.PLANE, 7, num_envs=n, seed=11) for n in (1, 5)]
    assert_same_episodes(evaluations)
    assert len({e.obs[0].tobytes() for e in evaluations[0].episodes}) == 7


def assert_same_episodes(evaluations: list[Any]) -> None:
    """The same starts, and the same courses up to the rounding of a product of another number of rows."""
    first, *others = evaluations
    for other in others:
        assert (other.lengths, other.successes) == (first.lengths, first.successes)
        assert other.returns == pytest.approx(first.returns, rel=1e-5)
        for a, b in zip(other.episodes, first.episodes, strict=True):
            np.testing.assert_allclose(a.obs[0], b.obs[0], atol=1e-6)  # intents are such products
            np.testing.assert_allclose(a.obs, b.obs, atol=1e-5)
            np.testing.assert_allclose(a.action, b.action, atol=1e-5)


def test_a_class_as_environment_runs_those_episodes_too_and_its_checkpoint_names_none(
    plane_dataset: str, tmp_path: Path
) -> None:
    config = fakes.small_bc(plane_dataset).environment(fakes.ConfiguredPlane, env_config={"fails": ""})
    algorithm = config.debugging(seed=11).build_algo()
    algorithm.evaluate()
    policy = Policy.load(algorithm.save_to_path(tmp_path / "saved"))
    assert (policy.meta["env"], policy.meta["env_config"]) == (None, {})
    assert_same_episodes([algorithm.last_evaluation, evaluate(policy.agent, fakes.PLANE, 5, num_envs=2, seed=11)])
    algorithm.stop()


def test_env_config_reaches_the_environments_of_runners_and_the_checkpoint(plane_dataset: str, tmp_path: Path) -> None:
    config = fakes.small_bc(plane_dataset).environment(fakes.PLANE, env_config={"max_episode_steps": 4})
    algorithm = config.build_algo()
    algorithm.evaluate()
    assert algorithm.last_evaluation.lengths == [4] * 5
    policy = Policy.load(algorithm.save_to_path(tmp_path / "saved"))
    assert policy.meta["env_config"] == policy.meta["run"]["env_config"] == {"max_episode_steps": 4}
    algorithm.stop()
