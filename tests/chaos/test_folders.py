"""What happens to a run's files: removed, damaged, wanted by two; a sweep's table on a full disk; a clock that is set back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.runs import check_same, check_whole, config_of, log_of
from tests.chaos.test_drivers import DRIVER
from tests.chaos.test_storage import LOOPS, fill, ray_if_needed, small_disk  # noqa: F401
from tests.rllib import fakes
from tests.studies import run_sweep, tiny_plan
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError, to_dict
from wmrl_ray.online import train_online
from wmrl_ray.results import read_results, write_results
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.folder import RunDir
from wmrl_ray.sweep import in_process

pytestmark = [pytest.mark.chaos, pytest.mark.ray]


def name_of(loop: Any) -> str:
    return "on Ray" if loop is train_on_ray else "without Ray"


@pytest.mark.usefixtures("ray_if_needed")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_live_runs_folder_removed(loop: Any, tmp_path: Path, row: Callable[..., Any]) -> None:
    line, run = row(f"run folder, {name_of(loop)}", "removed while the run is at work"), tmp_path / "run"

    def on_event(event: Any) -> None:
        if event.kind == "checkpoint" and event.update == 48:
            shutil.rmtree(run)

    with pytest.raises(ConfigError, match=f"{run} was removed while the run was at work"):
        loop(config_of(num_runners=0), run, on_event=on_event)
    assert not run.exists()
    line.write("ended with one line; nothing was written in its place", None, "what was removed")


@pytest.mark.parametrize("how", ["plain", "ray"])
def test_two_processes_on_one_folder(how: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    """The second is refused at once, and the first comes to what it would have come to alone."""
    line, run = row("two processes on one folder", "without Ray" if how == "plain" else "on Ray"), tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, json.dumps(to_dict(config_of(num_runners=0))), str(run), how]
    about = {"cwd": os.getcwd(), "env": {**os.environ, "PYTHONPATH": os.getcwd()}, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **about)  # type: ignore[call-overload]
    try:
        until = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # Why: else the other comes too late on a busy machine
        second = subprocess.run(command, timeout=300, **about)  # type: ignore[call-overload]
        assert second.returncode == 1 and f"ConfigError: process {first.pid} on" in second.stderr.splitlines()[-1]
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=400) == 0
    finally:
        first.kill()
    check_whole(run, json.loads((run / "result.json").read_text()), plain)
    check_same(run, plain)
    line.write("the second ended with one line that names the first; same result to the bit", None, "nothing")


def zero_the_end(run: Path) -> None:
    (file,) = (run / "checkpoints" / "00000072").rglob("tensors.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-64] + bytes(64))


def empty_the_manifest(run: Path) -> None:
    (run / "checkpoints" / "00000072" / "manifest.json").write_bytes(b"")


def add_nul_to_the_log(run: Path) -> None:
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(bytes(4096))


DAMAGES = {
    "last 64 bytes of the newest checkpoint zeroed": (zero_the_end, "tensors.safetensors is corrupt", 48),
    "manifest of the newest checkpoint empty": (empty_the_manifest, "manifest.json is corrupt", 48),
    "4,096 NUL bytes at the end of the log": (add_nul_to_the_log, None, 72),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_power_cut_leaves(damage: str, plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line, run = row("run folder", damage), tmp_path / "run"
    hurt, told, start = DAMAGES[damage]
    stop_at_72(run)
    hurt(run)
    started = time.time()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        result = train_online(config_of(num_runners=0), run, resume=True, on_event=line.on_event)
    passed = {str(warning.message) for warning in found if "passing over" in str(warning.message)}
    assert (told in passed.pop() and not passed) if told else not passed
    assert line.events[0][1].update == start
    check_whole(run, result, plain)
    check_same(run, plain)
    first = next(when for when, event in line.events if event.kind == "update" and event.update > 72)
    how = "one line names it; the older one was used, " if told else ""
    line.write(f"{how}same result to the bit", first - started, f"{72 - start} updates made again" if told else "nothing")


def stop_at_72(run: Path) -> None:
    calls = iter(range(1, 100))
    stopped = train_online(config_of(num_runners=0), run, should_stop=lambda: next(calls) == 6)
    assert stopped["updates"] == 72


def test_an_empty_config(plain: Path, tmp_path: Path, row: Callable[..., Any]) -> None:
    line, run, config = row("run folder", "config.json empty"), tmp_path / "run", config_of(num_runners=0)
    stop_at_72(run)
    whole = (run / "config.json").read_bytes()
    (run / "config.json").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{run}/config.json is damaged .*; restore it, or start the run over") as refused:
        train_online(config, run, resume=True)
    assert "\n" not in str(refused.value) and RunDir(run).newest_checkpoint() is not None
    (run / "config.json").write_bytes(whole)
    check_whole(run, train_online(config, run, resume=True), plain)
    check_same(run, plain)
    line.write("one line names it; restored, it went on with the same result to the bit", None, "nothing")


def test_every_checkpoint_damaged(tmp_path: Path, row: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    stop_at_72(run)
    for manifest in run.rglob("manifest.json"):
        manifest.write_bytes(b"")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints of .* are damaged"), pytest.warns(UserWarning):
        train_online(config_of(num_runners=0), run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before
    row("run folder", "manifests of all checkpoints empty").write("ended with one line; nothing was overwritten", None, "")


# -- sweeps -----------------------------------------------------------------------------------------------------------------

SWEEP = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from tests.chaos.test_folders import plan_in
from tests.studies import run_sweep
from wmrl_ray.sweep import in_process
write_table, writes = pq.write_table, iter(range(1, 100))
def half(table, where, **kwargs):
    write_table(table, where, **kwargs)
    if next(writes) == int(sys.argv[2]):
        os.truncate(where, os.path.getsize(where) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = half
run_sweep(plan_in(Path(sys.argv[1])), Path(sys.argv[1]) / "out", in_process)
"""


def plan_in(folder: Path) -> Any:
    """Three runs of 4 updates, each with 2 evaluations."""
    file = str(fakes.write_plane_dataset(folder / "plane.npz"))
    run = {"num_updates": 4, "updates_per_call": 2, "checkpoint_every": 2, "log_every": 2, "eval_every": 2, "batch_size": 8}
    return tiny_plan(
        folder / "data",
        run={**run, "eval_episodes": 2, "envs_per_runner": 2, "num_to_keep": 1, "track": []},
        datasets={"plane": {"uri": file, "env": fakes.PLANE}},
        variants={"baseline": {}},
        columns=["bc"],
        seeds=[0, 1, 2],
    )


def rows_of(out: Path) -> list[tuple[Any, ...]]:
    table = read_results(out / "results.parquet").to_pylist()
    return sorted((row["run"], row["update"], row["return_mean"]) for row in table)


@pytest.fixture(scope="module")
def whole_rows(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("whole")
    run_sweep(plan_in(folder), folder / "out", in_process)
    rows = rows_of(folder / "out")
    assert len(rows) == 6
    return rows


def test_a_sweep_killed_while_the_table_is_written(
    whole_rows: list[tuple[Any, ...]], tmp_path: Path, row: Callable[..., Any]
) -> None:
    line = row("sweep", "kill -9 while results.parquet is written")
    command = [sys.executable, "-c", SWEEP, str(tmp_path), "2"]
    process = subprocess.run(command, cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": os.getcwd()}, timeout=400)
    assert process.returncode == -signal.SIGKILL
    assert len(rows_of(tmp_path / "out")) == 2 and len(list((tmp_path / "out").glob(".results.*"))) == 1
    started = time.time()
    outcomes, log = run_sweep(plan_in(tmp_path), tmp_path / "out", in_process)
    assert len(log.jobs) == 1 and {outcome.state for outcome in outcomes.values()} == {"finished"}
    assert rows_of(tmp_path / "out") == whole_rows
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == {".lock"}
    line.write("the same command finished what was left; the table is whole", time.time() - started, "nothing")


def test_a_disk_that_is_full_while_the_table_is_written(
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
    whole_rows: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    row: Callable[..., Any],
) -> None:
    line, writes = row("disk of a sweep", "full while results.parquet is written"), iter(range(1, 100))

    def without_room(rows: Any, path: Path) -> None:
        if next(writes) != 2:
            return write_results(rows, path)
        fill(small_disk, left=0)
        try:
            return write_results(rows, path)
        finally:
            (small_disk / "ballast").unlink()

    monkeypatch.setattr("wmrl_ray.results.write_results", without_room)
    with pytest.warns(UserWarning, match="No space left on device: .*results.parquet is written when the next run ends"):
        outcomes, _ = run_sweep(plan_in(tmp_path), small_disk / "out", in_process)
    assert {outcome.state for outcome in outcomes.values()} == {"finished"}
    assert rows_of(small_disk / "out") == whole_rows
    line.write("told on one line; the sweep went on, and the next write had all rows", None, "one write of the table")


# -- the clock --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_if_needed")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_clock_that_is_set_back(
    loop: Any, plain: Path, tmp_path: Path, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a day, at update 48, and once more between two sessions."""
    line, run, offset = row(f"driver's clock, {name_of(loop)}", "set back by a day, twice"), tmp_path / "run", [0.0]
    now, gmtime = time.time, time.gmtime
    monkeypatch.setattr(time, "time", lambda: now() + offset[0])
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: gmtime(now() + offset[0] if seconds is None else seconds))

    def on_event(event: Any) -> None:
        if event.kind == "checkpoint" and event.update == 48:
            offset[0] = -86_400.0

    calls = iter(range(1, 100))
    stopped = loop(config_of(num_runners=0), run, on_event=on_event, should_stop=lambda: next(calls) == 6)
    assert stopped["updates"] == 72
    offset[0] = -2 * 86_400.0
    monkeypatch.setattr("wmrl_ray.run.provenance._PROCESS", "another")
    result = loop(config_of(num_runners=0), run, resume=True)
    check_whole(run, result, plain)
    check_same(run, plain)
    times = [entry["time_s"] for entry in log_of(run)]
    assert times == sorted(times) and 0 < times[-1] < 600
    sessions = RunDir(run).sessions()
    assert [session["update"] for session in sessions] == [0, 72] and sessions[1]["started"] < sessions[0]["started"]
    line.write("went on, and resumed; training time goes forward; same result to the bit", None, "nothing")
