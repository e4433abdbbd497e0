"""Searches on Tune: ASHA stops, populations exploit, Optuna chooses; all of it again from the folders after a stop."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.studies import SweepLog, run_sweep, tiny_plan, tiny_values
from wmrl_ray.config import ConfigError
from wmrl_ray.fork import lineage
from wmrl_ray.results import read_results
from wmrl_ray.rllib import search as module
from wmrl_ray.rllib.search import run_search
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import Event
from wmrl_ray.run.folder import RunDir
from wmrl_ray.study import Plan
from wmrl_ray.sweep import Outcome, on_ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

LR = {"agent.lr": {"loguniform": [1e-4, 1e-1]}}


def plan_of(folder: Path, **tune: Any) -> Plan:
    run = {**tiny_values(folder)["run"], "eval_every": 2, "num_updates": 8}
    return tiny_plan(folder, variants={"baseline": {}}, columns=["bc"], seeds=[0, 1], run=run, search=LR, tune=tune)


def run(plan: Plan, out: Path, **kwargs: Any) -> tuple[dict[str, Outcome], SweepLog, dict[str, Any]]:
    log = SweepLog()
    from wmrl_ray.sweep import sweep

    results = sweep(plan, out, on_ray(out), log, run_search=run_search, **kwargs)
    record = json.loads((out / plan.searches[0].folder / "search.json").read_text())
    return {cell.run: outcome for cell, outcome in results}, log, record


def test_a_trials_runs_are_exported_to_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the cells of a grid are; here in this process."""
    told = []

    class Told:
        def __init__(self, config: RunConfig, folder: Path) -> None:
            self.run = (config.algorithm, folder)

        def on_event(self, event: Event) -> None:
            told.append((*self.run, event.kind))

    monkeypatch.setattr(module, "Telemetry", Told)
    monkeypatch.setattr(module.tune, "get_context", lambda: SimpleNamespace(get_trial_dir=lambda: "trials/t0"))
    monkeypatch.setattr(module.tune, "get_checkpoint", lambda: None)
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(module.tune, "report", reports.append)
    search, out = plan_of(tmp_path, scheduler="asha").searches[0], tmp_path / "out"
    module._work({"trial": {"name": "t0", "point": search.trials[0]}}, search, out, {}, tmp_path / "stop")
    assert {(algorithm, folder) for algorithm, folder, _ in told} == {("bc", out / search.run("t0", seed)) for seed in (0, 1)}
    assert [kind for *_, kind in told].count("eval") == 8 and reports[-1]["result"]["state"] == "finished"


@pytest.mark.slow
def test_asha_stops_the_worse_settings_and_says_so(tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path, scheduler="asha", num_samples=4, reduction_factor=2, max_concurrent=1), tmp_path / "out"
    outcomes, _, record = run(plan, out)
    states = {trial["name"]: trial["state"] for trial in record["trials"]}
    assert len(states) == 4 and set(states.values()) == {"finished", "pruned"}, states
    for trial in record["trials"]:
        assert all(len(values) == 2 for values in trial["values"].values())  # both seeds, always
        for name in trial["runs"]:
            assert RunDir(out / name).config().agent["lr"] == trial["point"]["agent.lr"]
            assert (RunDir(out / name).result() is not None) == (trial["state"] == "finished")
    finished = [trial for trial in record["trials"] if trial["state"] == "finished"]
    means = {trial["name"]: sum(trial["values"]["8"]) / 2 for trial in finished}
    assert record["best"]["name"] == max(means, key=lambda name: means[name])
    assert {outcome.state for outcome in outcomes.values()} == {"finished", "pruned"} and len(outcomes) == 8
    table = read_results(out / "results.parquet").to_pylist()
    assert {row["run"] for row in table} == set(outcomes) and {row["state"] for row in table} == {"finished", "unfinished"}

    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    _, _, again = run(plan, out)
    assert {trial["name"]: trial["state"] for trial in again["trials"]} == states
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}


@pytest.mark.slow
def test_a_population_takes_over_state_and_settings_and_writes_down_when(tmp_path: Path) -> None:
    tune = {"scheduler": "pbt", "num_samples": 3, "quantile_fraction": 0.34, "perturbation_interval": 2, "seed": 1}
    plan, out = plan_of(tmp_path, **tune), tmp_path / "out"
    _, _, record = run(plan, out)
    assert [trial["state"] for trial in record["trials"]] == ["finished"] * 3
    changed = [trial for trial in record["trials"] if trial["generation"]]
    assert changed, record
    for trial in changed:
        for name in trial["runs"]:
            path = out / name
            *_, last = steps = lineage(path)
            assert (
                last["settings"] == trial["point"] and last["from_update"] in (4, 8) and len(steps) == trial["generation"] + 1
            )
            assert RunDir(path).config().agent["lr"] == trial["point"]["agent.lr"]
            donor = RunDir(path.parent / last["from_run"])
            assert donor.config().agent["lr"] != trial["point"]["agent.lr"]
            mine, theirs = (
                [line for line in r.read_metrics() if line["update"] <= last["from_update"]] for r in (RunDir(path), donor)
            )
            assert mine == theirs
            result = RunDir(path).result()
            assert result is not None and result["updates"] == 8


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    plan, out = plan_of(tmp_path, scheduler="asha", num_samples=2, max_concurrent=1), tmp_path / "out"
    seen: list[str] = []

    class Log(SweepLog):
        def progress(self, name: str, update: int, total: int) -> None:
            seen.append(name)

    from wmrl_ray.sweep import sweep

    results = sweep(plan, out, on_ray(out), Log(), should_stop=lambda: len(seen) >= 1, run_search=run_search)
    assert "stopped" in {outcome.state for _, outcome in results}
    _, _, record = run(plan, out)
    assert len(record["trials"]) == 2 and {trial["state"] for trial in record["trials"]} <= {"finished", "pruned"}


@pytest.mark.slow
def test_settings_that_fail_are_one_trial_and_not_tried_again_unless_asked(tmp_path: Path) -> None:
    run_settings = {**tiny_values(tmp_path)["run"], "eval_every": 2}
    huge = {"agent.lr": {"choice": [1e-3, 1e30]}}  # the losses of the second are not finite
    plan = tiny_plan(
        tmp_path,
        variants={"baseline": {}},
        columns=["bc"],
        run=run_settings,
        search=huge,
        tune={"scheduler": "asha", "num_samples": 6, "seed": 3},
    )
    assert len({str(point) for point in plan.searches[0].trials}) == 2
    out = tmp_path / "out"
    _, _, record = run(plan, out)
    assert sorted(trial["state"] for trial in record["trials"]) == ["failed", "finished"]
    failed = next(trial for trial in record["trials"] if trial["state"] == "failed")
    assert "not finite" in failed["why"]
    _, log, _ = run(plan, out)
    assert not any(name in job for job in log.jobs for name in [failed["name"]])
    _, log, _ = run(plan, out, resume="errored")
    assert any(failed["name"] in job for job in log.jobs)


@pytest.mark.slow
def test_optuna_chooses_and_knows_what_it_chose_before(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    plan, out = plan_of(tmp_path, searcher="optuna", num_samples=3, max_concurrent=1), tmp_path / "out"
    _, _, record = run(plan, out)
    points = [trial["point"] for trial in record["trials"]]
    assert len(points) == 3 and all(1e-4 <= point["agent.lr"] <= 1e-1 for point in points)
    assert {trial["state"] for trial in record["trials"]} == {"finished"}
    files = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    more = plan_of(tmp_path, searcher="optuna", num_samples=4, max_concurrent=1)
    _, _, record = run(more, out)
    assert [trial["point"] for trial in record["trials"]][:3] == points and len(record["trials"]) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_without_optuna_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else find(name, *a))
    with pytest.raises(ConfigError, match=r"^tune.searcher = 'optuna' needs Optuna: pip install 'wmrl-ray\[optuna\]'$"):
        run(plan_of(tmp_path, searcher="optuna", num_samples=2), tmp_path / "out")


def test_run_sweep_helper_refuses_searches_without_ray(tmp_path: Path) -> None:
    from wmrl_ray.sweep import in_process

    with pytest.raises(ConfigError, match="are Ray Tune's: leave --no-ray out"):
        run_sweep(plan_of(tmp_path, scheduler="asha", num_samples=2), tmp_path / "out", in_process)
