"""Importing a simulator, and one line about what to install when that fails."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
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
        package = module.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"{what} need {package} ({_first_line(error)}); install it with: pip install 'wmrl-ray[{extra}]'"
        ) from error
    except (RuntimeError, AttributeError) as error:  # MuJoCo's, for a MUJOCO_GL that does not exist or does not work
        backend = os.environ.get("MUJOCO_GL", "")
        about = f"with MUJOCO_GL={backend} " if backend else ""
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
