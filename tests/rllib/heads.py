"""A real Ray head on loopback with a token, as `ray start` makes it, and its end without `ray stop`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Head:
    """address: of its dashboard. env: of a process that may use it."""

    folder: Path
    address: str
    token: str
    env: dict[str, str] = field(default_factory=dict)

    def wmrl(self, *arguments: object, token: str | None = None, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        """`wmrl ARGUMENTS` in a process of its own, from the checkout's folder; Ray reads its token once per process."""
        env = self.env if token is None else {**self.env, "RAY_AUTH_TOKEN": token}
        command = [sys.executable, "-m", "wmrl_ray", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)

    def processes(self) -> list[psutil.Process]:
        """Every process of this cluster: those that name its folder, and what they started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(str(self.folder) in word for word in process.cmdline()):
                    found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        return list(found.values())


@contextlib.contextmanager
def head(num_cpus: int = 4) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="wmrl-head-"))  # of a short name: sockets need that
    ports = _free_ports(8)
    token = secrets.token_hex(16)
    (folder / "token").write_text(token)
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "MINARI_DATASETS_PATH"}
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "300",  # on a busy machine
        "WMRL_CACHE_DIR": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",  # what runs there is what was uploaded
    }
    options = {
        "port": ports[0],
        "dashboard-port": ports[1],
        "ray-client-server-port": ports[2],
        "metrics-export-port": ports[3],
        "dashboard-agent-listen-port": ports[4],
        "dashboard-agent-grpc-port": ports[5],
        "runtime-env-agent-port": ports[6],
        "num-cpus": num_cpus,
        "object-store-memory": 200 * 2**20,
        "temp-dir": folder,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    started = Head(folder, f"http://127.0.0.1:{ports[1]}", token, env)
    try:
        words = [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        _wait_for(started)
        yield started
    finally:
        _end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(started: Head, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{started.address}/api/version", timeout=5)
            return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it answers: not to us
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"no dashboard at {started.address}:\n{_log_of(started, 'dashboard')}"
        time.sleep(0.5)


def _log_of(started: Head, component: str) -> str:
    files = sorted((started.folder / "session_latest" / "logs").glob(f"{component}*"))
    return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)


def _end(started: Head) -> None:
    """Kills by pid, until nothing is left that Ray restarts or that was just starting."""
    for _ in range(10):
        if not (left := started.processes()):
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
