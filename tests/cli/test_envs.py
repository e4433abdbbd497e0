"""`wmrl envs`: the list, what is missing, and a check that really makes them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from wmrl_ray.cli import envs as command
from wmrl_ray.envs import catalog
from wmrl_ray.envs.catalog import FAMILIES, Sizes, known_ids

DMC = next(family for family in FAMILIES if family.name == "DMControl")
SMALL = dataclasses.replace(DMC, environments={"dmc/pendulum-swingup": Sizes(3, 1, 500), "dmc/reacher-easy": Sizes(6, 2, 500)})


def test_every_environment_is_listed_with_its_sizes(wmrl):
    outcome = wmrl("envs")
    assert outcome.code == 0
    heads = next(line for line in outcome.out.splitlines() if "environment" in line)
    assert heads.split() == ["environment", "observations", "actions", "steps", "status", "pixels"]
    line = next(line for line in outcome.out.splitlines() if "dmc/humanoid-walk" in line)
    assert line.split()[:4] == ["dmc/humanoid-walk", "67", "21", "500"]
    assert all(env_id in outcome.out for env_id in known_ids())


def test_json_has_the_same_and_the_fixes(wmrl, monkeypatch):
    monkeypatch.setattr(catalog.util, "find_spec", lambda name: None if name == "myosuite" else object())
    rows = {row["id"]: row for row in json.loads(wmrl("envs", "--json").out)}
    assert list(rows) == known_ids()
    row = rows["myoHandPenTwirlFixed-v0"]
    assert row["family"] == "MyoSuite" and (row["obs_dim"], row["action_dim"], row["max_steps"]) == (83, 39, 100)
    assert (row["status"], row["fix"]) == ("extra missing", "pip install 'wmrl-ray[myo]'")
    assert (rows["dmc/walker-walk"]["status"], row["pixels"]) == ("ok", "")


def test_what_is_missing_is_said_once_with_its_fix(wmrl, monkeypatch):
    monkeypatch.setattr(catalog.util, "find_spec", lambda name: None if name == "myosuite" else object())
    out = wmrl("envs").out
    assert out.count("MyoSuite, extra missing: pip install 'wmrl-ray[myo]'") == 1


def test_a_renderer_that_is_missing_concerns_pixels_only(wmrl, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    row = next(row for row in json.loads(wmrl("envs", "--json").out) if row["id"] == "dmc/walker-run")
    assert (row["status"], row["pixels"]) == ("ok", "renderer missing") and "MUJOCO_GL=egl" in row["pixels_fix"]


def test_the_list_loads_no_simulator_and_is_quick():
    script = (
        "import sys; sys.argv = ['wmrl', 'envs']; from wmrl_ray.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'mujoco', 'dm_control', 'myosuite', 'sapien', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - before < 30  # a second on a quiet machine


@pytest.mark.needs_gl
def test_the_check_makes_and_steps_each_and_its_pixels(wmrl, monkeypatch):
    monkeypatch.setattr(catalog, "FAMILIES", (SMALL,))
    monkeypatch.setattr(command, "run_check", lambda family: tried(family))
    outcome = wmrl("envs", "--check", "--json")
    assert outcome.code == 0, outcome.out
    assert all((row["status"], row["pixels"]) == ("ok", "ok") for row in json.loads(outcome.out))


def tried(family):
    found = {env_id: command.try_environment(env_id, family) for env_id in family.environments}
    return found | {"pixels": command.try_environment(next(iter(family.environments)), family, obs="pixels")}


def test_a_wrong_size_or_a_failure_is_found_and_is_the_exit_code(wmrl, monkeypatch):
    wrong = {
        "dmc/pendulum-swingup": Sizes(4, 1, 500),
        "dmc/wlaker-walk": Sizes(24, 6, 500),
        "dmc/reacher-easy": Sizes(6, 2, 500),
    }
    monkeypatch.setattr(catalog, "FAMILIES", (dataclasses.replace(DMC, environments=wrong),))
    monkeypatch.setattr(command, "run_check", lambda family: tried(family))
    outcome = wmrl("envs", "--check", "--json")
    rows = {row["id"]: row for row in json.loads(outcome.out)}
    assert outcome.code == 1
    assert [row["status"] for row in rows.values()] == ["broken", "broken", "ok"]
    assert "sizes (3, 1) instead of (4, 1)" in rows["dmc/pendulum-swingup"]["fix"]
    assert "ConfigError: env = 'dmc/wlaker-walk' is no task" in rows["dmc/wlaker-walk"]["fix"]
    table = wmrl("envs", "--check")
    assert table.code == 1 and "dmc/wlaker-walk, broken: ConfigError" in table.out


def test_the_check_survives_a_process_that_dies():
    family = dataclasses.replace(SMALL, name="no such family")
    assert command.run_check(family) == dict.fromkeys([*SMALL.environments, "pixels"], "its process ended with exit code 1")


@pytest.mark.slow
def test_every_family_that_is_installed_works(wmrl):
    outcome = wmrl("envs", "--check")
    assert outcome.code == 0, outcome.out


def test_a_process_of_its_own_reports_each_environment(capsys, monkeypatch):
    monkeypatch.setattr(catalog, "FAMILIES", (SMALL,))
    command.try_family("DMControl")
    lines = [line.removeprefix(command.MARK) for line in capsys.readouterr().out.splitlines()]
    assert [json.loads(line) for line in lines] == [["dmc/pendulum-swingup", ""], ["dmc/reacher-easy", ""], ["pixels", ""]]
