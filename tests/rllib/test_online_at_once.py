"""The asynchronous schedule: runners and learners work at once, within the limits on how far apart they get."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rllib import fakes
from tests.rllib.online_fakes import replays, runner_pid, small_online, weights

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


MOST_CALLS = 500  # of the learners, until a runner that was killed has come back


@pytest.fixture(scope="module")
def at_once(local_ray: None) -> Iterator[Any]:
    """Asynchronous: two runners and two learners, trained for 5 calls."""
    config = small_online(
        num_runners=2, schedule="asynchronous", steps_per_turn=2, max_steps_ahead=48, max_updates_ahead=12
    ).learners(num_learners=2)
    algorithm = config.build_algo()
    for _ in range(5):
        algorithm.train()
    yield algorithm
    algorithm.stop()


def check_counts(algorithm: Any) -> None:
    """After `quiet`."""
    counts = algorithm._ledger.counts
    assert counts.steps == counts.delivered_steps + algorithm._ledger.unfinished_steps + counts.lost_steps
    for replay in replays(algorithm):
        assert len(replay["starts"]) - 1 == counts.episodes
        assert len(replay["action"]) - counts.episodes == counts.delivered_steps
    assert counts.updates == algorithm.num_updates
    assert counts.updates <= counts.steps + 12


def acting_weights(algorithm: Any, runner: int) -> np.ndarray:
    """What a runner plans with now, flat."""
    import ray

    def flat(runner: Any) -> np.ndarray:
        return np.concatenate([value.numpy().ravel() for value in runner.module.agent.model.state_dict().values()])

    return ray.get(algorithm._runners.actors[runner].apply.remote(flat))


def test_at_once_nothing_is_lost_or_learned_twice_and_the_limits_hold(at_once: Any) -> None:
    acted_with = acting_weights(at_once, 0)
    for _ in range(3):
        result = at_once.train()
    assert not np.array_equal(acting_weights(at_once, 0), acted_with)  # newer weights have reached it
    at_once.policy_tree()  # takes what is queued
    check_counts(at_once)
    assert at_once.num_updates % 12 == 0
    assert at_once._schedule.steps_ahead + at_once._schedule.steps_asked_for <= 48
    found = at_once.take_metrics()
    assert found["online/policy_lag_max"] >= found["online/policy_lag_mean"] >= 0
    assert 0 <= found["time/runner_wait_share"] <= 1
    assert 0 <= found["time/learner_wait_share"] <= 1
    assert found["online/steps"] == result["num_steps"] == at_once.num_steps
    assert fakes.losses(result)["loss/model"] > 0


def test_two_learners_of_the_same_episodes_keep_identical_parameters(at_once: Any) -> None:
    first, second = weights(at_once)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    one, other = replays(at_once)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    batches = at_once.on_learners(lambda learner: learner.replay.sample(4, 2).obs.numpy())
    assert not np.array_equal(*batches)


def test_a_runner_killed_at_work_loses_only_what_it_had_not_finished(at_once: Any) -> None:
    before, incarnation = at_once._ledger.counts.lost_runners, at_once._ledger.incarnations[1]
    killed = runner_pid(at_once, 1)
    os.kill(killed, signal.SIGKILL)
    for _ in range(MOST_CALLS):
        at_once.train()
        if at_once._ledger.counts.lost_runners > before and not at_once._runners.deaths[1]:  # the new one has answered
            break
    assert at_once._ledger.counts.lost_runners == before + 1
    assert at_once._ledger.incarnations[1] > incarnation
    assert not at_once._runners.deaths[1]
    assert runner_pid(at_once, 1) != killed
    at_once.policy_tree()
    check_counts(at_once)


def test_counters_and_replay_survive_a_restore_and_the_run_goes_on(at_once: Any, tmp_path: Path) -> None:
    path = at_once.save_to_path(tmp_path / "saved")
    counts = dataclasses.replace(at_once._ledger.counts)
    saved = replays(at_once)
    unfinished = at_once._ledger.unfinished_steps
    at_once.train()
    at_once.restore_from_path(path)
    restored = at_once._ledger.counts
    assert (restored.steps, restored.updates, restored.episodes) == (counts.steps, counts.updates, counts.episodes)
    assert restored.lost_steps == counts.lost_steps + unfinished
    for replay, expected in zip(replays(at_once), saved, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(replay[name], array, err_msg=name)
    at_once.train()
    at_once.policy_tree()
    check_counts(at_once)


def test_at_once_a_run_goes_on_from_one_in_turn_and_makes_no_update_twice(tmp_path: Path) -> None:
    alone = small_online().build_algo()
    for _ in range(8):
        alone.train()
    path = alone.save_to_path(tmp_path / "saved")
    alone.stop()
    limits = {"steps_per_turn": 2, "max_steps_ahead": 48, "max_updates_ahead": 12}
    algorithm = small_online(num_runners=1, schedule="asynchronous", **limits).build_algo()
    algorithm.restore_from_path(path)
    counts = algorithm._ledger.counts
    assert (algorithm.num_updates, counts.updates, counts.steps) == (96, 96, 96)
    assert algorithm._schedule.steps_ahead == 0
    assert counts.steps == counts.delivered_steps + counts.lost_steps
    for _ in range(3):
        algorithm.train()
    assert algorithm.num_updates == counts.updates == 132
    assert counts.updates <= counts.steps + 12
    algorithm.stop()
