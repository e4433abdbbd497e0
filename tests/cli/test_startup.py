"""`wmrl` starts at once and explains itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wmrl_ray import __version__

HEAVY = {"torch", "ray", "numpy", "matplotlib", "minari", "gymnasium", "mujoco", "pyarrow", "h5py"}
START = "import sys; sys.argv = ['wmrl', '--help']; from wmrl_ray.cli import main\ntry: main()\nexcept SystemExit: pass\n"


def test_help_loads_nothing_heavy():
    script = START + f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"
    assert all(command in done.stdout for command in ("train", "sweep", "evaluate", "report", "data", "envs", "doctor", "job"))


def test_version_is_the_packages(wmrl):
    outcome = wmrl("--version")
    assert (outcome.code, outcome.out.strip()) == (0, f"wmrl_ray {__version__}")


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["sweep"],
        ["evaluate"],
        ["report"],
        ["envs"],
        ["doctor"],
        *(["job", c] for c in ("submit", "logs", "status", "stop")),
        *(["data", c] for c in ("make", "list", "info", "verify", "import", "export")),
    ],
)
def test_every_command_has_help(wmrl, command):
    outcome = wmrl(*command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_a_misspelt_option_is_a_usage_error(wmrl):
    outcome = wmrl("train", "quick", "--no-rya")
    assert outcome.code == 2
    assert "--no-ray" in outcome.err


def test_a_module_in_the_current_folder_is_importable_and_hides_no_other(tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "wmrl"  # as the installed one: its own folder is the one that Python adds
    script.write_text("from wmrl_ray.cli import main\nmain()\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('not the json that is meant')")
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym\nclass Env(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)\n"
        "gym.register('Env-v0', entry_point=Env, max_episode_steps=5)\n"
    )
    (tmp_path / "run.yaml").write_text("algorithm: tdmpc2\nenv: mine:Env-v0\n")
    command = [sys.executable, str(script), "train", "run.yaml", "--no-ray"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "env = 'Env-v0' has discrete actions" in done.stderr, done.stderr
    safe = subprocess.run([command[0], "-P", *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "No module named 'mine'" in safe.stderr and "must be in the folder in which you start" in safe.stderr
