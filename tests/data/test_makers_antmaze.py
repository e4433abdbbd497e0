"""AntMaze data: the gait walks, commanded goals follow each other, one goal ends an episode."""

from __future__ import annotations

import math

import minari
import numpy as np
import pytest

from wmrl_ray.data.makers import ShardSpec, make_dataset, run_shard
from wmrl_ray.data.makers.antmaze import PLAY, AntController
from wmrl_ray.data.makers.gait import uprightness, walk
from wmrl_ray.envs import make_env, maze_layout

pytest.importorskip("gymnasium_robotics")
UMAZE = "wmrl/AntMaze-UMaze-v0"


@pytest.mark.parametrize("heading", [0.0, 2.0, -1.2])
def test_the_gait_walks_in_any_direction_and_stays_upright(heading: float) -> None:
    env = make_env("wmrl/AntMaze-Large-v0")
    obs, _ = env.reset(seed=0, options={"start_cell": (3, 5)})
    start = obs[:2].copy()
    for _ in range(30):
        obs, *_ = env.step(walk(obs, heading).astype(np.float32))
    way = obs[:2] - start
    assert way @ (math.cos(heading), math.sin(heading)) > 0.6  # metres in 1.5 s, from standing
    assert uprightness(obs) > 0.9


def test_uprightness_of_known_poses() -> None:
    def pose(*quaternion: float) -> np.ndarray:
        obs = np.zeros(29)
        obs[3:7] = quaternion
        return obs

    half = math.sqrt(0.5)
    assert uprightness(pose(1, 0, 0, 0)) == 1.0
    assert uprightness(pose(half, 0, 0, half)) == 1.0  # turned, not tilted
    assert uprightness(pose(half, half, 0, 0)) == pytest.approx(0.0)
    assert uprightness(pose(0, 1, 0, 0)) == -1.0


def test_the_heading_follows_the_corridor_and_pulls_to_its_middle() -> None:
    maze = maze_layout(UMAZE)
    controller = AntController(maze)
    controller.command(maze.goal)  # in (3, 1): from (1, 1) the way goes right
    x, y = maze.centre((1, 2))
    assert controller.heading(x, y) == pytest.approx(0.0)
    assert controller.heading(x, y + 1.0) < -0.3
    assert controller.heading(x, y - 1.0) > 0.3
    x, y = maze.centre((2, 3))
    assert controller.heading(x, y) == pytest.approx(-math.pi / 2)
    assert abs(controller.heading(x + 1.0, y)) > math.pi / 2
    x, y = maze.centre((3, 1))
    assert controller.heading(x + 1.0, y) == pytest.approx(math.pi)


def test_the_expert_reaches_the_goal() -> None:
    shard = run_shard(ShardSpec("expert", "antmaze", "umaze", "play", 0, 0, episodes=3))
    assert shard.returns == [1.0, 1.0, 1.0]
    assert shard.steps < 3 * 500


@pytest.mark.parametrize("style", ["play", "diverse"])
def test_episodes_end_at_the_goal_at_the_limit_or_on_the_back(style: str) -> None:
    maze = maze_layout(UMAZE)
    shard = run_shard(ShardSpec("collect", "antmaze", "umaze", style, 1, 0, steps=3500))
    assert sum(len(e) for e in shard.episodes) == 3500
    assert any(e.terminated for e in shard.episodes)
    for i, episode in enumerate(shard.episodes):
        distance = np.hypot(*(episode.obs[1:, :2] - np.float32(maze.goal)).T)
        np.testing.assert_array_equal(episode.reward, distance <= 0.5)
        assert episode.terminated == (episode.reward[-1] == 1.0)
        assert episode.reward[:-1].sum() == 0.0
        assert maze.cell_at(*episode.obs[0, :2]) in (PLAY["umaze"][0] if style == "play" else maze.free_cells)
        cut = i == len(shard.episodes) - 1
        assert episode.terminated or len(episode) == 700 or uprightness(episode.obs[-1]) <= 0 or cut
        assert all(uprightness(obs) > 0 for obs in episode.obs[:-1])


def test_every_hand_picked_cell_is_free_and_leads_to_the_goal() -> None:
    for maze_name, (starts, goals) in PLAY.items():
        maze = maze_layout(f"wmrl/AntMaze-{'UMaze' if maze_name == 'umaze' else maze_name.title()}-v0")
        assert set(starts) | set(goals) <= set(maze.free_cells)
        assert maze.goal_cell in goals
        assert maze.goal_cell not in starts


def test_a_whole_small_dataset_is_made() -> None:
    dataset_id = make_dataset("antmaze-umaze-play", steps=1_500, dataset_id="test/antmaze-v0", reference_episodes=2)
    dataset = minari.load_dataset(dataset_id)
    metadata = dataset.storage.metadata
    assert dataset.total_steps == 1500
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (0.0, 1.0)
    assert "episodes end at the goal" in metadata["description"]
    assert dataset[0].observations.shape[1] == 29
