"""Collecting: whole episodes as they happened, streams of its own, and continuation to the bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.fakes import Drift, DriftImages, OnlineTDMPC
from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.collect import Collector, Statistics
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import agent_config
from wmrl_ray.core.agents.base import Agent
from wmrl_ray.data.episode import Episode

SMALL = {
    "model": {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": 3, "num_samples": 8, "num_policy": 4, "num_elites": 4, "iterations": 2},
}


@pytest.fixture
def agent() -> Agent:
    return OnlineTDMPC(agent_config("tdmpc", SMALL), 3, 2, seed=1)


def same(a: list[Episode], b: list[Episode]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.obs, y.obs) and np.array_equal(x.action, y.action) and np.array_equal(x.reward, y.reward)
        for x, y in zip(a, b, strict=True)
    )


def test_episodes_are_what_the_environment_answered() -> None:
    collector = Collector("Drift-v0", num_envs=3, seed=5)
    episodes = collector.collect(None, 60)
    assert len(episodes) == collector.num_episodes > 8 and collector.num_steps == 180
    for episode in episodes:
        episode.validate()
        assert episode.obs.dtype == np.float32 and len(episode) <= 20
        distance = np.abs(episode.obs).max(1)
        np.testing.assert_allclose(episode.reward, 1 - distance[1:], rtol=1e-5)
        assert episode.terminated == (distance[-1] > 4) and (distance[1:-1] <= 4).all()
        assert episode.terminated or len(episode) == 20
    assert any(episode.terminated for episode in episodes)
    assert len({tuple(episode.obs[0]) for episode in episodes}) == len(episodes)  # every one from its own seed


def test_collecting_in_pieces_that_stop_where_an_episode_ends_changes_nothing() -> None:
    whole, pieces = Collector("Drift-v0", num_envs=2, seed=5), Collector("Drift-v0", num_envs=2, seed=5)
    expected, found, counts = whole.collect(None, 60), [], []
    while pieces.num_steps < 120:
        found.append(pieces.collect(None, 60 - pieces.num_steps // 2, until_end=True))
        counts.append(pieces.take_statistics().steps)
    assert same([episode for piece in found for episode in piece], expected)
    assert all(found[:-1]) and sum(counts) == 120 and len(found) > 3


def test_random_actions_fill_the_whole_range() -> None:
    actions = np.concatenate([e.action for e in Collector("Drift-v0", num_envs=4).collect(None, 200)])
    assert actions.min() < -0.98 and actions.max() > 0.98 and abs(actions.mean()) < 0.05


def test_the_agent_explores_in_all_environments_at_once_and_starts_afresh_in_each_episode(agent: Agent) -> None:
    calls: list[dict[str, Any]] = []
    act = agent.act

    def recorded(obs: Any, plan_state: Any, is_first: Any, **kwargs: Any) -> Any:
        calls.append({"obs": obs, "plan_state": plan_state, "is_first": is_first, **kwargs})
        return act(obs, plan_state, is_first, **kwargs)

    agent.act = recorded  # type: ignore[method-assign]
    collector = Collector("Drift-v0", num_envs=2, seed=3)
    episodes = collector.collect(agent, 25)
    assert len(calls) == 25 and all(call["explore"] and call["obs"].shape == (2, 3) for call in calls)
    assert calls[0]["plan_state"] is None and calls[0]["is_first"].all()
    assert sum(int(call["is_first"].sum()) for call in calls) == 2 + len(episodes)
    first = episodes[0]
    row = next(r for r in range(2) if torch.equal(calls[0]["obs"][r], torch.from_numpy(first.obs[0])))
    for t in range(1, len(first)):
        assert calls[t]["reward"][row] == pytest.approx(first.reward[t - 1])
        assert torch.equal(calls[t]["obs"][row], torch.from_numpy(first.obs[t]))


def test_after_random_steps_the_agents_plan_starts_afresh_in_the_middle_of_an_episode(agent: Agent) -> None:
    calls: list[tuple[bool, list[bool]]] = []
    act = agent.act

    def recorded(obs: Any, plan_state: Any, is_first: Any, **kwargs: Any) -> Any:
        calls.append((plan_state is None, is_first.tolist()))
        return act(obs, plan_state, is_first, **kwargs)

    agent.act = recorded  # type: ignore[method-assign]
    collector = Collector("Drift-v0", num_envs=2, seed=3)
    for steps, by in ((2, agent), (1, None), (2, agent)):
        assert collector.collect(by, steps) == []
    assert calls == [(True, [True, True]), (False, [False, False])] * 2


def test_the_agents_own_stream_is_left_alone_and_evaluations_change_nothing(agent: Agent) -> None:
    before = agent.act_generator.get_state()
    a = Collector("Drift-v0", num_envs=2, seed=3).collect(agent, 30)
    assert torch.equal(agent.act_generator.get_state(), before)
    agent.act_generator.manual_seed(77)
    assert same(a, Collector("Drift-v0", num_envs=2, seed=3).collect(agent, 30))
    assert not same(a, Collector("Drift-v0", num_envs=2, seed=4).collect(agent, 30))


def test_seeds_of_runners_give_other_episodes() -> None:
    starts = [Collector("Drift-v0", num_envs=1, seed=(0, runner)).collect(None, 20)[0].obs[0, 0] for runner in range(4)]
    assert len(set(starts)) == 4


def test_a_restored_collector_continues_to_the_bit(agent: Agent, tmp_path: Any) -> None:
    collector = Collector("Drift-v0", num_envs=3, seed=2)
    collector.collect(None, 17)
    collector.collect(agent, 16)
    checkpoint.save(tmp_path / "c", collector.get_state(), {})
    other = Collector("Drift-v0", num_envs=3, seed=2)
    other.set_state(checkpoint.load(tmp_path / "c")[0])
    for steps, by in ((9, agent), (30, None), (30, agent)):
        assert same(collector.collect(by, steps), other.collect(by, steps))
    assert (other.num_steps, other.num_episodes) == (collector.num_steps, collector.num_episodes)
    a, b = collector.take_statistics(), other.take_statistics()
    assert a.metrics()["online/return_mean"] == b.metrics()["online/return_mean"] and a.act_sums == b.act_sums


def test_without_its_warm_start_the_agent_would_plan_otherwise(agent: Agent) -> None:
    """So the test above would notice a checkpoint without it."""
    collector, other = (Collector("Drift-v0", num_envs=1, seed=2) for _ in range(2))
    collector.collect(agent, 5)
    other.set_state({**collector.get_state(), "plan_state": None})
    assert not same(collector.collect(agent, 40), other.collect(agent, 40))


class Forgetful(Drift):
    """Its noise goes on where the last episode left it, whatever the seed."""

    noise = np.random.default_rng(0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.at = self.at + self.noise.standard_normal(3) * 1e-3
        return super().step(action)


gym.register("Forgetful-v0", entry_point=Forgetful, max_episode_steps=20)


def test_a_simulator_that_does_not_repeat_itself_is_one_clear_error() -> None:
    collector, other = (Collector("Forgetful-v0", num_envs=2, seed=2) for _ in range(2))
    collector.collect(None, 5)
    with pytest.raises(CheckpointError, match=r"environment 0 does not repeat .*\(5 steps\).*online.replay_unfinished=false"):
        other.set_state(collector.get_state())
    other.set_state(collector.get_state(), replay_unfinished=False)
    episodes = other.collect(None, 20)
    assert other.num_steps == 50 and len(episodes) >= 2 and all(len(episode) <= 20 for episode in episodes)


def test_another_number_of_environments_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has 2 environments, this run 3"):
        Collector("Drift-v0", num_envs=3).set_state(Collector("Drift-v0", num_envs=2).get_state())
    with pytest.raises(ConfigError, match="num_envs = 0"):
        Collector("Drift-v0", num_envs=0)


def test_an_action_that_is_not_finite_is_named(agent: Agent) -> None:
    agent.act = lambda obs, *args, **kwargs: (torch.full((len(obs), 2), torch.nan), None, {})  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="environment 0, episode 0, step 0"):
        Collector("Drift-v0").collect(agent, 1)


def test_statistics_are_of_the_episodes_since_they_were_taken_and_add_up_over_runners() -> None:
    a, b = Collector("Drift-v0", num_envs=2, seed=0), Collector("Drift-v0", num_envs=1, seed=1)
    a.collect(None, 30)
    a.take_statistics()
    episodes = [*a.collect(None, 40), *b.collect(None, 40)]
    total = a.take_statistics()
    total.add(b.take_statistics())
    assert total.steps == 120 and total.episodes == len(episodes)
    metrics = total.metrics()
    assert metrics["online/return_mean"] == pytest.approx(np.mean([e.episode_return for e in episodes]))
    assert metrics["online/length_mean"] == pytest.approx(np.mean([len(e) for e in episodes]))
    succeeded = [bool((np.abs(e.obs[1:]).max(1) < 0.5).any()) for e in episodes]
    assert metrics["online/success_mean"] == pytest.approx(np.mean(succeeded))
    assert Statistics().metrics() == {"time/act_s": 0.0, "time/env_s": 0.0}


def test_images_are_kept_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmrl_ray.collect.make_env", lambda env_id, **kwargs: gym.make(env_id, **kwargs))
    episodes = Collector("DriftImages-v0", num_envs=2).collect(None, 40)
    for episode in episodes:
        assert episode.obs.dtype == np.uint8 and episode.obs.shape == (len(episode) + 1, 3, 4, 4)
        episode.validate()
    assert DriftImages.observation_space.shape == (3, 4, 4)


def test_a_state_is_a_copy_and_the_seed_travels_with_it(agent: Agent) -> None:
    collector, other = Collector("Drift-v0", num_envs=2, seed=(2, 0, 1)), Collector("Drift-v0", num_envs=2, seed=(2, 0))
    collector.collect(agent, 5)
    state = collector.get_state()
    before = dict(state["statistics"]["act_sums"])
    assert before
    other.set_state(state)
    assert same(collector.collect(agent, 40), other.collect(agent, 40))  # with the episodes that start in between
    assert state["statistics"]["act_sums"] == before
