"""MyoSuite: its numbers, the papers' episodes."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env
from wmrl_ray.envs.camera import camera_of
from wmrl_ray.envs.catalog import family_of
from wmrl_ray.envs.wrappers import succeeds_at_end

FAMILY = family_of("myoHandAny-v0")
IDS = list(FAMILY.environments)
installed = pytest.mark.skipif(FAMILY.status()[0] != "ok", reason=f"{FAMILY.name}: {FAMILY.status()[0]}")


def random_actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, 39)).astype(np.float32)


@installed
@pytest.mark.parametrize("env_id", IDS)
def test_it_is_myosuites_task(env_id: str) -> None:
    """From a seed, after other episodes, and beyond where MyoSuite would have ended the episode."""
    env = make_env(env_id)
    env.reset(seed=7)
    env.step(np.ones(39, np.float32))
    obs, info = env.reset(seed=5)
    peer = gym.make(env_id, disable_env_checker=True).unwrapped
    np.testing.assert_array_equal(obs, peer.reset(seed=5)[0])
    assert info == {"success": False} and env.observation_space.contains(obs)
    for action in random_actions(8):
        obs, reward, terminated, truncated, info = env.step(action)
        their_obs, their_reward, *_, their_info = peer.step(action)
        np.testing.assert_array_equal(obs, their_obs)
        assert (reward, terminated, truncated) == (their_reward, False, False)
        assert info == {"success": bool(their_info["solved"])}


@installed
def test_an_episode_is_a_hundred_steps_though_the_pen_is_dropped() -> None:
    env = make_env("myoHandPenTwirlFixed-v0")
    env.reset(seed=0)
    peer = gym.make("myoHandPenTwirlFixed-v0", disable_env_checker=True)
    peer.reset(seed=0)
    actions = random_actions(100)
    assert any(peer.step(action)[2] for action in actions[:50])
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in actions] == [(False, False)] * 99 + [(False, True)]


@installed
def test_success_is_myosuites_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("myoHandKeyTurnFixed-v0", action_repeat=2)
    obs, _ = env.reset(seed=0)
    answers = iter([1, 0, 0, 1])  # at the first of two repeated steps, then at the second, which counts
    monkeypatch.setattr(env.unwrapped._inner, "step", lambda action: (obs, 1.5, False, False, {"solved": next(answers)}))
    assert [env.step(np.zeros(39, np.float32))[1::3] for _ in range(2)] == [(3.0, {"success": False}), (3.0, {"success": True})]
    assert succeeds_at_end(env)


@installed
def test_fixed_starts_the_same_and_random_does_not() -> None:
    for goal, same in (("Fixed", True), ("Random", False)):
        env = make_env(f"myoHandObjHold{goal}-v0")
        assert np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0]) == same


@installed
def test_a_simulation_that_diverges_is_cut_off_with_what_was_still_valid(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log where it stands
    env = make_env("myoHandKeyTurnFixed-v0")
    before, _ = env.reset(seed=0)
    env.unwrapped.data.qvel[:] = 1e12
    obs, reward, terminated, truncated, info = env.step(np.zeros(39, np.float32))
    np.testing.assert_array_equal(obs, before)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"success": False, "diverged": True})


@installed
@pytest.mark.needs_gl
def test_it_can_be_filmed() -> None:
    env = make_env("myoHandKeyTurnFixed-v0", render_mode="rgb_array")
    env.reset(seed=0)
    camera = camera_of(env)
    assert camera is not None and camera.frame().std() > 5
    np.testing.assert_array_equal(camera.frame(), env.render())
    camera.close()
    env.close()


@installed
def test_an_id_that_does_not_exist_gets_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no environment of MyoSuite \(did you mean 'myoHandKeyTurnFixed-v0'\?\)"):
        make_env("myoHandKeyTrunFixed-v0")


def test_without_myosuite_the_extra_is_named(without: Callable[[str], None]) -> None:
    without("myosuite")
    with pytest.raises(ConfigError, match=r"MyoSuite's environments need myosuite .*pip install 'wmrl-ray\[myo\]'"):
        make_env("myoHandKeyTurnFixed-v0")
