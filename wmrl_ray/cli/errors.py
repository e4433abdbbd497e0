"""Which exceptions are the user's to mend, and how they read on one line."""

from __future__ import annotations

import errno
import sys

from wmrl_ray.config import ConfigError

EXIT_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the shell's code for SIGINT

# Classes of modules that a command may not have loaded: what is not loaded cannot have been raised.
_USER_ERRORS = (
    ("wmrl_ray.data.episode", "DataError"),
    ("wmrl_ray.data.files", "NumberError"),
    ("wmrl_ray.envs.door", "EnvError"),
    ("wmrl_ray.checkpoint", "CheckpointError"),
    ("wmrl_ray.train", "NonFiniteLossError"),
)
_USER_ERRNOS = (
    errno.ENOENT,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOSPC,
    errno.EROFS,
    errno.EDQUOT,
)


def remote_message(error: BaseException) -> tuple[str, int] | None:
    """What to print for an error that an actor carried home, and the exit code; None for an error of this process.

    The user's errors read on one line here too. Ours show the actor's traceback, which is in the error's text; the driver's
    would say nothing about them.
    """
    remote = getattr(sys.modules.get("wmrl_ray.rllib.failures"), "RemoteError", None)
    if remote is None or not isinstance(error, remote):
        return None
    if getattr(error, "error_type", None) in {"ConfigError", "FloatingPointError", *(name for _, name in _USER_ERRORS)}:
        return str(error).partition("\n")[0], EXIT_USER_ERROR
    return str(error), EXIT_ERROR


def user_message(error: BaseException) -> str | None:
    """The one line for a user's error; None for an error of ours, which deserves its traceback."""
    cause = getattr(error, "cause", None)  # Ray wraps a worker's exception and puts the remote traceback into its text
    if isinstance(cause, Exception):
        error = cause
    known: list[type[BaseException]] = [ConfigError, FloatingPointError]  # the second: an action that is not finite
    known += [getattr(sys.modules[module], name) for module, name in _USER_ERRORS if module in sys.modules]
    if isinstance(error, tuple(known)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return None
