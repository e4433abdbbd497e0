"""What a job would send, and how a job is followed: without a cluster. With one: test_jobs_cluster.py."""

from __future__ import annotations

import asyncio
import json
import shlex
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import list2cmdline
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobStatus

from wmrl_ray.config import ConfigError
from wmrl_ray.rllib import jobs
from wmrl_ray.rllib.jobs import Job, Resources, largest, plan_job, uploaded_files


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of 5 files to send (130 bytes) and many that stay."""
    folder = tmp_path / "project"
    sizes = {
        "study.yaml": 10,
        "pkg/a.py": 20,
        "pkg/deep/b.py": 30,
        "pkg/runs/c.py": 40,  # not the runs folder
        ".gitignore": 0,
        ".git/objects/pack": 1_000,
        ".venv/lib/x.py": 1_000,
        ".venv-latest/lib/x.py": 1_000,
        "runs/r/metrics.jsonl": 1_000,
        "pkg/__pycache__/a.pyc": 1_000,
        ".ruff_cache/x": 1_000,
        "maze.hdf5": 1_000,
        "secret.txt": 1_000,
        "pkg/large.bin": 1_000,
    }
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
    (folder / ".gitignore").write_text("secret.txt\n" + "#" * 19)
    (folder / ".rayignore").write_text("large.bin\n")
    return folder


def test_what_git_ray_and_we_ignore_stays_and_the_size_is_that_of_the_archive_that_ray_makes(project: Path) -> None:
    plan = plan_job(["train", "quick"], working_dir=project)
    (files,) = plan.uploads.values()
    expected = ["study.yaml", "pkg/a.py", "pkg/deep/b.py", "pkg/runs/c.py", ".gitignore", ".rayignore"]
    assert sorted(map(str, files)) == sorted(expected)
    archive = project.parent / "made.zip"
    packaging.create_package(str(project), archive, include_gitignore=True, excludes=plan.runtime_env["excludes"])
    with zipfile.ZipFile(archive) as made:
        sent = {info.filename: info.file_size for info in made.infolist() if not info.is_dir()}
    assert {str(path): size for path, size in files.items()} == sent


def test_an_exclude_of_the_user_is_added(project: Path) -> None:
    plan = plan_job(["doctor"], working_dir=project, runtime_env={"excludes": ["deep"]}, excludes=["study.yaml"])
    assert sorted(map(str, *plan.uploads.values())) == [".gitignore", ".rayignore", "pkg/a.py", "pkg/runs/c.py"]


def test_too_large_an_upload_is_refused_and_its_largest_paths_are_named(project: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jobs, "UPLOAD_LIMIT", 4_000)
    (project / "weights").mkdir()
    for i in range(30):
        (project / "weights" / f"{i}.pt").write_bytes(b"x" * 100)
    (project / "pkg" / "deep" / "blob").write_bytes(b"x" * 1_500)
    with pytest.raises(ConfigError, match=r"largest: weights \(0.0 MB\), pkg/deep/blob \(0.0 MB\).*--exclude"):
        plan_job(["doctor"], working_dir=project)
    plan_job(["doctor"], working_dir=project, excludes=["weights"])


def test_a_folder_stands_for_its_files_unless_one_is_half_of_it() -> None:
    files = {Path("a/b/c"): 90, Path("a/b/d"): 10, Path("many/1"): 30, Path("many/2"): 30, Path("x"): 1}
    assert largest(files, 2) == [(Path("a/b/c"), 90), (Path("many"), 60)]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"workingdir": "."}, r"unknown key 'workingdir' \(did you mean 'working_dir'\?\)"),
        ({"env_var": {}}, "did you mean 'env_vars'"),
        ({"_ray_commit": "x"}, "unknown key '_ray_commit'"),
        ({"env_vars": {"A": 1}}, "env_vars.A in the runtime environment: the value is no string"),
        ({"env_vars": {"A": ["s3cret"]}}, "env_vars.A in the runtime environment: the value is no string"),
        ({"env_vars": {1: "s3cret"}}, "env_vars.1 in the runtime environment: the name is no string"),
        ({"env_vars": ["A=s3cret"]}, "env_vars in the runtime environment: a mapping"),
        ({"pip": "https://me:s3cret@h/x"}, r"is refused: .*\*\*\*@h/x"),
        ({"pip": 3}, "refused"),
        ({"excludes": "runs"}, "a list of patterns is needed"),
        ({"working_dir": "/no/such/folder"}, "no such folder"),
        ({"env_vars": {"RAY_AUTH_TOKEN": "s3cret"}}, "would show the cluster's token"),
        ({"env_vars": {"RAY_AUTH_TOKEN_PATH": "/x"}}, "would show the cluster's token"),
    ],
)
def test_a_runtime_environment_that_ray_would_ignore_or_refuse_is_one_line(env: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_job(["doctor"], working_dir=None, runtime_env=env)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_remote_working_directory_is_not_measured() -> None:
    plan = plan_job(["doctor"], working_dir=None, runtime_env={"working_dir": "s3://bucket/project.zip"})
    assert plan.uploads == {}
    assert "excludes" not in plan.runtime_env


def test_the_entry_point_survives_the_shell_that_runs_it() -> None:
    arguments = ["sweep", "t", "--only", "*/bc", "--set", "agent.x=$HOME; 'a b'"]
    plan = plan_job(arguments, working_dir=None, python="python3.11")
    assert shlex.split(plan.entrypoint) == ["python3.11", "-m", "wmrl_ray", *arguments]


@pytest.mark.parametrize(
    "arguments", [["train", "quick"], ["sweep", "t", "--only", "*/bc"], ["train", "x", "--set", "a=[1, 2]"]]
)
def test_the_printed_command_makes_rays_cli_send_the_same(project: Path, arguments: list[str]) -> None:
    plan = plan_job(arguments, working_dir=project, resources=Resources(1, 0.5, {"learner": 1}), submission_id="name")
    words = shlex.split(plan.ray_command("http://127.0.0.1:8265", no_wait=True) or "")
    options, entry = words[3 : words.index("--")], words[words.index("--") + 1 :]
    assert words[:3] == ["ray", "job", "submit"]
    assert list2cmdline(entry) == plan.entrypoint  # what Ray's CLI makes of its arguments
    given = dict(zip(options[:-1:2], options[1::2], strict=True))
    assert options[-1] == "--no-wait"
    assert given["--address"] == "http://127.0.0.1:8265"
    assert (given["--submission-id"], given["--entrypoint-num-cpus"], given["--entrypoint-num-gpus"]) == ("name", "1", "0.5")
    assert json.loads(given["--entrypoint-resources"]) == {"learner": 1}
    assert json.loads(given["--runtime-env-json"]) == plan.runtime_env


def test_quotes_that_rays_cli_would_break_give_no_command() -> None:
    assert plan_job(["train", "x", "--set", 'a="b"'], working_dir=None).ray_command() is None


def test_values_that_look_like_secrets_are_sent_but_not_shown() -> None:
    variables = {"WANDB_API_KEY": "k1", "AWS_SECRET_ACCESS_KEY": "k2", "MONKEY": "yes", "HF_TOKEN": "k3"}
    plan = plan_job(["doctor"], working_dir=None, runtime_env={"env_vars": variables})
    shown = plan.shown_env()["env_vars"]
    assert (shown["MONKEY"], plan.runtime_env["env_vars"]["HF_TOKEN"]) == ("yes", "k3")
    assert not {"k1", "k2", "k3"} & set(shown.values())
    assert not any(secret in (plan.ray_command() or "") for secret in ("k1", "k2", "k3"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:s3cret@h/simple", "https://***@h/simple"),
        ("x @ git+https://s3cret@h/x.git@v1", "x @ git+https://***@h/x.git@v1"),
        ("--extra-index-url=https://me:s3@cret@h:8080/x?a=b@c", "--extra-index-url=https://***@h:8080/x?a=b@c"),
        ("git+ssh://git@h/x.git", "git+ssh://git@h/x.git"),
        ("https://h:8080/x@v1 a@b", "https://h:8080/x@v1 a@b"),
        ("s3://bucket/project.zip", "s3://bucket/project.zip"),
    ],
)
def test_the_user_of_a_url_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert jobs.without_users({"a": [{"b": text}]}) == {"a": [{"b": shown}]}


def test_passwords_in_urls_are_sent_but_not_shown() -> None:
    url = "https://me:s3cret@h/simple"
    env = {"pip": {"packages": ["x"], "pip_install_options": [f"--index-url={url}"]}, "env_vars": {"PIP_INDEX_URL": url}}
    env["working_dir"] = "https://me:s3cret@h/project.zip"  # type: ignore[assignment]
    plan = plan_job(["data", "info", url], working_dir=None, runtime_env=env)
    printed = json.dumps(plan.shown_env()) + (plan.ray_command("http://me:s3cret@h:8265") or "")
    assert "s3cret" not in printed and printed.count("***@h") == 8
    assert plan.runtime_env["env_vars"]["PIP_INDEX_URL"] == url and url in plan.entrypoint


def test_a_stopped_job_has_time_for_a_checkpoint_unless_the_user_says_otherwise() -> None:
    name = "RAY_JOB_STOP_WAIT_TIME_S"
    assert plan_job(["doctor"], working_dir=None).runtime_env["env_vars"] == {name: "60"}
    own = plan_job(["doctor"], working_dir=None, runtime_env={"env_vars": {name: "5"}})
    assert own.runtime_env["env_vars"] == {name: "5"}


class FakeClient:
    """A job that logs `parts`; the connection breaks after each of `breaks` of them."""

    def __init__(self, parts: list[str], breaks: tuple[int, ...] = (), code: int | None = 0, ended: bool = False) -> None:
        self.parts, self.breaks, self.code, self.ended = parts, list(breaks), code, ended

    def get_job_status(self, name: str) -> JobStatus:
        if not self.ended:
            return JobStatus.RUNNING
        return JobStatus.SUCCEEDED if self.code == 0 else JobStatus.FAILED

    def get_job_info(self, name: str) -> Any:
        return SimpleNamespace(status=self.get_job_status(name), driver_exit_code=self.code, message="it\nended")

    def get_job_logs(self, name: str) -> str:
        return "".join(self.parts)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for i, part in enumerate(self.parts):
            await asyncio.sleep(0)
            if self.breaks and self.breaks[0] == i:
                self.breaks.pop(0)
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield part
        self.ended = True


@pytest.mark.parametrize("breaks", [(), (1,), (0, 2, 2)])
def test_every_character_of_the_log_comes_once_whatever_the_connection_does(
    breaks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    seen: list[str] = []
    client = FakeClient(["one\n", "two\n", "three\n"], breaks)
    assert Job("x", client=client).follow(seen.append) == JobStatus.SUCCEEDED
    assert "".join(seen) == "one\ntwo\nthree\n"


def test_the_log_of_a_job_that_has_ended_is_printed_whole() -> None:
    seen: list[str] = []
    Job("x", client=FakeClient(["all of it"], ended=True)).follow(seen.append)
    assert seen == ["all of it"]


class Clock:
    """`time` of the module under test: sleeping takes none."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Restarting(FakeClient):
    """Its dashboard is away for `away` requests once a connection has broken."""

    def __init__(self, away: int, error: Exception, **kwargs: Any) -> None:
        super().__init__(["one\n", "two\n", "three\n"], (1,), **kwargs)
        self.away, self.error = away, error

    def _answers(self) -> None:
        if not self.breaks and self.away:
            self.away -= 1
            raise self.error

    def get_job_status(self, name: str) -> JobStatus:
        self._answers()
        return super().get_job_status(name)

    def get_job_logs(self, name: str) -> str:
        self._answers()
        return super().get_job_logs(name)


AWAY = [
    ConnectionError("no"),
    requests.exceptions.ReadTimeout("Read timed out."),
    RuntimeError("Request failed with status code 503: no upstream."),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_a_dashboard_that_restarts_is_waited_for_and_not_for_ever(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "time", clock := Clock())
    seen: list[str] = []
    assert Job("x", client=Restarting(20, error)).follow(seen.append) == JobStatus.SUCCEEDED
    assert "".join(seen) == "one\ntwo\nthree\n"
    assert 20 <= clock.now < 30
    monkeypatch.setattr(jobs, "time", clock := Clock())
    with pytest.raises(ConfigError):
        Job("x", client=Restarting(1_000, error)).follow(seen.append)
    assert jobs.PATIENCE_S <= clock.now < jobs.PATIENCE_S + 5


@pytest.mark.parametrize("error", [AuthenticationError("no"), RuntimeError("status code 404: Job x does not exist.")])
def test_a_refusal_is_not_waited_for(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "time", clock := Clock())
    with pytest.raises(ConfigError):
        Job("x", client=Restarting(1_000, error)).follow(lambda text: None)
    assert clock.now == 1.0


@pytest.mark.parametrize("away", [0, 5])
def test_the_rest_of_the_log_is_fetched_where_the_job_ends_while_the_connection_is_broken(
    away: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(Restarting):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            try:
                async for text in super().tail_job_logs(name):
                    yield text
            finally:
                self.ended = True

    monkeypatch.setattr(jobs, "time", Clock())
    seen: list[str] = []
    Job("x", client=Ending(away, ConnectionError("no"))).follow(seen.append)
    assert seen == ["one\n", "two\nthree\n"]


def test_a_connection_that_says_nothing_more_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(FakeClient):
        async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
            if not self.breaks:
                async for text in super().tail_job_logs(name):
                    yield text
                return
            self.breaks.clear()
            yield "one\n"
            await asyncio.sleep(60)

    monkeypatch.setattr(jobs, "QUIET_S", 0.05)
    monkeypatch.setattr(jobs, "time", Clock())
    seen: list[str] = []
    Job("x", client=Silent(["one\n", "two\n"], (1,))).follow(seen.append)
    assert seen == ["one\n", "two\n"]


def test_every_request_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def request(method: str, url: str, **kwargs: Any) -> Any:
        given.append(kwargs["timeout"])
        said = {"logs": "x"} if url.endswith("/logs") else {"ray_version": "2.54.1"}
        return SimpleNamespace(status_code=200, text="", raise_for_status=lambda: None, json=lambda: said)

    monkeypatch.setattr(requests, "request", request)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert jobs.connect("http://127.0.0.1:1").get_job_logs("x") == "x"
    assert len(given) >= 2 and set(given) == {(jobs.CONNECT_S, jobs.ANSWER_S)}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (None, 1), (-9, 1)])
def test_the_exit_code_is_the_commands(code: int | None, expected: int) -> None:
    assert Job("x", client=FakeClient([], code=code, ended=True)).exit_code() == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AuthenticationError("Authentication failed: s3cret"), "refuses the token, or misses one: set RAY_AUTH_MODE=token"),
        (ConnectionError("no"), "no Ray cluster answers at http://h:8265"),
        (RpcError("unavailable\nat length"), "no Ray cluster answers at http://h:8265"),
        (ValueError("Invalid address format: h"), "http://h:8265 is no address of a cluster's dashboard"),
        (RuntimeError("Request failed with status code 404: Job x does not exist."), "no such job"),
        (RuntimeError("Request failed with status code 500: Traceback\n  File\nValueError: taken."), "ValueError: taken."),
    ],
)
def test_what_rays_client_raises_is_one_line_without_a_token(error: Exception, message: str) -> None:
    class Refusing(FakeClient):
        def get_job_status(self, name: str) -> JobStatus:
            raise error

    with pytest.raises(ConfigError, match=message) as caught:
        Job("x", "http://h:8265", client=Refusing([])).status()
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_nothing_of_rays_layout_that_the_measure_relies_on_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert uploaded_files(tmp_path, []) == {Path("a"): 1}
    assert jobs.UPLOAD_LIMIT == 100 * 2**20
