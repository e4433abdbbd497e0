"""Learning online on Ray: the loop without Ray to the bit where it can be, and counts that are right where it cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rllib import fakes
from tests.rllib.online_fakes import OwnTDMPC, run_config, small_online
from wmrl_ray.collect import Collector
from wmrl_ray.online import train_online
from wmrl_ray.policy import Policy
from wmrl_ray.rllib.failures import RemoteError
from wmrl_ray.rllib.online import OnlineAlgorithm
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run import OnlineConfig, RunConfig, RunDir
from wmrl_ray.train import build_agent, build_replay, update_many

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


MOST_CALLS = 500  # of the learners, until a runner that was killed has come back


def logged(run_dir: Path) -> list[dict[str, float]]:
    """What was learned and collected, without times and evaluations (whose planners draw other rows of noise)."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(("time", "eval/"))} for line in lines]
    return [line for line in kept if len(line) > 1]


def restricted(lines: list[dict[str, float]], to: list[dict[str, float]]) -> list[dict[str, float]]:
    """With the keys of `to` only."""
    return [{k: line[k] for k in wanted} for line, wanted in zip(lines, to, strict=True)]


def weights(algorithm: Any) -> list[dict[str, np.ndarray]]:
    """Of every rank."""
    return algorithm.on_learners(lambda learner: {k: v.numpy().copy() for k, v in learner.agent_module.state_dict().items()})


def replays(algorithm: Any) -> list[dict[str, np.ndarray]]:
    """The episodes in the replay of every rank."""
    return algorithm.on_learners(lambda learner: learner.replay.get_state()["online"])


def runner_pid(algorithm: OnlineAlgorithm, runner: int) -> int:
    import ray

    assert algorithm._runners is not None
    return ray.get(algorithm._runners.actors[runner].apply.remote(lambda runner: os.getpid()))


def unfinished_steps(algorithm: OnlineAlgorithm) -> int:
    """What lies in the environments now, as the runners say."""
    assert algorithm._runners is not None
    states, dead = algorithm._runners.collector_states(algorithm._session)
    assert not dead
    return sum(len(episode["action"]) for state in states if state is not None for episode in state["unfinished"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without Ray."""
    path = tmp_path_factory.mktemp("plain") / "run"
    train_online(run_config(), path)
    return path


# -- as the loop without Ray ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("algorithm", ["tdmpc2", "iq_mpc"])
def test_the_papers_agents_too(plane_dataset: str, tmp_path: Path, algorithm: str) -> None:
    """With a checkpoint half-way and, for IQ-MPC, a few of the demonstrations."""
    bins = {"tdmpc2": 11, "iq_mpc": 1}[algorithm]
    model = {"latent_dim": 16, "encoder_dim": 16, "mlp_dim": 16, "simnorm_dim": 4, "num_critics": 2, "num_bins": bins}
    plan = {"num_samples": 8, "num_policy": 4, "num_elites": 4, "iterations": 2}
    online = OnlineConfig(num_envs=2, seed_steps=24, num_demonstrations=20 if algorithm == "iq_mpc" else None)
    config = run_config(
        algorithm=algorithm,
        dataset=plane_dataset if algorithm == "iq_mpc" else None,
        num_updates=48,
        eval_every=0,
        checkpoint_every=24,
        log_every=12,
        online=online,
        env_config={"max_episode_steps": 10},
        agent={"model": model, "plan": plan},
    )
    train_online(config, tmp_path / "plain")
    calls = iter(range(100))
    train_on_ray(config, tmp_path / "ray", should_stop=lambda: next(calls) >= 1)
    train_on_ray(config, tmp_path / "ray", resume=True)
    assert logged(tmp_path / "ray") == logged(tmp_path / "plain")
    assert len(logged(tmp_path / "plain")) == 4
    for run in (RunDir(tmp_path / "plain"), RunDir(tmp_path / "ray")):  # the environment's step limit, everywhere
        newest = run.newest_checkpoint()
        assert newest is not None and run.config().agent["episode_len"] == 10
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


# -- synchronous, two runners -------------------------------------------------------------------------------------------------


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


# -- asynchronous -----------------------------------------------------------------------------------------------------------


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


def test_at_once_nothing_is_lost_or_learned_twice_and_the_limits_hold(at_once: Any) -> None:
    for _ in range(3):
        result = at_once.train()
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


def test_tune_reserves_a_cpu_for_every_runner() -> None:
    config = small_online(num_runners=3).evaluation(evaluation_num_env_runners=2)
    bundles = OwnTDMPC.default_resource_request(config.to_dict()).bundles
    assert len(bundles) == 1 + 3 + 2
