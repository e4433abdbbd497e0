"""The maze environments: Gymnasium-Robotics' simulation, D4RL's task."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env, maze_ids, maze_layout

pytest.importorskip("gymnasium_robotics")
POINT, ANT = "wmrl/PointMaze-UMaze-v0", "wmrl/AntMaze-UMaze-v0"


@pytest.fixture
def env(request: pytest.FixtureRequest) -> Any:
    made = make_env(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("env", [POINT, ANT], indirect=True)
def test_gymnasiums_checker_finds_nothing(env: gym.Env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space (minimum|maximum) value is.*")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("env_id", "obs_dim", "action_dim", "limit"),
    [
        ("wmrl/PointMaze-UMaze-v0", 4, 2, 300),
        ("wmrl/PointMaze-Medium-v0", 4, 2, 600),
        ("wmrl/PointMaze-Large-v0", 4, 2, 800),
        ("wmrl/AntMaze-UMaze-v0", 29, 8, 700),
        ("wmrl/AntMaze-Medium-v0", 29, 8, 1000),
        ("wmrl/AntMaze-Large-v0", 29, 8, 1000),
        ("wmrl/AntMaze-Ultra-v0", 29, 8, 2000),
    ],
)
def test_every_id_has_the_sizes_and_limit_of_the_contract(env_id: str, obs_dim: int, action_dim: int, limit: int) -> None:
    env = make_env(env_id)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
    assert env.spec.max_episode_steps == limit
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float32
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize(
    ("robot", "maze", "theirs", "kwargs", "steps"),
    [
        ("point", "umaze", "PointMaze_UMaze-v3", {}, 1000),
        ("point", "large", "PointMaze_Large-v3", {}, 1000),
        ("ant", "medium", "AntMaze_Medium-v5", {"include_cfrc_ext_in_observation": False}, 200),
    ],
)
def test_the_simulation_is_that_of_gymnasium_robotics_to_the_last_bit(
    robot: str, maze: str, theirs: str, kwargs: dict[str, Any], steps: int
) -> None:
    import gymnasium_robotics

    from wmrl_ray.envs.mazes import MazeEnv

    gym.register_envs(gymnasium_robotics)
    ours, other = MazeEnv(robot, maze), gym.make(theirs, **kwargs).unwrapped
    Path(other.tmp_xml_file_path).unlink(missing_ok=True)
    ours.reset(seed=1)
    other.reset(seed=0)
    inner = other.point_env if robot == "point" else other.ant_env
    inner.set_state(ours.data.qpos.copy(), ours.data.qvel.copy())
    inner.data.qacc_warmstart[:] = ours.data.qacc_warmstart
    rng = np.random.default_rng(0)
    for t in range(steps):
        if t % 30 == 0:  # long pushes in one direction: the point hits walls at its top speed
            action = rng.uniform(-1.2 if robot == "point" else -1, 1.2 if robot == "point" else 1, ours.model.nu)
        obs, *_ = ours.step(action.astype(np.float32))
        inner.step(action.astype(np.float32))
        np.testing.assert_array_equal(obs, np.concatenate((inner.data.qpos, inner.data.qvel)).astype(np.float32))
    other.close()


@pytest.mark.parametrize("env", [POINT, "wmrl/AntMaze-Ultra-v0"], indirect=True)
def test_a_seed_fixes_the_reset_and_the_way(env: gym.Env) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (20, len(env.action_space.sample()))).astype(np.float32)

    def run(seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3)[0], run(4)[0])


def test_a_point_starts_in_every_free_cell_within_a_tenth_of_its_centre() -> None:
    env, maze = make_env("wmrl/PointMaze-Medium-v0"), maze_layout("wmrl/PointMaze-Medium-v0")
    env.reset(seed=0)
    starts = np.stack([env.reset()[0] for _ in range(600)])
    cells = [maze.cell_at(*xy) for xy in starts[:, :2]]
    assert set(cells) == set(maze.free_cells)
    centres = np.array([maze.centre(cell) for cell in cells])
    assert np.abs(starts[:, :2] - centres).max() <= 0.1 + 1e-6
    assert 0.08 < starts[:, 2:].std() < 0.12


def test_an_ant_starts_upright_in_its_start_cell() -> None:
    env, maze = make_env("wmrl/AntMaze-Large-v0"), maze_layout("wmrl/AntMaze-Large-v0")
    env.reset(seed=0)
    starts = np.stack([env.reset()[0] for _ in range(50)])
    assert {maze.cell_at(*xy) for xy in starts[:, :2]} == {(1, 1)}
    np.testing.assert_allclose(np.linalg.norm(starts[:, 3:7], axis=1), 1.0, rtol=1e-6)
    assert starts[:, 3].min() > 0.95
    assert starts[:, :2].std(0).min() > 0.03


def test_the_start_cell_can_be_chosen_and_a_wall_cannot() -> None:
    env, maze = make_env(ANT), maze_layout(ANT)
    obs, _ = env.reset(seed=0, options={"start_cell": (3, 3)})
    assert maze.cell_at(*obs[:2]) == (3, 3)
    with pytest.raises(ConfigError, match=r"start_cell = \(2, 1\) is not a free cell"):
        env.reset(options={"start_cell": (2, 1)})


def test_the_points_reward_is_one_within_half_a_metre_of_the_goal_and_it_goes_on() -> None:
    env, maze = make_env(POINT), maze_layout(POINT)
    env.reset(seed=0, options={"start_cell": maze.goal_cell})
    rewards = []
    for _ in range(300):
        obs, reward, terminated, truncated, info = env.step(np.array([1.0, 0.0], np.float32))
        near = bool(np.hypot(*(obs[:2] - np.float32(maze.goal))) <= 0.5)
        assert (reward, info["success"], terminated) == (float(near), near, False)
        rewards.append(reward)
    assert truncated
    assert rewards[0] == 1.0
    assert rewards[-1] == 0.0


def test_the_ants_episode_ends_at_the_goal_with_reward_one() -> None:
    env, maze = make_env(ANT), maze_layout(ANT)
    _, info = env.reset(seed=0, options={"start_cell": (3, 2)})
    assert info["success"] is False
    _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, info["success"]) == (0.0, False, False)
    simulation: Any = env.unwrapped
    simulation.data.qpos[:2] = np.array(maze.goal) + (0.45, 0.0)
    _, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)


def test_an_action_outside_the_bounds_is_clipped() -> None:
    def end(action: float) -> np.ndarray:
        env = make_env(POINT)
        env.reset(seed=0)
        return np.stack([env.step(np.full(2, action, np.float32))[0] for _ in range(10)])[-1]

    np.testing.assert_array_equal(end(7.0), end(1.0))


def test_making_a_maze_leaves_no_file_in_the_temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for env_id in maze_ids():
        make_env(env_id).close()
    assert list(tmp_path.iterdir()) == []


def test_another_process_needs_only_the_prefixed_id_and_hears_nothing() -> None:
    code = "import gymnasium\nenv = gymnasium.make('wmrl_ray.envs:wmrl/PointMaze-UMaze-v0')\nprint(env.reset(seed=0)[0].shape)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60
    )
    assert (result.stdout, result.stderr) == ("(4,)\n", "")


@pytest.mark.needs_gl
def test_a_picture_shows_the_goal_and_is_not_black() -> None:
    env = make_env(POINT, render_mode="rgb_array", frame_size=64)
    env.reset(seed=0, options={"start_cell": (3, 1)})
    try:
        frame = np.asarray(env.render())
    finally:
        env.close()
    assert frame.shape == (64, 64, 3)
    red = (frame[..., 0] > 150) & (frame[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert rows.size > 0
    assert (rows.mean(), columns.mean()) == pytest.approx((64 * 1.5 / 5, 64 * 1.5 / 5), abs=3)
