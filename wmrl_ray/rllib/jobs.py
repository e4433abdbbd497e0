"""A `wmrl` command as a Ray job: what is uploaded and in which environment it runs, checked here; then its log and its end.

plan = plan_job(["train", "quick"], working_dir=Path()); job = Job.submit(plan, address); job.follow(print); job.exit_code()
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import list2cmdline
from typing import Any, TypeVar

import aiohttp
import requests
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from wmrl_ray.config import ConfigError, check, did_you_mean

# Beside what .gitignore and .rayignore name. Without a last slash, so that Ray does not walk through these folders.
EXCLUDES = (".git", ".venv*", "/runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
EXCLUDES += ("*.hdf5", "*.h5", "*.npz", "*.parquet", "*.arrow", "*.mp4")  # datasets and films: shared storage is their place
UPLOAD_LIMIT = ray_constants.DASHBOARD_CLIENT_MAX_SIZE  # bytes, of one request to the head
STOP_SECONDS = 60  # between SIGTERM and SIGKILL of a job that is stopped, for a checkpoint; Ray's own is 3
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY(_|$)|API_?KEY", re.IGNORECASE)
# user:password@, or a token@; git@ is everyone's. After one slash too: so Ray prints a URL that it takes for a path
URL_USER = re.compile(r"(?<=[:/]/)(?!git@)[^/?#\s]*@")
HIDDEN = "***"
CONNECT_S, ANSWER_S = 10.0, 120.0  # for a request
QUIET_S = 300.0  # without a line of the log, after which its connection may be dead
PATIENCE_S = 60.0  # with a dashboard that restarts, while a job is followed

T = TypeVar("T")


class UnreachableError(ConfigError):
    """Nobody answers, or not in time, or the server fails: a moment later it may be different."""


@dataclass(frozen=True)
class Resources:
    """What Ray reserves for the command itself, on one node; what it starts has its own."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JobPlan:
    """What is sent. uploads: local folder -> bytes of each file in it that goes to the cluster."""

    entrypoint: str
    runtime_env: dict[str, Any]
    uploads: dict[Path, dict[Path, int]]
    resources: Resources = field(default_factory=Resources)
    submission_id: str | None = None

    def shown_env(self) -> dict[str, Any]:
        """The runtime environment without the values of variables that look like secrets, and without users of URLs."""
        variables = self.runtime_env["env_vars"]
        shown = {**self.runtime_env, "env_vars": {n: HIDDEN if SECRET.search(n) else v for n, v in variables.items()}}
        return without_users(shown)

    def ray_command(self, address: str | None = None, *, no_wait: bool = False) -> str | None:
        """The same as a command line of Ray's own CLI, without secrets; None where it cannot carry the entry point's quotes."""
        # Why split: Ray's CLI joins its arguments by the rules of another shell than the one that runs the entry point
        words = self.entrypoint.split(" ")
        if list2cmdline(words) != self.entrypoint:
            return None
        r = self.resources
        options = [
            ("--address", address),
            ("--submission-id", self.submission_id),
            ("--entrypoint-num-cpus", r.num_cpus and f"{r.num_cpus:g}"),
            ("--entrypoint-num-gpus", r.num_gpus and f"{r.num_gpus:g}"),
            ("--entrypoint-resources", json.dumps(dict(r.custom)) if r.custom else None),
            ("--runtime-env-json", json.dumps(self.shown_env())),
        ]
        given = [word for name, value in options if value for word in (name, str(value))]
        return shlex.join(without_users(["ray", "job", "submit", *given, *["--no-wait"] * no_wait, "--", *words]))


def plan_job(
    arguments: Sequence[str],
    *,
    working_dir: Path | None,
    runtime_env: Mapping[str, Any] | None = None,
    excludes: Sequence[str] = (),
    python: str = "python",
    resources: Resources | None = None,
    submission_id: str | None = None,
) -> JobPlan:
    """The job that runs `wmrl ARGUMENTS`, checked as far as that is possible without a cluster.

    Args:
        working_dir: uploaded; the command runs in its copy. None: that of `runtime_env`, or nothing is uploaded.
        python: of the nodes, on their PATH or absolute.

    Raises:
        ConfigError: a key or value that Ray would not take or would ignore, a secret that everyone could read, or an upload
            that is too large.
    """
    env = dict(runtime_env or {})
    check_runtime_env(env)
    if working_dir is not None:
        check(working_dir.is_dir(), f"--working-dir {working_dir}: no such folder")
        env["working_dir"] = str(working_dir)
    folders = _local_folders(env)
    if folders:
        env["excludes"] = list(dict.fromkeys([*EXCLUDES, *env.get("excludes", []), *excludes]))
    uploads = {folder: uploaded_files(folder, env["excludes"]) for folder in folders}
    for folder, files in uploads.items():
        _check_upload(folder, files)
    env["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **(env.get("env_vars") or {})}
    entrypoint = shlex.join([python, "-m", "wmrl_ray", *arguments])
    return JobPlan(entrypoint, env, uploads, resources or Resources(), submission_id)


def check_runtime_env(env: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that does not exist, which Ray would ignore, a value it refuses, or a token."""
    known = sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_"))
    for key in env:
        check(
            key in known,
            f"unknown key {key!r}{did_you_mean(str(key), known)} in the runtime environment; known: {', '.join(known)}",
        )
    variables = env.get("env_vars") or {}
    check(isinstance(variables, Mapping), "env_vars in the runtime environment: a mapping such as {MUJOCO_GL: egl} is needed")
    for name, value in variables.items():
        # Why not Ray's check: it would print the value
        check(isinstance(name, str), f"env_vars.{name} in the runtime environment: the name is no string; put it in quotes")
        check(isinstance(value, str), f"env_vars.{name} in the runtime environment: the value is no string; put it in quotes")
        check(
            not name.startswith("RAY_AUTH_TOKEN"),
            f"env_vars.{name} would show the cluster's token to all who can see its jobs; drop it: the nodes have it already",
        )
    excludes = env.get("excludes", [])
    check(isinstance(excludes, list), f"excludes = {excludes!r} in the runtime environment; a list of patterns is needed")
    # Why not these two: they may be local folders, which only the upload turns into what Ray checks
    rest = {key: value for key, value in env.items() if key not in ("working_dir", "py_modules")}
    try:
        RuntimeEnv(**rest)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the runtime environment is refused: {without_users(_one_line(error))}") from None


def without_users(value: Any) -> Any:
    """A copy in which no URL has its `user:password@`, however deep it lies."""
    if isinstance(value, str):
        return URL_USER.sub(f"{HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {without_users(key): without_users(one) for key, one in value.items()}
    return [without_users(one) for one in value] if isinstance(value, list | tuple) else value


def uploaded_files(folder: Path, excludes: Sequence[str]) -> dict[Path, int]:
    """Bytes of every file that Ray would upload, by its path in `folder`; in Ray's own way."""
    root, found = folder.resolve(), {}

    def note(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(root)] = path.stat().st_size

    quiet = logging.getLogger(f"{__name__}.quiet")
    quiet.setLevel(logging.ERROR)  # Why: it names every ignore file, and Ray names them again
    ignores = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    packaging._dir_travel(root, [packaging._get_excludes(root, list(excludes))], note, include_gitignore=ignores, logger=quiet)
    return found


def largest(files: Mapping[Path, int], count: int = 4) -> list[tuple[Path, int]]:
    """The files or folders that a user should look at: a folder stands for its files unless one of them is half of it."""
    sizes: dict[Path, int] = {}
    for path, size in files.items():
        for part in [path, *path.parents][:-1]:
            sizes[part] = sizes.get(part, 0) + size
    chosen: list[tuple[Path, int]] = []
    for top in sorted((path for path in sizes if len(path.parts) == 1), key=lambda path: -sizes[path])[:count]:
        while heavy := [path for path in sizes if path.parent == top and sizes[path] * 2 > sizes[top]]:
            top = heavy[0]
        chosen.append((top, sizes[top]))
    return chosen


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _local_folders(env: Mapping[str, Any]) -> list[Path]:
    """Raises ConfigError for what is neither a folder here nor a URI."""
    named = [("working_dir", env["working_dir"])] if env.get("working_dir") else []
    named += [("py_modules", module) for module in env.get("py_modules") or []]
    folders = []
    for key, value in named:
        check(isinstance(value, str), f"{key} = {value!r} in the runtime environment; a folder or a URI is needed")
        if "://" in value or value.endswith((".zip", ".whl", ".jar")):
            continue
        check(Path(value).is_dir(), f"{key} = {value!r} in the runtime environment: no such folder")
        folders.append(Path(value))
    return folders


def _check_upload(folder: Path, files: Mapping[Path, int]) -> None:
    total = sum(files.values())
    named = ", ".join(f"{path} ({megabytes(size)})" for path, size in largest(files))
    check(
        total < UPLOAD_LIMIT,
        f"{folder.resolve()} has {megabytes(total)} to upload, and Ray takes {megabytes(UPLOAD_LIMIT)}; largest: {named}; "
        "leave out what the job does not need (--exclude PATTERN, or a line in .rayignore)",
    )


# -- a job on a cluster ---------------------------------------------------------------------------------------------------


class Job:
    """A submitted job. Every method raises ConfigError where the cluster does not answer, refuses us, or knows no such job."""

    def __init__(self, submission_id: str, address: str | None = None, client: Any = None) -> None:
        self.submission_id, self.address = submission_id, address
        self._client = client or connect(address)

    @classmethod
    def submit(cls, plan: JobPlan, address: str | None = None) -> Job:
        client, r = connect(address), plan.resources
        with _explained(address):
            submission_id = client.submit_job(
                entrypoint=plan.entrypoint,
                runtime_env=dict(plan.runtime_env),
                submission_id=plan.submission_id,
                entrypoint_num_cpus=r.num_cpus,
                entrypoint_num_gpus=r.num_gpus,
                entrypoint_resources=dict(r.custom) or None,
            )
        return cls(submission_id, address, client)

    def status(self) -> JobStatus:
        with _explained(self.address):
            return self._client.get_job_status(self.submission_id)

    def message(self) -> str:
        """What Ray says about the status, one line."""
        with _explained(self.address):
            return _one_line(self._client.get_job_info(self.submission_id).message or "")

    def logs(self) -> str:
        with _explained(self.address):
            return self._client.get_job_logs(self.submission_id)

    def stop(self) -> bool:
        """Asks the job to end (SIGTERM first); False if it had ended already."""
        with _explained(self.address):
            return self._client.stop_job(self.submission_id)

    def follow(self, write: Callable[[str], None]) -> JobStatus:
        """Passes the log on as it grows, from its beginning, until the job has ended."""
        written, is_whole = 0, False

        async def tail() -> None:
            nonlocal written
            seen = 0
            # Why no heartbeat: Ray's server does not read from this socket, so it would answer no ping
            async with asyncio.timeout(QUIET_S) as limit:
                async for text in self._client.tail_job_logs(self.submission_id):
                    limit.reschedule(asyncio.get_running_loop().time() + QUIET_S)
                    if (new := text[max(0, written - seen) :]) != "":
                        write(new)
                    seen += len(text)
                    written = max(written, seen)

        while not (status := self._patiently(self.status)).is_terminal():
            try:
                asyncio.run(tail())
            except (RuntimeError, TimeoutError, aiohttp.ClientError):  # a proxy's timeout, a dashboard that restarts
                is_whole = False  # it starts over, unless the job ends before
                time.sleep(1.0)
            else:
                is_whole = True
                time.sleep(0.2)  # the log ends a moment before the job does
        if (written == 0 or not is_whole) and (rest := self._patiently(self.logs)[written:]):
            write(rest)
        return status

    def _patiently(self, ask: Callable[[], T]) -> T:
        """`ask()`, and again for `PATIENCE_S` while the dashboard is away."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except UnreachableError:
                if time.monotonic() >= until:
                    raise
            time.sleep(1.0)

    def exit_code(self) -> int:
        """Of the command, as far as Ray knows it: 0 where it succeeded, 1 where it was stopped or never started."""
        with _explained(self.address):
            details = self._client.get_job_info(self.submission_id)
        if details.status == JobStatus.SUCCEEDED:
            return 0
        code = details.driver_exit_code
        return code if isinstance(code, int) and 0 < code < 256 else 1


def connect(address: str | None) -> JobSubmissionClient:
    """Raises ConfigError: nobody answers there, or the token is missing or wrong."""
    with _explained(address):
        return _Client(address)


class _Client(JobSubmissionClient):
    """Ray's own, which waits for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        return super()._do_request(method, endpoint, **({"timeout": (CONNECT_S, ANSWER_S)} | kwargs))


class _explained:  # noqa: N801 - reads as a statement
    """Turns what Ray's client raises into one line with the way out."""

    def __init__(self, address: str | None) -> None:
        self.where = address or os.environ.get("RAY_ADDRESS") or "this machine (no --address, no RAY_ADDRESS)"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, AuthenticationError):
            raise ConfigError(
                f"the cluster at {self.where} refuses the token, or misses one: set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the cluster's own"
            ) from None
        if isinstance(error, ValueError) and "address" in str(error).lower():
            raise ConfigError(f"{self.where} is no address of a cluster's dashboard, such as http://127.0.0.1:8265") from None
        if isinstance(error, ConnectionError | requests.exceptions.ConnectionError | RpcError):
            raise UnreachableError(
                f"no Ray cluster answers at {self.where}; --address is the dashboard's, such as http://127.0.0.1:8265 (on "
                "Kubernetes: kubectl port-forward service/NAME-head-svc 8265:8265; of a ray up cluster: ray dashboard FILE)"
            ) from None
        if isinstance(error, requests.exceptions.Timeout | requests.exceptions.ChunkedEncodingError):
            raise UnreachableError(f"the cluster at {self.where} has not answered: {_one_line(error)}") from None
        if isinstance(error, RuntimeError) and "does not exist" in str(error):
            raise ConfigError(f"no such job at {self.where}: {_one_line(error)}") from None
        if isinstance(error, RuntimeError) and "status code" in str(error):
            # Why by the number: a proxy says 502 or 503 while the dashboard behind it restarts
            kind_of = UnreachableError if re.search(r"status code 5\d\d", str(error)) else ConfigError
            raise kind_of(f"the cluster at {self.where} refuses: {_one_line(error)}") from None


def _one_line(error: object) -> str:
    """Of a traceback the last line, which has the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "" if not lines else lines[-1 if any("Traceback" in line for line in lines) else 0]
