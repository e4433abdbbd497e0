"""`wmrl` starts at once and explains itself."""

from __future__ import annotations

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
