"""docker/Dockerfile: linted, in the order that keeps layers, and built on a stand-in base where buildah is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def hadolint() -> str | None:
    beside = Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(hadolint() is None, reason="hadolint is missing (it is in the extra `dev`)")
def test_hadolint_finds_nothing_and_finds_a_planted_fault(tmp_path: Path) -> None:
    def lint(text: str) -> str:
        (tmp_path / "Dockerfile").write_text(text)
        done = subprocess.run([str(hadolint()), tmp_path / "Dockerfile"], capture_output=True, text=True, timeout=60)
        return done.stdout

    assert lint(TEXT) == ""
    assert "DL3020" in lint(TEXT.replace("COPY --chown=1000 wmrl_ray", "ADD --chown=1000 wmrl_ray"))
    assert "DL3042" in lint(TEXT.replace("--no-cache-dir ", "", 1))


def test_the_last_user_is_a_number_and_not_root() -> None:
    users = re.findall(r"^USER (.*)$", TEXT, re.MULTILINE)
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    assert TEXT.rindex("\nUSER ") < TEXT.index("\nCOPY ")


def test_dependencies_come_before_the_source_and_the_base_is_an_argument() -> None:
    assert TEXT.index("-r requirements.txt") < TEXT.index("COPY --chown=1000 wmrl_ray")
    assert re.search(r"^ARG RAY_IMAGE=.*\n(#.*\n)*FROM \$\{RAY_IMAGE\}$", TEXT, re.MULTILINE)
    for package in ("g++", "libegl1", "libopengl0", "libgl1-mesa-dri"):
        assert package in TEXT


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY --chown=1000 (.*)$", TEXT, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_the_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def printed(asked: str) -> list[str]:
        command = [sys.executable, "docker/requirements.py", asked]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()

    assert [line.split(">")[0] for line in printed("torch")] == ["torch"]
    expected = project["dependencies"] + project["optional-dependencies"]["dmc"] + project["optional-dependencies"]["video"]
    assert printed("dmc,video") == expected
    with pytest.raises(subprocess.CalledProcessError):
        printed("dcm")
    for extras in re.findall(r"EXTRAS=([\w,]+)", TEXT):
        printed(extras)


def documented(text: str) -> dict[str, dict[str, str]]:
    """Build arguments of each `docker build` in `text`, by the name of its image."""
    commands: dict[str, dict[str, str]] = {}
    for line in re.findall(r"^(?:# )?(docker build .*)$", text, re.MULTILINE):
        words = shlex.split(line)
        given = [word for flag, word in pairwise(words) if flag == "--build-arg"]
        commands[words[words.index("-t") + 1].partition(":")[0]] = dict(word.split("=", 1) for word in given)
        assert words[2:4] == ["-f", "docker/Dockerfile"] and words[-1] == "."
    return commands


def test_the_documented_commands_agree_and_give_the_cpu_image_a_torch_for_cpus() -> None:
    commands = documented(TEXT)
    assert commands == documented((ROOT / "deploy" / "README.md").read_text())
    assert commands["wmrl-ray-cpu"]["TORCH_INDEX"].endswith("/cpu")  # the empty default is a torch with CUDA
    assert "TORCH_INDEX" not in commands["wmrl-ray-gpu"] and commands["wmrl-ray-gpu"]["RAY_IMAGE"].endswith("-gpu")
    declared = set(re.findall(r"^ARG (\w+)=", TEXT, re.MULTILINE))
    assert all(arguments.keys() <= declared for arguments in commands.values())


# A base without a network: busybox, a user 1000, and commands of the names that the Dockerfile runs, which say what they got.
STUB = """FROM scratch
COPY busybox /bin/busybox
COPY --chmod=755 python apt-get /usr/bin/
COPY passwd /etc/passwd
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/usr/bin:/bin
"""
PYTHON = '#!/bin/sh\necho "python $*" >&2\ncase "$1" in requirements.py) echo "of-$2";; esac\n'


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[list[str]]:
    """`buildah` with its storage in a folder of the test's own, and the stand-in base in it."""
    busybox = shutil.which("busybox")
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("buildah is missing, or we are not root")
    if busybox is None or "statically linked" not in subprocess.run(["ldd", busybox], capture_output=True, text=True).stderr + (
        "statically linked" if subprocess.run(["ldd", busybox], capture_output=True).returncode else ""
    ):
        pytest.skip("a static busybox is missing (Debian: busybox-static)")
    store = ["buildah", "--storage-driver", "vfs", "--root", str(tmp_path / "store"), "--runroot", str(tmp_path / "run")]
    stub = tmp_path / "stub"
    stub.mkdir()
    shutil.copy(busybox, stub / "busybox")
    (stub / "python").write_text(PYTHON)
    (stub / "apt-get").write_text('#!/bin/sh\necho "apt-get $*" >&2\n')
    (stub / "passwd").write_text("root:x:0:0::/:/bin/sh\nray:x:1000:100::/home/ray:/bin/sh\n")
    (stub / "Dockerfile").write_text(STUB)
    run([*store, "bud", "--isolation", "chroot", "-t", "localhost/stub", str(stub)])
    yield store
    subprocess.run([*store, "rmi", "--all", "--force"], capture_output=True, timeout=120)


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_it_builds_on_a_stand_in_base(buildah: list[str], tmp_path: Path) -> None:
    arguments = ["--build-arg", "RAY_IMAGE=localhost/stub", "--build-arg", "EXTRAS=dmc,video"]
    said = run([*buildah, "bud", "--isolation", "chroot", *arguments, "-f", str(DOCKERFILE), "-t", "localhost/wmrl", str(ROOT)])
    assert "apt-get install -y --no-install-recommends g++" in said
    assert "python -m pip install --no-cache-dir -r torch.txt -c constraints.txt\n" in said  # no index was given
    assert "python -m wmrl_ray --version" in said
    config = json.loads(run([*buildah, "inspect", "--type", "image", "localhost/wmrl"]))["OCIv1"]["config"]
    assert (config["User"], config["WorkingDir"]) == ("1000", "/opt/wmrl_ray")
    assert "RAY_AUTH_MODE=token" in config["Env"]
    container = run([*buildah, "from", "localhost/wmrl"]).strip()
    root = Path(run([*buildah, "mount", container]).strip()) / "opt" / "wmrl_ray"
    try:
        assert (root / "requirements.txt").read_text() == "of-dmc,video\n"
        assert sorted(path.name for path in root.iterdir()) == sorted(
            ["LICENSE", "README.md", "constraints.txt", "pyproject.toml", "requirements.py", "requirements.txt", "torch.txt"]
            + ["tune_configs", "wmrl_ray"]
        )
        assert (root / "wmrl_ray" / "rllib" / "jobs.py").exists()
        assert not list(root.rglob("__pycache__"))
        assert {path.stat().st_uid for path in root.rglob("*")} == {1000}
    finally:
        run([*buildah, "umount", container])
