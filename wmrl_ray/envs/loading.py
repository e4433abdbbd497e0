"""Importing a simulator, and one line about what to install when that fails."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
import sys
from types import ModuleType

from wmrl_ray.config import ConfigError

_LIBRARIES = {  # shared library -> Debian's package of it
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libOpenGL.so.0": "libopengl0",
    "libX11.so.6": "libx11-6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
}
_DRAWING = {"egl": ("libEGL.so.1", "libegl1 libopengl0 libgl1 libgl1-mesa-dri"), "osmesa": ("libOSMesa.so.8", "libosmesa6")}


def load_simulator(module: str, what: str, extra: str) -> ModuleType:
    """The module of a simulator.

    Args:
        module: dotted name.
        what: needs it, plural, for the error ("the mazes").
        extra: of wmrl-ray that installs it.

    Raises:
        ConfigError: it is not installed, or a shared library of the system is missing.
    """
    try:
        # Why: some print notices about other environments when they are first imported
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(module)
    except (ImportError, OSError) as error:
        if library := missing_library(error):
            raise ConfigError(f"{what} need {library}, a library of the system; {library_fix(library)}") from error
        if "PYOPENGL_PLATFORM" in str(error):  # mujoco's and dm_control's word on one that is not MUJOCO_GL
            raise ConfigError(f"{what} cannot load {module} ({_first_line(error)}); unset PYOPENGL_PLATFORM") from error
        package = module.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"{what} need {package} ({_first_line(error)}); install it with: pip install 'wmrl-ray[{extra}]'"
        ) from error
    except (RuntimeError, AttributeError, ValueError) as error:  # MuJoCo's, for a variable that it cannot use
        backend = os.environ.get("MUJOCO_GL", "")
        about = f"with MUJOCO_GL={backend} " if backend else ""
        if backend and (missing := find_opengl()) is not None:  # Why: MuJoCo's own words are about an attribute of None
            raise ConfigError(f"{what} cannot load {module} {about}({missing}); without pictures: unset MUJOCO_GL") from error
        raise ConfigError(
            f"{what} cannot load {module} {about}({_first_line(error)}); `wmrl doctor` looks for the cause"
        ) from error


def missing_library(error: BaseException) -> str | None:
    """The shared library that an import did not find, None if that is not what failed."""
    found = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object", str(error))
    return found[1] if found else None


def library_fix(library: str) -> str:
    """How to install a shared library."""
    return f"install it (Debian, Ubuntu: apt-get install {_LIBRARIES[library]})" if library in _LIBRARIES else "install it"


def has_library(library: str) -> bool:
    """The system finds this shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def find_opengl() -> str | None:
    """What MuJoCo lacks to draw, and the fix. Only a picture proves that nothing is missing, which `wmrl doctor` draws."""
    if sys.platform != "linux":
        return None
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if backend in ("disable", "disabled", "off", "false", "0"):
        return f"MUJOCO_GL={backend} switches it off: export MUJOCO_GL=egl"
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID", "0")
    if backend in ("", "egl") and not device.removeprefix("-").isdecimal():  # one that is not there, MuJoCo names itself
        return f"MUJOCO_EGL_DEVICE_ID={device} is no GPU's number: unset MUJOCO_EGL_DEVICE_ID"
    library, packages = _DRAWING.get(backend or "egl", ("", ""))
    if library and not has_library(library):
        return f"{library} is missing: apt-get install {packages}"
    return None


def opengl_fix() -> str:
    """What to do where MuJoCo does not draw."""
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if (missing := find_opengl()) is not None:
        return missing
    if backend in _DRAWING:
        other = next(name for name in _DRAWING if name != backend)
        return f"`wmrl doctor` looks for the cause; or set MUJOCO_GL={other}, not {backend}, before Python starts"
    return "set MUJOCO_GL=egl or osmesa before Python starts"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
