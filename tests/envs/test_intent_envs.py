"""Environments with intents: one call for all that are side by side, and the same vectors in every way to step them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fakes import FakeAgent, constant
from tests.rllib.fakes import PLANE
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.core.agents import agent_config, make_agent
from wmrl_ray.core.agents.manager import Manager
from wmrl_ray.envs import make_env, make_vector_env
from wmrl_ray.envs.intents import intent_env_id, load_manager, make_intents
from wmrl_ray.policy import Policy
from wmrl_ray.rollout import env_dims, episode_seed, evaluate

SMALL = {
    "model": {"latent_dim": 6, "encoder_dim": 8, "hidden_dim": 8},
    "plan": {"horizon": 2, "num_samples": 0, "num_policy": 8, "num_elites": 2, "iterations": 1},
    "skip": 3,
}
RANDOM = intent_env_id(3, PLANE)


@pytest.fixture
def manager_path(tmp_path: Path) -> Path:
    return save_manager(tmp_path / "manager")


def save_manager(path: Path, obs_dim: int = 4, seed: int = 0) -> Path:
    agent = make_agent("manager", SMALL, obs_dim, 2, seed=seed)
    meta = {"algorithm": "manager", "agent": to_dict(agent_config("manager", SMALL)), "obs_dim": obs_dim, "action_dim": 2}
    return checkpoint.save(path, {"agent": agent.get_state()}, {**meta, "env": PLANE})


class Spy:
    """Counts what is planned. rows: of every call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows: list[int] = []
        self.loads = 0
        plan, load = Manager.act_intent, Policy.load

        def counted_plan(manager: Manager, obs: torch.Tensor, generator: Any) -> torch.Tensor:
            self.rows.append(len(obs))
            return plan(manager, obs, generator)

        def counted_load(*args: Any) -> Policy:
            self.loads += 1
            return load(*args)

        monkeypatch.setattr(Manager, "act_intent", counted_plan)
        monkeypatch.setattr(Policy, "load", counted_load)


def walker() -> FakeAgent:
    return FakeAgent(constant(0.3, -0.2))


def same_episodes(a: list[Any], b: list[Any], atol: float = 0.0) -> None:
    for x, y in zip(a, b, strict=True):
        for name in ("obs", "action", "reward"):
            np.testing.assert_allclose(getattr(x, name), getattr(y, name), rtol=0, atol=atol)


def test_an_intent_depends_on_the_noise_and_its_own_rows_observation_only(manager_path: Path) -> None:
    """So a batch holds what would be planned row by row with the same noise."""
    intents = make_intents(str(manager_path), 5)
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

    def planned(rows: np.ndarray, seed: int = 0) -> np.ndarray:
        for row in range(5):
            intents.start(row, seed + 10 * row)
        return intents.vectors(rows, range(5))

    together = planned(obs)
    assert together.shape == (5, 6) and together.dtype == np.float32
    for i in range(5):
        np.testing.assert_allclose(planned(np.repeat(obs[i : i + 1], 5, 0))[i], together[i], atol=1e-6)
    assert not np.allclose(planned(np.roll(obs, 1, 0)), together)
    assert not np.allclose(planned(obs, seed=1), together)


def test_evaluating_plans_once_per_step_for_all_environments_that_still_run(
    manager_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_id = intent_env_id(manager_path, PLANE)
    assert env_dims(env_id) == (10, 2)
    spy = Spy(monkeypatch)
    equal = evaluate(walker(), env_id, 6, num_envs=3, env_config={"max_episode_steps": 4})
    assert equal.lengths == [4] * 6
    assert spy.rows == [3] * 10  # twice: at the reset, and after each of 4 steps
    spy.rows.clear()
    unequal = evaluate(walker(), env_id, 7, num_envs=3)
    assert len(set(unequal.lengths)) > 1
    assert sum(spy.rows) == sum(length + 1 for length in unequal.lengths)
    assert max(spy.rows) == 3
    assert spy.loads <= 1


def test_a_vector_environment_plans_once_per_step(manager_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    envs = make_vector_env(intent_env_id(manager_path, PLANE), 3)
    obs, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(obs) and obs.shape == (3, 10) and envs.single_observation_space.shape == (10,)
    for _ in range(25):
        envs.step(np.zeros((3, 2), np.float32))
    assert spy.rows == [3] * 26
    assert spy.loads <= 1


def test_episodes_recorded_with_intents_are_those_of_the_single_environment(manager_path: Path) -> None:
    env_id = intent_env_id(manager_path, PLANE)
    env, action = make_env(env_id), np.array([0.3, -0.2], np.float32)
    for k, episode in enumerate(evaluate(walker(), env_id, 3, num_envs=1, seed=8).episodes):
        np.testing.assert_array_equal(episode.obs[0], env.reset(seed=episode_seed(8, k))[0])
        for recorded in episode.obs[1:]:
            np.testing.assert_array_equal(recorded, env.step(action)[0])
        assert len(np.unique(episode.obs[:, 4:], axis=0)) > 1


def test_the_same_seed_and_number_of_environments_give_the_same_episodes(manager_path: Path) -> None:
    env_id = intent_env_id(manager_path, PLANE)
    first, again, other = (evaluate(walker(), env_id, 7, num_envs=3, seed=seed).episodes for seed in (2, 2, 3))
    same_episodes(first, again)
    assert not np.array_equal(first[0].obs[0], other[0].obs[0])
    plain = evaluate(walker(), PLANE, 7, num_envs=3, seed=2).episodes
    for a, b in zip(first, plain, strict=True):
        np.testing.assert_array_equal(a.obs[:, :4], b.obs)


@pytest.fixture(params=["random", "planned"])
def any_intents(request: pytest.FixtureRequest, manager_path: Path) -> str:
    return RANDOM if request.param == "random" else intent_env_id(manager_path, PLANE)


def test_the_vectors_of_an_episode_are_the_same_wherever_it_runs(any_intents: str) -> None:
    """Up to the last bits of a product of another number of rows, for a Manager's."""
    first = evaluate(walker(), any_intents, 7, num_envs=1, seed=2).episodes
    atol = 0.0 if any_intents == RANDOM else 1e-5
    for num_envs in (3, 7):
        same_episodes(evaluate(walker(), any_intents, 7, num_envs=num_envs, seed=2).episodes, first, atol)

    envs: Any = make_vector_env(any_intents, 2)
    for i, env in enumerate(envs.unwrapped.envs):
        env.seeds = iter([episode_seed(2, k) for k in (i, i + 2)])
    obs, _ = envs.reset()
    found: list[list[np.ndarray]] = [[row] for row in obs]
    lengths = [len(first[i].obs) + len(first[i + 2].obs) for i in range(2)]
    while any(len(rows) < length for rows, length in zip(found, lengths, strict=True)):
        for rows, row in zip(found, envs.step(np.tile(np.float32([0.3, -0.2]), (2, 1)))[0], strict=True):
            rows.append(row)
    for i in range(2):
        expected = np.concatenate([first[i].obs, first[i + 2].obs])
        np.testing.assert_allclose(np.stack(found[i][: lengths[i]]), expected, rtol=0, atol=atol)


def test_random_vectors_are_redrawn_at_every_step_and_others_in_every_episode() -> None:
    vectors = np.concatenate([episode.obs[:, 4:] for episode in evaluate(walker(), RANDOM, 7, num_envs=1, seed=2).episodes])
    assert vectors.shape[1] == 3 and 0 <= vectors.min() < 0.1 and 0.9 < vectors.max() <= 1
    assert len(np.unique(vectors, axis=0)) == len(vectors)


def test_without_a_seed_streams_go_on(any_intents: str) -> None:
    env = make_env(any_intents)
    env.reset(seed=1)
    resumed = env.reset()[0]
    assert not np.array_equal(resumed[4:], env.reset(seed=1)[0][4:])


def test_a_manager_that_does_not_read_these_observations_is_refused_everywhere(tmp_path: Path) -> None:
    env_id = intent_env_id(save_manager(tmp_path / "wide", obs_dim=5), PLANE)
    makers = (make_env, lambda id: make_vector_env(id, 2), lambda id: evaluate(walker(), id, 1))
    for make in makers:
        with pytest.raises(ConfigError, match=r"reads observations of shape \(5,\), the environment has \(4,\)"):
            make(env_id)


def test_a_manager_is_loaded_once_until_another_is_saved_in_its_place(manager_path: Path) -> None:
    first = load_manager(manager_path)
    assert load_manager(str(manager_path)) is first
    save_manager(manager_path, seed=1)
    assert load_manager(manager_path) is not first
