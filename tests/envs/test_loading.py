"""An import that fails says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wmrl_ray.config import ConfigError
from wmrl_ray.envs.camera import Camera
from wmrl_ray.envs.loading import find_opengl, load_simulator


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import no_such_thing",
            r"the things need broken .No module named 'no_such_thing'.; install it with: pip install 'wmrl-ray\[x\]'",
        ),
        (
            "raise ImportError('libX11.so.6: cannot open shared object file: No such file or directory')",
            r"the things need libX11.so.6, a library of the system; install it \(Debian, Ubuntu: apt-get install libx11-6\)",
        ),
        (
            "raise OSError('libodd-2.so: cannot open shared object file')",
            r"need libodd-2.so, a library of the system; install it$",
        ),
        ("raise RuntimeError('invalid value for environment variable MUJOCO_GL: x')", "cannot load broken .*wmrl doctor"),
    ],
)
def test_the_cause_becomes_one_line(body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_simulator("broken", "the things", "x")
    assert "\n" not in str(caught.value)


def test_what_a_simulator_prints_when_it_is_imported_stays_unsaid(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "chatty.py").write_text("import sys; print('welcome'); print('a notice', file=sys.stderr); value = 3")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_simulator("chatty", "the things", "x").value == 3
    assert capsys.readouterr() == ("", "")


def test_egl_is_chosen_only_where_nothing_is_chosen_and_it_is_in_time() -> None:
    code = "import os, sys; {}; from wmrl_ray.envs.camera import prefer_egl; prefer_egl(); print(os.environ.get('MUJOCO_GL'))"
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}

    def chosen(before: str, **more: str) -> str:
        command = [sys.executable, "-c", code.format(before)]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60).stdout.strip()

    there = "egl" if sys.platform == "linux" else "None"
    assert chosen("pass") == there
    assert chosen("pass", MUJOCO_GL="osmesa") == "osmesa"
    assert chosen("sys.modules['mujoco'] = None") == "None"
    assert chosen("import ctypes; ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError(name))") == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo draws with EGL on Linux")
def test_a_variable_that_mujoco_cannot_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "abc")
    fix = "MUJOCO_EGL_DEVICE_ID=abc is no GPU's number: unset MUJOCO_EGL_DEVICE_ID"
    with pytest.raises(ConfigError, match=f"^no OpenGL for pictures; {fix}$"):
        Camera(None, None)
    (tmp_path / "numbers_.py").write_text("int('abc')")  # as dm_control does with it
    (tmp_path / "platform_.py").write_text("raise ImportError('The PYOPENGL_PLATFORM environment variable is set to x')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"the things cannot load numbers_ with MUJOCO_GL=egl .{fix}."):
        load_simulator("numbers_", "the things", "x")
    with pytest.raises(ConfigError, match=r"cannot load platform_ \(The PYOPENGL_PLATFORM.*\); unset PYOPENGL_PLATFORM$"):
        load_simulator("platform_", "the things", "x")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert find_opengl() is None or "DEVICE_ID" not in str(find_opengl())
