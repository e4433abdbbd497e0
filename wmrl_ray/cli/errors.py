"""Which exceptions are the user's to mend, and how they read on one line."""

from __future__ import annotations

import errno
import sys

from wmrl_ray.config import ConfigError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the shell's code for SIGINT

# Classes of modules that a command may not have loaded: what is not loaded cannot have been raised.
_USER_ERRORS = (
    ("wmrl_ray.data.episode", "DataError"),
    ("wmrl_ray.checkpoint", "CheckpointError"),
    ("wmrl_ray.train", "NonFiniteLossError"),
)
_USER_ERRNOS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def user_message(error: BaseException) -> str | None:
    """The one line for a user's error; None for an error of ours, which deserves its traceback."""
    cause = getattr(error, "cause", None)  # Ray wraps a worker's exception and puts the remote traceback into its text
    if isinstance(cause, Exception):
        error = cause
    known = [ConfigError]
    known += [getattr(sys.modules[module], name) for module, name in _USER_ERRORS if module in sys.modules]
    if isinstance(error, tuple(known)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return None
