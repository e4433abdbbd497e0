"""Datasets made here: the recipe, and independence from who makes which part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import minari
import numpy as np
import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.makers import MAKERS, STAND_IN, Shard, ShardSpec, make_dataset, run_shard
from wmrl_ray.data.makers.shards import split
from wmrl_ray.envs import make_env, maze_ids, maze_layout

pytest.importorskip("gymnasium_robotics")


def collected(maze: str = "umaze", *, steps: int = 3000, seed: int = 0, index: int = 0) -> Shard:
    return run_shard(ShardSpec("collect", "pointmaze", maze, "", seed, index, steps=steps))


def rows(dataset_id: str) -> np.ndarray:
    """All that a dataset holds, one row per step."""
    episodes = minari.load_dataset(dataset_id).iterate_episodes()
    return np.concatenate(
        [np.column_stack((e.observations[:-1], e.actions, e.rewards, e.terminations, e.truncations)) for e in episodes]
    )


def test_there_is_a_maker_for_every_maze_and_style() -> None:
    assert set(MAKERS) == {f"pointmaze-{maze}" for maze in ("umaze", "medium", "large")} | {
        f"antmaze-{maze}-{style}" for maze in ("umaze", "medium", "large", "ultra") for style in ("play", "diverse")
    }
    assert {maker.env_id for maker in MAKERS.values()} == set(maze_ids())


def test_a_shard_is_one_continuous_trajectory_cut_into_truncated_pieces() -> None:
    shard = collected(steps=2500)
    assert [len(e) for e in shard.episodes] == [1000, 1000, 500]
    assert not any(e.terminated for e in shard.episodes)
    for before, after in zip(shard.episodes, shard.episodes[1:], strict=False):
        np.testing.assert_array_equal(before.obs[-1], after.obs[0])


@pytest.mark.parametrize("maze", ["umaze", "large"])
def test_the_actions_are_the_executed_ones(maze: str) -> None:
    """The environment goes through the same observations again when the stored actions are played from the start."""
    shard = collected(maze, steps=1000)
    env = make_env(MAKERS[f"pointmaze-{maze}"].env_id, max_episode_steps=2000)
    simulation: Any = env.unwrapped
    rng = shard.spec.rng()
    rng.standard_normal((1000, 2))
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    episode = shard.episodes[0]
    np.testing.assert_array_equal(episode.obs[0], obs)
    for action, reward, expected in zip(episode.action, episode.reward, episode.obs[1:], strict=True):
        assert action.dtype == np.float32
        obs, again, *_ = simulation.step(action)
        np.testing.assert_array_equal(obs, expected)
        assert again == reward


def test_the_reward_is_that_of_the_evaluation_goal_for_the_observation_after_the_action() -> None:
    maze = maze_layout("wmrl/PointMaze-UMaze-v0")
    shard = collected(steps=10_000)
    for episode in shard.episodes:
        distance = np.hypot(*(episode.obs[1:, :2] - np.float32(maze.goal)).T)
        np.testing.assert_array_equal(episode.reward, distance <= 0.5)
    assert 0.02 < np.mean([e.reward.mean() for e in shard.episodes]) < 0.3


def test_the_point_visits_every_cell_reaches_its_goals_and_its_actions_are_noisy() -> None:
    maze = maze_layout("wmrl/PointMaze-Medium-v0")
    shard = collected("medium", steps=20_000)
    obs = np.concatenate([e.obs for e in shard.episodes])
    assert {maze.cell_at(*xy) for xy in obs[:, :2]} == set(maze.free_cells)
    assert shard.reached > 50
    action = np.concatenate([e.action for e in shard.episodes])
    assert np.abs(action).max() == 1.0
    inside = action[(np.abs(action) < 1).all(1)]
    assert 0.3 < inside.std() < 0.6


def test_a_shard_depends_on_its_seed_and_index_and_on_nothing_else() -> None:
    first = collected(steps=500, index=1).episodes[0]
    np.testing.assert_array_equal(first.obs, collected(steps=500, index=1).episodes[0].obs)
    assert not np.array_equal(first.obs, collected(steps=500, index=2).episodes[0].obs)
    assert not np.array_equal(first.obs, collected(steps=500, index=1, seed=1).episodes[0].obs)


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_the_expert_is_far_above_the_random_policy(maze: str) -> None:
    expert = run_shard(ShardSpec("expert", "pointmaze", maze, "", 0, 0, episodes=8))
    random = run_shard(ShardSpec("random", "pointmaze", maze, "", 0, 0, episodes=8))
    assert len(expert.returns) == 8
    assert min(expert.returns) > 50
    assert np.mean(expert.returns) > 2 * np.mean(random.returns) + 50


def test_the_written_dataset_says_what_it_is() -> None:
    dataset_id = make_dataset("pointmaze-umaze", steps=2_500, seed=3, dataset_id="test/card-v0", reference_episodes=8)
    assert dataset_id == "test/card-v0"
    dataset = minari.load_dataset(dataset_id)
    metadata = dataset.storage.metadata
    assert (dataset.total_steps, dataset.total_episodes) == (2500, 3)
    assert metadata["description"].startswith(STAND_IN)
    assert "over 8 episodes (score 0)" in metadata["description"]
    assert "seed 3" in metadata["description"]
    assert any(requirement.startswith("mujoco==") for requirement in metadata["requirements"])
    assert metadata["ref_min_score"] + 50 < metadata["ref_max_score"]
    assert metadata["num_episodes_average_score"] == 8
    env = dataset.recover_environment(eval_env=True)
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == ("wmrl/PointMaze-UMaze-v0", 300)
    assert env.observation_space == dataset.observation_space
    assert env.action_space == dataset.action_space
    last = rows(dataset_id)[[999, 1999, 2499]]
    np.testing.assert_array_equal(last[:, -2:], [[0, 1]] * 3)


def test_the_reference_scores_are_the_means_of_the_measured_returns() -> None:
    seen: list[Shard] = []

    def spying_map(function: Any, specs: Sequence[ShardSpec]) -> Iterable[Shard]:
        seen.extend(map(function, specs))
        return seen

    make_dataset("pointmaze-umaze", steps=100, dataset_id="test/reference-v0", reference_episodes=10, map_shards=spying_map)
    metadata = minari.load_dataset("test/reference-v0").storage.metadata
    for kind, key in (("random", "ref_min_score"), ("expert", "ref_max_score")):
        returns = [r for shard in seen if shard.spec.kind == kind for r in shard.returns]
        assert len(returns) == 10
        assert metadata[key] == pytest.approx(np.mean(returns))


def test_a_dataset_does_not_depend_on_the_order_or_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, "pointmaze-umaze", _with_shards(600))
    made = {"reference_episodes": 4, "steps": 2_000, "seed": 1}

    def backwards(function: Any, specs: Sequence[ShardSpec]) -> list[Shard]:
        return [function(spec) for spec in reversed(specs)][::-1]

    one = make_dataset("pointmaze-umaze", dataset_id="test/one-v0", **made)
    other = make_dataset("pointmaze-umaze", dataset_id="test/backwards-v0", map_shards=backwards, **made)
    two = make_dataset("pointmaze-umaze", dataset_id="test/two-v0", workers=2, **made)
    np.testing.assert_array_equal(rows(one), rows(other))
    np.testing.assert_array_equal(rows(one), rows(two))
    scores = [minari.load_dataset(i).storage.metadata["ref_max_score"] for i in (one, other, two)]
    assert len(set(scores)) == 1
    longer = make_dataset("pointmaze-umaze", dataset_id="test/longer-v0", **(made | {"steps": 2_400}))
    np.testing.assert_array_equal(rows(longer)[:1800, :6], rows(one)[:1800, :6])


def test_progress_ends_with_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, "pointmaze-umaze", _with_shards(300))
    seen: list[tuple[int, int]] = []
    make_dataset(
        "pointmaze-umaze",
        steps=1_000,
        dataset_id="test/progress-v0",
        reference_episodes=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-4:] == [(300, 1000), (600, 1000), (900, 1000), (1000, 1000)]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"name": "pointmaze-umase"}, DataError, r"no maker 'pointmaze-umase' \(did you mean 'pointmaze-umaze'\?\)"),
        ({"name": "pointmaze-umaze", "steps": 0}, ConfigError, "steps = 0; at least 1"),
        ({"name": "pointmaze-umaze", "reference_episodes": 0}, ConfigError, "reference_episodes = 0; at least 1"),
        ({"name": "pointmaze-umaze", "dataset_id": "no good!"}, DataError, "'no good!' is not a Minari id"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    def no_work(function: Any, specs: Any) -> Any:
        raise AssertionError("work was started")

    with pytest.raises(error, match=message):
        make_dataset(**kwargs, map_shards=no_work)


def test_an_id_that_is_taken_is_refused_before_any_work() -> None:
    make_dataset("pointmaze-umaze", steps=100, dataset_id="test/taken-v0", reference_episodes=2)
    with pytest.raises(DataError, match="test/taken-v0 exists already; .* replace it: --overwrite"):
        make_dataset("pointmaze-umaze", dataset_id="test/taken-v0", map_shards=lambda function, specs: [])


def test_equal_reference_scores_are_refused_before_data_are_made() -> None:
    seen: list[str] = []

    def same_returns(function: Any, specs: Sequence[ShardSpec]) -> Iterable[Shard]:
        for spec in specs:
            seen.append(spec.kind)
            yield Shard(spec, [], [0.0] * spec.episodes, 0)

    with pytest.raises(DataError, match=r"both have the mean return 0 over 3 episodes.*use more reference episodes"):
        make_dataset("pointmaze-umaze", steps=100, dataset_id="test/flat-v0", reference_episodes=3, map_shards=same_returns)
    assert set(seen) == {"random", "expert"}
    assert "test/flat-v0" not in minari.list_local_datasets()


def test_a_map_that_loses_a_shard_is_found_out() -> None:
    with pytest.raises(RuntimeError, match="shards were asked for"):
        make_dataset(
            "pointmaze-umaze",
            steps=200,
            dataset_id="test/lost-v0",
            reference_episodes=2,
            map_shards=lambda function, specs: [function(spec) for spec in specs[:-1]],
        )
    assert "test/lost-v0" not in minari.list_local_datasets()


def test_parts_sum_to_the_whole() -> None:
    assert split(10, 4) == [4, 4, 2]
    assert split(8, 4) == [4, 4]
    assert split(3, 4) == [3]


def _with_shards(steps: int) -> Any:
    import dataclasses

    return dataclasses.replace(MAKERS["pointmaze-umaze"], shard_steps=steps)
