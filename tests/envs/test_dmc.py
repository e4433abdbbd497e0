"""DMControl: the suite's numbers to the last bit, one interface, pictures that are never black."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env, make_vector_env
from wmrl_ray.envs.camera import camera_of
from wmrl_ray.envs.catalog import family_of
from wmrl_ray.rollout import env_dims

suite = pytest.importorskip("dm_control.suite")
mujoco = pytest.importorskip("mujoco")

OURS = [env_id.removeprefix("dmc/") for env_id in family_of("dmc/any").environments]
TASKS = [*(name for name in OURS if not name.startswith("dog")), "dog-run", "ball_in_cup-catch"]


def flat(timestep) -> np.ndarray:
    return np.concatenate([np.ravel(entry) for entry in timestep.observation.values()]).astype(np.float32)


@pytest.mark.parametrize("name", TASKS)
def test_it_is_the_suites_task_to_the_last_bit(name: str) -> None:
    """From a seed, after other episodes, with two control steps to an action; scaled to the suite's bounds."""
    env = make_env(f"dmc/{name}")
    env.reset(seed=7)
    env.step(np.ones(env.action_space.shape, np.float32))
    obs, _ = env.reset(seed=5)
    peer = suite.load(*name.split("-"), task_kwargs={"random": 5})
    np.testing.assert_array_equal(obs, flat(peer.reset()))
    bounds, rng = peer.action_spec(), np.random.default_rng(0)
    for _ in range(10):
        action = rng.uniform(-1.0, 1.0, bounds.shape)
        scaled = action
        if name.startswith("quadruped"):
            scaled = bounds.minimum + (bounds.maximum - bounds.minimum) * (action + 1) / 2
        obs, reward, terminated, truncated, _ = env.step(action)
        steps = [peer.step(scaled) for _ in range(2)]
        np.testing.assert_allclose(obs, flat(steps[-1]), rtol=0, atol=0 if scaled is action else 1e-5)
        assert reward == pytest.approx(sum(step.reward for step in steps), abs=0 if scaled is action else 1e-9)
        assert not (terminated or truncated)


def test_the_quadrupeds_bounds_are_the_ones_that_are_scaled() -> None:
    """Else the test above would compare nothing that is scaled."""
    bounds = suite.load("quadruped", "run").action_spec()
    assert (bounds.minimum.min(), bounds.maximum.max()) == (-1.0, 1.1)


def test_an_episode_is_five_hundred_steps_and_its_end_is_no_termination() -> None:
    env = make_env("dmc/pendulum-swingup")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]


@pytest.mark.parametrize(
    ("kwargs", "steps"), [({"action_repeat": 1}, 1000), ({"action_repeat": 3}, 334), ({"max_episode_steps": 7}, 7)]
)
def test_the_limit_follows_the_repeat_and_can_be_set(kwargs: dict, steps: int) -> None:
    env = make_env("dmc/pendulum-swingup", **kwargs)
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[3] for _ in range(steps)]
    assert ends == [False] * (steps - 1) + [True]


def test_resets_without_a_seed_go_on_and_a_new_environment_starts_anywhere() -> None:
    first, second = make_env("dmc/reacher-easy"), make_env("dmc/reacher-easy")
    assert not np.array_equal(first.reset()[0], second.reset()[0])
    starts = []
    for env in (first, second):
        env.reset(seed=3)
        starts.append([env.reset()[0] for _ in range(2)])
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0][0], starts[0][1])


def test_a_task_that_ends_terminates() -> None:
    env = make_env("dmc/lqr-lqr_2_1")
    env.reset(seed=0)
    env.unwrapped.data.qpos[:] = env.unwrapped.data.qvel[:] = 0.0
    mujoco.mj_forward(env.unwrapped.model, env.unwrapped.data)
    assert env.step(np.zeros(1, np.float32))[2:4] == (True, False)


def test_a_simulation_that_diverges_is_cut_off_with_what_was_still_valid(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log where it stands
    env = make_env("dmc/walker-run")
    before, _ = env.reset(seed=0)
    env.unwrapped.data.qvel[:] = 1e12
    obs, reward, terminated, truncated, info = env.step(np.zeros(6, np.float32))
    np.testing.assert_array_equal(obs, before)
    assert (reward, terminated, truncated, info) == (0.0, False, True, {"diverged": True})
    env.reset(seed=0)
    assert env.step(np.zeros(6, np.float32))[4] == {}


def test_actions_outside_are_clipped_and_results_are_new_arrays() -> None:
    obs = []
    for scale in (1.0, 5.0):
        env = make_env("dmc/cheetah-run")
        env.reset(seed=0)
        obs.append(env.step(np.full(6, scale, np.float32))[0])
    np.testing.assert_array_equal(*obs)
    assert not np.shares_memory(obs[1], env.step(np.zeros(6, np.float32))[0])
    assert env.observation_space.contains(obs[0]) and obs[0].dtype == np.float32


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "dmc/walker-wlak",
            r"'dmc/walker-wlak' is no task of DMControl \(did you mean 'dmc/walker-walk'\?\); walker has: stand",
        ),
        ("dmc/wlaker-walk", r"did you mean 'dmc/walker-walk'\?\); its domains: acrobot, ball_in_cup"),
        ("dmc/walker", r"'dmc/walker' is no task"),
    ],
)
def test_a_task_that_does_not_exist_gets_one_line(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_env(env_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"obs": "rgb"}, "obs = 'rgb'; it must be 'state' or 'pixels'"),
        ({"action_repeat": 0}, "action_repeat = 0; a whole number, at least 1"),
        ({"max_episode_steps": -1}, "max_episode_steps = -1; a whole number, at least 1, is needed"),
        ({"size": 84}, "cannot be made with env_config = {'size': 84}"),
    ],
)
def test_an_argument_that_does_not_fit_gets_one_line(kwargs: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_env("dmc/walker-walk", **kwargs)


def test_without_dm_control_the_extra_is_named(without: Callable[[str], None]) -> None:
    without("dm_control")
    with pytest.raises(ConfigError, match=r"DMControl's tasks need dm-control .*pip install 'wmrl-ray\[dmc\]'"):
        make_env("dmc/walker-walk")


def test_gymnasium_knows_the_ids_too() -> None:
    env = gym.make("dmc/cartpole-balance")
    obs, _ = env.reset(seed=1)
    np.testing.assert_array_equal(obs, make_env("dmc/cartpole-balance").reset(seed=1)[0])
    assert make_env("wmrl_ray.envs:dmc/cartpole-balance").observation_space.shape == (5,)


def test_environments_side_by_side_are_what_they_are_alone() -> None:
    envs = make_vector_env("dmc/cartpole-swingup", 2)
    obs, _ = envs.reset(seed=[4, 5])
    np.testing.assert_array_equal(obs[1], make_env("dmc/cartpole-swingup").reset(seed=5)[0])


def frames_of(obs: np.ndarray) -> list[np.ndarray]:
    return [obs[i : i + 3] for i in range(0, 9, 3)]


@pytest.mark.needs_gl
def test_pixels_are_the_last_three_frames_the_newest_last() -> None:
    env = make_env("dmc/cheetah-run", obs="pixels")
    obs, _ = env.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((9, 64, 64), np.uint8) and env.observation_space.contains(obs)
    first = frames_of(obs)
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[1], first[2])
    history = [first[0]] * 3
    for _ in range(4):
        kept = obs.copy()
        before, (obs, *_) = obs, env.step(np.ones(6, np.float32))
        np.testing.assert_array_equal(before, kept)  # the replay holds it
        history = [*history[1:], frames_of(obs)[2]]
        np.testing.assert_array_equal(obs, np.concatenate(history))
    assert not np.array_equal(frames_of(obs)[1], frames_of(obs)[2])
    env.close()


@pytest.mark.needs_gl
def test_pixels_are_repeatable_and_upright_whatever_else_draws() -> None:
    env, other = make_env("dmc/walker-walk", obs="pixels"), make_env("dmc/quadruped-run", obs="pixels")
    start, _ = env.reset(seed=1)
    other.reset(seed=0)
    other.close()
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(start, again)
    sky, floor = start[6:, :20].mean((1, 2)), start[6:, 44:].mean((1, 2))
    assert floor[2] > sky[2]  # the blue floor below the dark sky
    env.close()


@pytest.mark.needs_gl
def test_the_suites_own_camera_sees_the_same() -> None:
    """In a process of its own: its renderer and ours disturb each other."""
    code = """
import numpy as np
from dm_control import suite
peer = suite.load("quadruped", "run", task_kwargs={"random": 1}); peer.reset()
theirs = peer.physics.render(64, 64, camera_id=2, render_flag_overrides={"shadow": False, "reflection": False})
from wmrl_ray.envs import make_env
env = make_env("dmc/quadruped-run", obs="pixels")
ours = env.reset(seed=1)[0][:3].transpose(1, 2, 0)
print(np.abs(ours.astype(int) - theirs).mean(), np.abs(ours[::-1].astype(int) - theirs).mean(), theirs.std())
env.close()
"""
    shown = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    difference, flipped, spread = map(float, shown.stdout.split())
    assert difference < 3 < 10 < flipped and spread > 10, shown.stderr


@pytest.mark.needs_gl
def test_black_pictures_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmrl_ray.envs.camera.Camera.frame", lambda self, out=None: np.zeros((64, 64, 3), np.uint8))
    env = make_env("dmc/walker-walk", obs="pixels")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ConfigError, match="the pictures are black; `wmrl doctor` looks for the cause; or set MUJOCO_GL=osmesa"):
        env.reset(seed=0)
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(ConfigError, match="the pictures are black; set MUJOCO_GL=egl or osmesa before Python starts"):
        env.reset(seed=0)


def test_without_opengl_states_work_and_pixels_say_what_to_do() -> None:
    code = """
import numpy as np
from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env
print(make_env("dmc/walker-walk").reset(seed=0)[0].shape)
env = make_env("dmc/walker-walk", obs="pixels")
try:
    env.reset(seed=0)
except ConfigError as error:
    print(error)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"MUJOCO_GL": "disable"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    lines = shown.stdout.splitlines()
    assert lines[0] == "(24,)" and lines[1].startswith("no OpenGL for pictures") and "MUJOCO_GL=egl" in lines[1], shown.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux")
@pytest.mark.parametrize("backend", [None, "egl", "osmesa"])
def test_a_missing_library_for_pictures_is_named_with_its_package(backend: str | None) -> None:
    """No OpenGL library loads in this process. Where a MUJOCO_GL asks for one, MuJoCo needs it for states too."""
    code = """
import ctypes
real = ctypes.CDLL.__init__
def init(self, name, *args, **kwargs):
    if name and ("EGL" in str(name) or "OSMesa" in str(name)):
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")
    real(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = init
from wmrl_ray.config import ConfigError
from wmrl_ray.envs import make_env
for kwargs in ({}, {"obs": "pixels"}):
    try:
        make_env("dmc/walker-walk", **kwargs).reset(seed=0)
        print("works")
    except ConfigError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment |= {} if backend is None else {"MUJOCO_GL": backend}
    command = [sys.executable, "-W", "ignore", "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    missing = {
        None: "libEGL.so.1 is missing: apt-get install libegl1",
        "egl": "libEGL.so.1 is missing: apt-get install libegl1",
        "osmesa": "libOSMesa.so.8 is missing: apt-get install libosmesa6",
    }[backend]
    assert len(lines := shown.stdout.splitlines()) == 2, shown.stderr
    assert missing in lines[1] and "NoneType" not in shown.stdout
    assert lines[0] == "works" if backend is None else missing in lines[0] and "unset MUJOCO_GL" in lines[0]


def test_the_sizes_of_pixels_are_their_shape() -> None:
    assert env_dims("dmc/walker-walk", {"obs": "pixels"}) == ((9, 64, 64), 6)
    assert env_dims("dmc/walker-walk") == (24, 6)


@pytest.mark.needs_gl
def test_it_can_be_filmed_and_draws_itself() -> None:
    env = make_env("dmc/walker-walk", render_mode="rgb_array")
    env.reset(seed=0)
    camera = camera_of(env)
    assert camera is not None
    np.testing.assert_array_equal(camera.frame(), env.render())
    assert env.render().shape == (256, 256, 3) and env.render().std() > 5
    assert env.metadata["render_fps"] == 20
    camera.close()
    env.close()
