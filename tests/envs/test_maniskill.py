"""ManiSkill without Vulkan: the papers' observations, tasks that can be solved, nothing left changed in SAPIEN."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env
from wmrl_ray.envs.catalog import family_of
from wmrl_ray.envs.wrappers import succeeds_at_end

FAMILY = family_of("PickCube-v1")
installed = pytest.mark.skipif(FAMILY.status()[0] != "ok", reason=f"{FAMILY.name}: {FAMILY.status()[0]}")
IDS = ("PickCube-v1", "LiftCube-v1")
BASE, TCP = slice(18, 25), slice(25, 32)  # in both; then goal, and what comes from it, in PickCube
OBJECT = {"PickCube-v1": slice(38, 45), "LiftCube-v1": slice(32, 39)}
TO_OBJECT = {"PickCube-v1": slice(45, 48), "LiftCube-v1": slice(39, 42)}


def solve(env, env_id: str, seed: int, steps: int = 20) -> list[tuple[np.ndarray, float, bool]]:
    """(obs, reward, success) of a hand that goes above the cube, down, grasps, and carries it to the goal."""
    obs, _ = env.reset(seed=seed)
    grasping, results = 0, []
    for _ in range(steps):
        to_object = obs[TO_OBJECT[env_id]].copy()
        if grasping < 3:
            move = to_object.copy()
            if np.linalg.norm(to_object[:2]) > 0.01:
                move[2] = max(move[2], 0.0)
            grasping += np.linalg.norm(to_object) < 0.012
        else:
            move = obs[48:51] if env_id == "PickCube-v1" else np.array([0, 0, 0.25 - obs[OBJECT[env_id]][2]])
        fingers = -1.0 if grasping else 1.0
        obs, reward, terminated, truncated, info = env.step(np.append(move / 0.1, fingers).astype(np.float32))
        assert not (terminated or truncated)
        results.append((obs, reward, info["success"]))
    return results


@installed
@pytest.mark.parametrize("env_id", IDS)
def test_the_task_can_be_solved_and_its_reward_is_highest_then(env_id: str) -> None:
    env = make_env(env_id)
    results = solve(env, env_id, seed=0)
    assert results[-1][2] and not results[0][2]
    best = {"PickCube-v1": 5.0, "LiftCube-v1": 2.25}[env_id]
    assert results[-1][1] == pytest.approx(2 * best)  # two repeated steps
    assert all(0 <= reward < 2 * best for _, reward, success in results if not success)


@installed
def test_success_is_that_of_the_last_repeated_step_and_of_an_episodes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("PickCube-v1")
    env.reset(seed=0)
    task, answers = env.unwrapped._task, iter([True, False, False, True])
    step = task.step

    def answered(action: np.ndarray):
        *rest, info = step(action)
        return *rest, info | {"success": torch.tensor([next(answers)])}

    monkeypatch.setattr(task, "step", answered)
    assert [env.step(np.zeros(4, np.float32))[4]["success"] for _ in range(2)] == [False, True]
    assert succeeds_at_end(env)


@installed
@pytest.mark.parametrize("env_id", IDS)
def test_the_observation_is_maniskill_twos(env_id: str) -> None:
    env = make_env(env_id)
    obs, _ = env.reset(seed=0)
    assert obs.shape == {"PickCube-v1": (51,), "LiftCube-v1": (42,)}[env_id] and obs.dtype == np.float32
    task = env.unwrapped._task
    robot, tcp, cube = task.agent.robot, task.agent.tcp.pose.raw_pose[0], task.cube.pose.raw_pose[0]
    np.testing.assert_allclose(obs[:9], robot.get_qpos()[0])
    np.testing.assert_allclose(obs[9:18], robot.get_qvel()[0])
    np.testing.assert_allclose(obs[BASE][:3], [-0.615, 0, 0], atol=1e-6)
    np.testing.assert_allclose(obs[TCP], tcp)
    np.testing.assert_allclose(obs[OBJECT[env_id]], cube)
    np.testing.assert_allclose(obs[TO_OBJECT[env_id]], (cube - tcp)[:3], atol=1e-6)
    if env_id == "PickCube-v1":
        goal = task.goal_site.pose.p[0].numpy()
        np.testing.assert_allclose(obs[32:35], goal)
        np.testing.assert_allclose(obs[35:38], goal - tcp[:3].numpy(), atol=1e-6)
        np.testing.assert_allclose(obs[48:51], goal - cube[:3].numpy(), atol=1e-6)


@installed
def test_the_reward_of_lifting_against_plain_numpy() -> None:
    env = make_env("LiftCube-v1", action_repeat=1)
    results = solve(env, "LiftCube-v1", seed=1, steps=40)
    graded = 0
    for obs, reward, success in results:
        distance, height = np.linalg.norm(obs[39:42]), (obs[34] - 0.02) / 0.2
        reach = 1 - np.tanh(5 * distance)
        held = reach + 0.25 + min(height, 1.0)
        expected = [2.25] if success else [reach, held]
        assert min(abs(reward - value) for value in expected) < 1e-5
        graded += not success and abs(reward - held) < 1e-5 and height > 0.1
    assert graded > 0 and results[-1][2]


@installed
def test_an_episode_is_a_hundred_steps_and_starts_from_its_seed() -> None:
    env, actions = make_env("PickCube-v1"), np.random.default_rng(0).uniform(-1, 1, (100, 4)).astype(np.float32)
    start, _ = env.reset(seed=3)
    first = [env.step(action) for action in actions]
    assert [step[2:4] for step in first] == [(False, False)] * 99 + [(False, True)]
    torch.manual_seed(99)  # a stream that is not the environment's
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(start, again)
    for step, action in zip(first, actions[:10], strict=False):
        obs, reward, *_ = env.step(action)
        np.testing.assert_array_equal(obs, step[0])
        assert reward == step[1]
    env.reset(seed=3)
    follow_up = env.reset()[0]
    other = make_env("PickCube-v1")
    other.reset(seed=3)
    torch.manual_seed(7)
    np.testing.assert_array_equal(follow_up, other.reset()[0])
    assert not np.array_equal(follow_up, start)


@installed
def test_sapien_is_as_it_was_after_the_scene_is_built() -> None:
    import sapien
    from mani_skill.utils.building.actor_builder import ActorBuilder

    before = [sapien.render.RenderMaterial, ActorBuilder.add_box_visual, ActorBuilder.add_plane_repeated_visual]
    make_env("LiftCube-v1")
    assert before == [sapien.render.RenderMaterial, ActorBuilder.add_box_visual, ActorBuilder.add_plane_repeated_visual]


@installed
def test_where_there_is_vulkan_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from wmrl_ray.envs import maniskill

    def never() -> None:
        raise AssertionError("visuals were left out")

    monkeypatch.setattr(maniskill, "_without_visuals", never)
    with contextlib.nullcontext() if maniskill.has_vulkan() else pytest.raises(AssertionError, match="left out"):
        make_env("PickCube-v1")
    monkeypatch.setattr(maniskill, "has_vulkan", lambda: True)
    built = []
    task = type("Task", (), {"SUPPORTED_REWARD_MODES": ("dense",), "__init__": lambda self, **kwargs: built.append(kwargs)})
    monkeypatch.setattr(maniskill, "task_classes", lambda: {"PickCube-v1": task})
    with pytest.raises(AttributeError, match="control_freq"):  # this task is not one, but it has been made
        make_env("PickCube-v1", obs="pixels")
    assert (built[0]["obs_mode"], built[0]["render_backend"]) == ("rgb", "gpu")


@installed
def test_pixels_without_vulkan_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmrl_ray.envs.maniskill.has_vulkan", lambda: False)
    with pytest.raises(ConfigError, match="SAPIEN finds no Vulkan renderer; pictures need a GPU") as caught:
        make_env("PickCube-v1", obs="pixels")
    assert "\n" not in str(caught.value)


@installed
def test_another_reward_can_be_named() -> None:
    env = make_env("LiftCube-v1", reward_mode="normalized_dense", action_repeat=1)
    env.reset(seed=0)
    plain = make_env("LiftCube-v1", action_repeat=1)
    plain.reset(seed=0)
    action = np.zeros(4, np.float32)
    assert float(env.step(action)[1]) == pytest.approx(float(plain.step(action)[1]) / 2.25)
    with pytest.raises(ConfigError, match="reward_mode = 'shaped'; ManiSkill has normalized_dense, dense"):
        make_env("LiftCube-v1", reward_mode="shaped")


def test_without_maniskill_the_extra_is_named(without: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from wmrl_ray.envs import maniskill

    without("mani_skill")
    monkeypatch.setattr(maniskill, "task_classes", maniskill.task_classes.__wrapped__)  # not the cached answer
    with pytest.raises(ConfigError, match=r"ManiSkill's tasks need mani-skill .*pip install 'wmrl-ray\[maniskill\]'"):
        make_env("PickCube-v1")
