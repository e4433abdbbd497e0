"""The list of environments agrees with what is made, and says what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wmrl_ray.envs import catalog, loading, make_env
from wmrl_ray.envs.catalog import FAMILIES, family_of, known_ids

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("env_id", known_ids())
def test_the_listed_sizes_are_those_of_the_environment(env_id: str) -> None:
    family = next(family for family in FAMILIES if family.holds(env_id))
    if family.status()[0] != "ok":
        pytest.skip(f"{family.name}: {family.status()[0]}")
    env = make_env(env_id)
    sizes = family.environments[env_id]
    assert (env.observation_space.shape, env.action_space.shape) == ((sizes.obs_dim,), (sizes.action_dim,))
    env.close()


def test_every_id_belongs_to_one_family_and_others_to_none() -> None:
    for env_id in known_ids():
        assert sum(family.holds(env_id) for family in FAMILIES) == 1
    assert [family_of(env_id) for env_id in ("Hopper-v5", "myopia-v0", "wmrl/PointMaze-UMaze-v0", "StackCube-v1")] == [None] * 4
    assert family_of("myoHandPoseFixed-v0") is BY_NAME["MyoSuite"] and family_of("dmc/fish-swim") is BY_NAME["DMControl"]


def test_every_extra_is_one_of_the_packages() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(re.search(rf"^{family.extra} = \[", project, re.MULTILINE) for family in FAMILIES)


def test_a_missing_package_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.util, "find_spec", lambda name: None if name == "sapien" else object())
    assert BY_NAME["ManiSkill"].status() == ("extra missing", "pip install 'wmrl-ray[maniskill]'")
    assert BY_NAME["DMControl"].status()[0] == "ok"


def test_a_missing_library_of_the_system_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.util, "find_spec", lambda name: object())
    monkeypatch.setattr(catalog.sys, "platform", "linux")
    monkeypatch.setattr(loading, "has_library", lambda library: library != "libX11.so.6")
    status, fix = BY_NAME["ManiSkill"].status()
    assert status == "library missing" and "apt-get install libx11-6" in fix


@pytest.mark.parametrize(
    ("backend", "absent", "fix"),
    [
        ("disable", "", "MUJOCO_GL=disable switches it off"),
        ("egl", "libEGL.so.1", "apt-get install libegl1"),
        ("", "libEGL.so.1", "apt-get install libegl1"),
        ("osmesa", "libOSMesa.so.8", "apt-get install libosmesa6"),
        ("egl", "", ""),
    ],
)
def test_what_pixels_need_is_looked_for(backend: str, absent: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr(catalog.sys, "platform", "linux")
    monkeypatch.setattr(loading, "has_library", lambda library: library != absent)
    monkeypatch.setattr(catalog.util, "find_spec", lambda name: object())
    assert BY_NAME["DMControl"].status() == ("ok", "")  # states need none
    status, found = BY_NAME["DMControl"].status(pixels=True)
    assert (status == "ok") == (fix == "") and fix in found


def test_what_is_there_loads() -> None:
    assert loading.has_library("libc.so.6") and not loading.has_library("libnothing.so.9")
