"""Where a run comes from: versions, revision and hardware, of each of its sessions.

A session is what one process trains: a run that was resumed has several, and its code may have changed in between.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from wmrl_ray.config import flatten

Provenance = dict[str, Any]  # of `describe_environment`; of a session with `update`, the one that it began after

OF_A_SESSION = frozenset(["update", "started", "command", "process"])  # differ by nature

_PROCESS = uuid.uuid4().hex[:12]  # Why not when it began: a clock may be set back


def describe_environment() -> Provenance:
    """Versions, revision and hardware: what someone needs to reproduce a run."""
    ours = ("wmrl-ray", "torch", "ray", "numpy", "minari", "pyarrow")
    simulators = ("gymnasium", "mujoco", "gymnasium-robotics", "dm-control", "myosuite", "mani-skill", "sapien")
    packages = (*ours, *simulators)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "git_revision": _git_revision(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "process": _PROCESS,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def with_session(sessions: Sequence[Provenance], update: int) -> list[Provenance]:
    """The sessions of a run, oldest first, and this process's from `update` on: a new one, unless the last one is this
    process's too, as after the loss of an actor.
    """
    now = {"update": update, **describe_environment()}
    if sessions and sessions[-1].get("process") == _PROCESS and not changed(sessions[-1], now):
        return list(sessions)
    return [*sessions, now]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what differs, such as git_revision or packages.torch."""
    old, new = ({k: v for k, v in flatten(dict(one)) if k not in OF_A_SESSION} for one in (before, now))
    return [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Of the source tree this package runs from, with `+changes` if it differs; None outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=5)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
