"""Sweeps on Ray: Tune trials that share Managers, are tried again when their process dies, and stop when asked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from tests.rllib import fakes
from tests.studies import SweepLog, run_sweep, tiny_plan
from wmrl_ray.config import ConfigError
from wmrl_ray.rllib.trials import Outcome, cause_of, run_trials
from wmrl_ray.run.folder import RunDir
from wmrl_ray.study import Plan
from wmrl_ray.sweep import Outcome as SweepOutcome
from wmrl_ray.sweep import on_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(plan: Plan, out: Path, **kwargs: Any) -> tuple[dict[str, SweepOutcome], SweepLog]:
    return run_sweep(plan, out, on_ray(out, **kwargs))


def test_a_sweep_trains_its_manager_once_and_repeats_nothing(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path / "data"), tmp_path / "out"
    outcomes, log = run(plan, out)
    assert {name: o.state for name, o in outcomes.items()} == dict.fromkeys(outcomes, "finished"), outcomes
    assert sorted(log.jobs) == sorted(["plane/manager-s0", *outcomes]) and len(outcomes) == 4
    assert set(log.jobs[-2:]) == {"plane/bc-intents-s0", "plane/td3_bc-intents-s0"}
    assert ("plane/bc-baseline-s0", 4, 4) in log.updates
    workers = [RunDir(out / f"plane/{name}-intents-s0") for name in ("bc", "td3_bc")]
    assert len({worker.config().dataset for worker in workers}) == 1
    assert all(outcomes[cell.run].episode_return is not None for cell in plan.cells)
    assert not (out / ".tune").exists()
    again, log = run(plan, out)
    assert log.jobs == [] and all(outcome.again for outcome in again.values())


def test_a_killed_run_is_tried_again_and_then_takes_only_what_needs_it_along(tmp_path: Path) -> None:
    data = str(fakes.write_plane_dataset(tmp_path / "data.npz"))
    datasets = {
        "good": {"uri": data, "env": fakes.PLANE},
        "deadly": {"uri": data, "env": fakes.DYING_PLANE},
        "long": {"uri": data, "env": fakes.PLANE, "family": "long"},
    }
    small = {"skip": 2, "plan": {"num_policy": 8, "num_elites": 2}}
    manager = {"run": {"agent": small}, "families": {"long": {"agent": {"skip": 40}}}}  # longer than any episode
    plan = tiny_plan(tmp_path / "unused", datasets=datasets, manager=manager, columns=["bc"])
    plan = plan.select(["good", "deadly/bc/baseline", "long/bc/intents"])
    outcomes, _ = run(plan, tmp_path / "out", max_failures=1)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "good/bc-baseline-s0": "finished",
        "good/bc-intents-s0": "finished",
        "deadly/bc-baseline-s0": "failed",
        "long/bc-intents-s0": "waiting",
    }
    assert "died" in str(outcomes["deadly/bc-baseline-s0"].message)
    assert RunDir(tmp_path / "out/deadly/bc-baseline-s0").newest_checkpoint() is not None


def work(spec: dict[str, Any], report: Any) -> dict[str, Any]:
    """Counts its attempts in a file, and does what the spec says for each."""
    file = Path(spec["file"])
    attempt = int(file.read_text()) if file.exists() else 0
    file.write_text(str(attempt + 1))
    report({"attempt": attempt})
    action = spec["actions"][min(attempt, len(spec["actions"]) - 1)]
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise ValueError("boom\nin two lines")
    if action == "sleep":
        time.sleep(300)
    return {"attempt": attempt}


def specs(folder: Path, **actions: list[str]) -> dict[str, Any]:
    return {name: {"file": str(folder / f"{name}.txt"), "actions": does} for name, does in actions.items()}


def test_a_trial_that_crashes_is_started_again_up_to_the_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = specs(tmp_path, well=["ok"], killed=["die", "ok"], broken=["raise"])
    ended: list[str] = []
    outcomes = run_trials(
        work, jobs, folder=tmp_path / ".tune", max_failures=1, on_end=lambda name, outcome: ended.append(name)
    )
    assert outcomes["well"] == Outcome(result={"attempt": 0})
    assert outcomes["killed"] == Outcome(result={"attempt": 1})
    assert outcomes["broken"].result is None and "in two lines" in str(outcomes["broken"].error)
    assert (tmp_path / "broken.txt").read_text() == "2"
    assert sorted(ended) == ["broken", "killed", "well"]
    assert "experiment" not in capfd.readouterr().out.lower()  # Tune's own displays are off: stdout is ours


def test_thecause_of_is_read_where_the_trial_wrote_it(tmp_path: Path) -> None:
    """Tune copies it to the storage, which `trial.get_error()` reads, when it pleases."""
    pickled, text = tmp_path / "error.pkl", tmp_path / "error.txt"
    pickled.write_bytes(cloudpickle.dumps(ValueError("boom\nin two lines")))
    text.write_text("Failure # 1\nlost\n")
    assert cause_of(SimpleNamespace(pickled_error_file=str(pickled), error_file=str(text))) == "ValueError: in two lines"
    assert cause_of(SimpleNamespace(pickled_error_file=None, error_file=str(text))) == "lost"
    assert cause_of(SimpleNamespace(pickled_error_file=None, error_file=None)) == "no message"


def test_all_trials_stop_when_asked(tmp_path: Path) -> None:
    seen: list[str] = []
    started = time.monotonic()
    outcomes = run_trials(
        work,
        specs(tmp_path, a=["sleep"], b=["sleep"]),
        folder=tmp_path / ".tune",
        on_progress=lambda name, values: seen.append(name),
        should_stop=lambda: len(seen) == 2,
    )
    assert outcomes == {"a": Outcome(), "b": Outcome()} and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (
            {"gpus_per_trial": 0.5},
            "0.5 GPUs for each run, but the cluster's largest node has 0; --gpus-per-run, or",
        ),
        ({"cpus_per_trial": 99}, r"99 CPUs for each run, but the cluster's largest node has \d; --cpus-per-run"),
    ],
)
def test_what_no_node_has_is_refused_at_once(tmp_path: Path, share: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_trials(work, {"a": {}}, folder=tmp_path / ".tune", **share)


def threads(spec: Any, report: Any) -> dict[str, Any]:
    import torch

    return {"torch": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS")}


@pytest.mark.parametrize("cpus", [0.5, 2.0])
def test_a_trial_has_one_thread_however_many_cpus_it_may_fill(tmp_path: Path, cpus: float) -> None:
    """Of two cores; a share of one is packed."""
    outcomes = run_trials(threads, {"a": None, "b": None}, folder=tmp_path / ".tune", cpus_per_trial=cpus)
    assert [outcome.result and outcome.result["torch"] for outcome in outcomes.values()] == [1, 1], outcomes


def who(spec: Any, report: Any) -> dict[str, Any]:
    if spec == "raise":
        raise ValueError("boom")
    return {"pid": os.getpid()}


def test_a_process_takes_the_next_trial_when_it_has_done_one_well_and_only_then(tmp_path: Path) -> None:
    whole = ray.cluster_resources()["CPU"]
    outcomes = run_trials(who, {"a": None, "b": None, "c": None}, folder=tmp_path / ".tune", cpus_per_trial=whole)
    pids = [outcome.result["pid"] for outcome in outcomes.values() if outcome.result]
    assert len(pids) == 3 and len(set(pids)) == 1, outcomes
    outcomes = run_trials(
        who, {"a": None, "bad": "raise", "c": None}, folder=tmp_path / ".tune", cpus_per_trial=whole, max_failures=0
    )
    assert outcomes["bad"].error and outcomes["a"].result and outcomes["c"].result, outcomes
    assert outcomes["a"].result["pid"] != outcomes["c"].result["pid"]
