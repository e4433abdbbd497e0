"""The synchronous schedule: runners take their steps in turn with the learners, exactly repeatable."""

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
from tests.rllib.online_fakes import replays, runner_pid, small_online, unfinished_steps, weights
from wmrl_ray.collect import Collector
from wmrl_ray.rllib.failures import RemoteError
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import build_agent, build_replay, update_many

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def reference(config: RunConfig, num_calls: int) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The synchronous loop of two runners with U = 1 and one step per turn, written out: two collectors, one learner."""
    collectors = [Collector(str(config.env), {}, config.online.num_envs, seed=(config.seed, i)) for i in range(2)]
    agent, replay = build_agent(config, None), build_replay(config, None)
    steps = updates = 0
    while updates < num_calls * config.updates_per_call:
        seeding = steps < config.online.seed_steps  # type: ignore[operator]
        if seeding or updates + 4 > steps:
            for collector in collectors:
                for episode in collector.collect(None if seeding else agent, 12 if seeding else 1):
                    replay.add(episode)
                steps += config.online.num_envs * (12 if seeding else 1)
        if not seeding or steps >= config.online.seed_steps:  # type: ignore[operator]
            update_many(agent, replay, 4, config.batch_size)
            updates += 4
    return [p.detach().numpy() for p in agent.model.parameters()], replay.get_state()["online"]


@pytest.fixture(scope="module")
def two_runners(local_ray: None) -> Iterator[Any]:
    """Synchronous, trained for 7 calls."""
    algorithm = small_online(num_runners=2).build_algo()
    for _ in range(7):
        algorithm.train()
    yield algorithm
    algorithm.stop()


def test_two_runners_in_turns_are_two_collectors_and_a_learner_in_one_process(two_runners: Any) -> None:
    parameters, episodes = reference(two_runners.config.run_config(), 7)
    assert two_runners.num_steps == 84  # 48 random ones; updates 1 to 48 follow those, then one step for each
    (found,) = weights(two_runners)
    model = [value for name, value in found.items() if name.startswith("model.")]
    assert len(model) == len(parameters)
    for ours, expected in zip(model, parameters, strict=True):
        np.testing.assert_array_equal(ours, expected)
    (replay,) = replays(two_runners)
    for name, array in episodes.items():
        np.testing.assert_array_equal(replay[name], array, err_msg=name)


def test_two_runners_go_on_exactly_after_a_restore(two_runners: Any, tmp_path: Path) -> None:
    updates, before = two_runners.num_updates, two_runners.num_steps
    path = two_runners.save_to_path(tmp_path / "saved")
    expected = [fakes.losses(two_runners.train()) for _ in range(2)]
    steps, (episodes,) = two_runners.num_steps, replays(two_runners)
    two_runners.restore_from_path(path)
    assert (two_runners.num_updates, two_runners.num_steps) == (updates, before)
    assert [fakes.losses(two_runners.train()) for _ in range(2)] == expected
    assert two_runners.num_steps == steps
    for name, array in replays(two_runners)[0].items():
        np.testing.assert_array_equal(array, episodes[name], err_msg=name)


def test_a_killed_runner_comes_back_and_the_counts_stay_right(two_runners: Any) -> None:
    before, killed, lost = two_runners.num_steps, runner_pid(two_runners, 0), two_runners._ledger.counts.lost_runners
    os.kill(killed, signal.SIGKILL)
    two_runners.train()
    assert runner_pid(two_runners, 0) != killed
    assert two_runners.num_steps == before + 12
    counts = two_runners._ledger.counts
    assert counts.lost_runners == lost + 1
    assert counts.steps == counts.delivered_steps + unfinished_steps(two_runners) + counts.lost_steps
    assert replays(two_runners)[0]["action"].shape[0] - counts.episodes == counts.delivered_steps


def test_a_runner_that_is_dead_when_a_checkpoint_is_written_starts_anew_after_the_restore(
    two_runners: Any, tmp_path: Path
) -> None:
    lost, unfinished = dataclasses.replace(two_runners._ledger.counts), unfinished_steps(two_runners)
    os.kill(runner_pid(two_runners, 1), signal.SIGKILL)
    path = two_runners.save_to_path(tmp_path / "saved")
    assert two_runners._ledger.counts.lost_runners == lost.lost_runners + 1
    expected = fakes.losses(two_runners.train())
    two_runners.restore_from_path(path)
    assert fakes.losses(two_runners.train()) == expected  # both went on with one old runner and the same new one
    counts = two_runners._ledger.counts
    assert lost.lost_steps <= counts.lost_steps <= lost.lost_steps + unfinished
    assert counts.steps == counts.delivered_steps + unfinished_steps(two_runners) + counts.lost_steps


def test_a_checkpoint_before_anybody_collected_again_has_no_collectors_of_the_time_before(
    two_runners: Any, tmp_path: Path
) -> None:
    path = two_runners.save_to_path(tmp_path / "saved")
    state = two_runners.get_state()
    lost = two_runners._ledger.counts.lost_runners
    two_runners.set_state(state)
    tree = two_runners.policy_tree()
    assert tree["collectors"] == [None, None]  # their collectors are of the session before
    assert two_runners._ledger.counts.lost_runners == tree["online"]["lost_runners"] == lost
    two_runners.restore_from_path(path)
    collectors = two_runners.policy_tree()["collectors"]
    assert sum(len(episode["action"]) for saved in collectors for episode in saved["unfinished"]) == (
        two_runners._ledger.unfinished_steps
    )
    two_runners.train()
    counts = two_runners._ledger.counts
    assert counts.steps == counts.delivered_steps + unfinished_steps(two_runners) + counts.lost_steps


def test_unfinished_episodes_that_are_not_replayed_are_lost_steps(two_runners: Any, tmp_path: Path) -> None:
    path, unfinished = two_runners.save_to_path(tmp_path / "saved"), two_runners._ledger.unfinished_steps
    lost, online = two_runners._ledger.counts.lost_steps, two_runners.online
    two_runners.online = dataclasses.replace(online, replay_unfinished=False)
    two_runners.restore_from_path(path)
    counts = two_runners._ledger.counts
    assert (counts.lost_steps, two_runners._ledger.unfinished_steps) == (lost + unfinished, 0)
    two_runners.train()
    two_runners.online = online
    assert counts.steps == counts.delivered_steps + unfinished_steps(two_runners) + counts.lost_steps
    assert two_runners._ledger.unfinished_steps == unfinished_steps(two_runners)


def test_an_error_in_a_runner_stops_the_run_with_its_traceback() -> None:
    algorithm = small_online(num_runners=1).environment(fakes.RAISING_PLANE).build_algo()
    with pytest.raises(RemoteError, match="boom in step 3") as caught:
        algorithm.train()
    first, *rest = str(caught.value).splitlines()
    assert first == "runner failed: ValueError: boom in step 3"
    assert any("fakes.py" in line for line in rest)
    algorithm.stop()


def test_one_process_goes_on_with_the_replay_and_the_counts_of_two_runners(two_runners: Any, tmp_path: Path) -> None:
    path = two_runners.save_to_path(tmp_path / "saved")
    algorithm = small_online().build_algo()
    algorithm.restore_from_path(path)
    assert algorithm.num_steps == two_runners.num_steps
    (ours,), (theirs,) = replays(algorithm), replays(two_runners)
    np.testing.assert_array_equal(ours["obs"], theirs["obs"])
    seed, incarnation = algorithm.config.seed, 1 + max(two_runners._ledger.incarnations)
    assert algorithm.on_learners(lambda learner: learner.collector._seed) == [[seed, 0, incarnation]]  # not a runner's
    assert algorithm._ledger.incarnations == [incarnation]
    algorithm.train()
    assert algorithm.num_steps == two_runners.num_steps + 12
    algorithm.stop()
