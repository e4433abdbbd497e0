"""Searches before anything runs: which cells and trials a plan has, and a fork of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.studies import SweepLog, run_sweep, tiny_plan, tiny_values
from tests.test_trackers import read_tensorboard
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.fork import fork, lineage
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import OnEvent
from wmrl_ray.run.folder import RunDir
from wmrl_ray.search import METRICS, Search
from wmrl_ray.search_trial import run_trial, train_here, train_until
from wmrl_ray.space import point_name
from wmrl_ray.study import Plan, Study, expand
from wmrl_ray.sweep import in_process, sweep
from wmrl_ray.sweep_search import Record
from wmrl_ray.train import evaluation_metrics, train

LR = {"agent.lr": {"loguniform": [1e-4, 1e-2]}}


def test_random_points_are_cells_each_on_every_seed(tmp_path: Path) -> None:
    plan = tiny_plan(
        tmp_path,
        variants={"baseline": {}},
        columns=["bc"],
        seeds=[0, 1],
        search=LR,
        tune={"num_samples": 3},
        grid={"batch_size": [8, 4]},
    )
    assert len(plan.cells) == 3 * 2 * 2 and not plan.searches
    assert len({cell.run for cell in plan.cells}) == 12
    cell = next(c for c in plan.cells if c.point["batch_size"] == 4 and c.seed == 1)
    drawn = {"agent.lr": cell.point["agent.lr"]}
    assert cell.variant == f"baseline-batch_size4-{point_name(drawn)}" and cell.run == f"plane/bc-{cell.variant}-s1"
    assert cell.config is not None and (cell.config["batch_size"], cell.config["agent"]["lr"]) == (4, drawn["agent.lr"])
    assert {tuple(c.point.items()) for c in plan.cells if c.seed == 0} == {tuple(c.point.items()) for c in plan.cells if c.seed}


def test_a_managers_settings_are_drawn_for_those_who_have_one(tmp_path: Path) -> None:
    search: dict[str, Any] = {"manager.agent.skip": {"choice": [1, 2]}, "batch_size": {"choice": [4, 8]}}
    plan = tiny_plan(tmp_path, columns=["bc"], search=search, tune={"num_samples": 40})
    points = {name: [c.point for c in plan.cells if c.variant.startswith(name)] for name in ("baseline", "intents")}
    assert sorted(point["batch_size"] for point in points["baseline"]) == [4, 8]
    assert all(point.keys() == {"batch_size"} for point in points["baseline"])
    assert len(points["intents"]) == 4 and len(plan.managers) == 2
    only = {"manager.agent.skip": {"choice": [1, 2]}}
    plan = tiny_plan(tmp_path, columns=["bc"], search=only, tune={"num_samples": 12})
    assert [cell.run for cell in plan.cells if not cell.manager] == ["plane/bc-baseline-s0"]


def test_an_adaptive_search_is_one_for_all_seeds_of_a_cell(tmp_path: Path) -> None:
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2, "num_updates": 6}
    tune = {"scheduler": "asha", "num_samples": 3}
    plan = tiny_plan(tmp_path, variants={"baseline": {}}, seeds=[0, 1], run=run, search=LR, tune=tune)
    assert plan.cells == [] and [search.key for search in plan.searches] == [("plane", n, "baseline") for n in ("bc", "td3_bc")]
    search = plan.select(["*/bc"]).searches[0]
    assert (list(search.configs), search.rungs, len(search.trials)) == ([0, 1], [2, 4, 6], 3)
    name = point_name(search.trials[0])
    assert search.run(name, 1) == f"plane/bc-baseline-{name}-s1"
    assert search.config(search.trials[0], 1)["agent"]["lr"] == search.trials[0]["agent.lr"]
    optuna = tiny_plan(tmp_path, variants={"baseline": {}}, run=run, search=LR, tune={"searcher": "optuna"})
    assert optuna.searches[0].trials == []


def test_a_trial_reports_the_mean_over_its_seeds_and_repeats_nothing(tmp_path: Path) -> None:
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2}
    plan = tiny_plan(
        tmp_path, variants={"baseline": {}}, seeds=[0, 1], run=run, search=LR, tune={"scheduler": "asha"}, columns=["bc"]
    )
    search, out, reports = plan.searches[0], tmp_path / "out", []
    point = search.trials[0]
    result = run_trial(search, out, "t0", point, reports.append)
    assert [r["update"] for r in reports] == [2, 4] and result["state"] == "finished"
    runs = [RunDir(out / search.run("t0", seed)) for seed in (0, 1)]
    returns = [[line["eval/return_mean"] for line in r.read_metrics() if "eval/return_mean" in line] for r in runs]
    assert [r["values"] for r in reports] == [list(both) for both in zip(*returns, strict=True)]
    assert reports[0]["eval/return_mean"] == pytest.approx(sum(reports[0]["values"]) / 2) and returns[0] != returns[1]
    files = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    again: list[dict[str, Any]] = []
    run_trial(search, out, "t0", point, again.append)
    assert again == reports and files == {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}


def test_a_listener_hears_every_event_of_each_seeds_run(tmp_path: Path) -> None:
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2}
    tune = {"scheduler": "asha"}
    plan = tiny_plan(tmp_path, variants={"baseline": {}}, seeds=[0, 1], run=run, search=LR, tune=tune, columns=["bc"])
    search, heard = plan.searches[0], []

    def listener(config: RunConfig, folder: Path) -> OnEvent:
        return lambda event: heard.append((config.seed, folder, event.kind, event.update))

    run_trial(search, tmp_path / "out", "t0", search.trials[0], lambda values: None, listener=listener)
    kinds = ("update", "eval", "checkpoint", "end")
    assert [(kind, update) for seed, _, kind, update in heard if seed == 1] == [
        (kind, update) for update in (2, 4) for kind, update in [("start", update - 2), *((one, update) for one in kinds)]
    ]
    assert {(seed, folder) for seed, folder, *_ in heard} == {(s, tmp_path / "out" / search.run("t0", s)) for s in (0, 1)}


def test_a_run_that_stops_at_an_evaluation_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    config = from_dict(RunConfig, {**bc_settings(tmp_path), "num_updates": 8})
    for rung in (2, 6, 8):
        train_until(config, tmp_path / "pieces", rung)
    train(config, tmp_path / "whole")
    pieces, whole = (RunDir(tmp_path / name).read_metrics() for name in ("pieces", "whole"))
    times = ("time_s", "time/updates_per_s")
    assert [{k: v for k, v in line.items() if k not in times} for line in pieces] == [
        {k: v for k, v in line.items() if k not in times} for line in whole
    ]


def test_trackers_see_a_run_that_is_trained_in_pieces_as_one(tmp_path: Path) -> None:
    config = from_dict(RunConfig, {**bc_settings(tmp_path), "num_updates": 6})
    for rung in (2, 6):
        train_until(config, tmp_path / "run", rung)
    assert set(read_tensorboard(tmp_path / "run/tensorboard")["eval/return_mean"]) == {2, 4, 6}


def bc_settings(folder: Path) -> dict[str, Any]:
    values = tiny_values(folder / "data", variants={"baseline": {}}, columns=["bc"])
    cell = expand(from_dict(Study, {**values, "run": {**values["run"], "eval_every": 2}})).cells[0]
    assert cell.config is not None
    return cell.config


def test_a_process_compiles_for_its_tenth_run_as_for_its_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch runs a function eagerly that it has compiled eight times; a sweep's process trains many runs, each with its own."""
    counts = []

    def compiles(config: RunConfig, folder: Path, **kwargs: Any) -> dict[str, Any]:
        counters["stats"].clear()
        for _ in range(2):
            torch.compile(lambda x: x.relu().sum(), backend="eager", dynamic=False)(torch.zeros(len(counts) + 1))
        counts.append(counters["stats"]["unique_graphs"])
        return {}

    monkeypatch.setattr("wmrl_ray.train.train", compiles)
    for k in range(10):
        train_here(RunConfig("bc", "data"), tmp_path / str(k), lambda event: None)
    assert counts == [1] * 10


def test_a_fork_goes_on_from_the_others_state_with_its_own_settings(tmp_path: Path) -> None:
    values = bc_settings(tmp_path)
    config = from_dict(RunConfig, values)
    train_until(config, tmp_path / "donor", 2)
    point = {"agent.lr": 0.5}
    other = from_dict(RunConfig, {**values, "agent": {**values["agent"], "lr": 0.5}})
    donor = RunDir(tmp_path / "donor")
    made = fork(donor.checkpoint_path(2), donor.path, other, tmp_path / "made", point)
    assert made.config().agent["lr"] == 0.5 and made.newest_checkpoint() == made.checkpoint_path(2)
    before, after = (checkpoint.load(run.checkpoint_path(2))[0]["agent"] for run in (donor, made))
    for key, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][key])
    groups = [state["optimizers"] for state in (before, after)]
    lrs = [{group["lr"] for optimizer in each.values() for group in optimizer["param_groups"]} for each in groups]
    assert lrs == [{values["agent"]["lr"]}, {0.5}]
    moments = [next(iter(next(iter(each.values()))["state"].values()))["exp_avg"] for each in groups]
    assert torch.equal(*moments) and moments[0].abs().sum() > 0
    assert lineage(made.path) == [
        {"run": "donor", "from_update": 0, "from_run": None, "settings": None},
        {"run": "made", "from_update": 2, "from_run": "donor", "settings": point},
    ]
    train(other, made.path, resume=True)
    assert [line["update"] for line in made.read_metrics() if "eval/return_mean" in line] == [2, 4]
    assert donor.read_metrics() == made.read_metrics()[: len(donor.read_metrics())]
    wider = from_dict(RunConfig, {**values, "agent": {**values["agent"], "hidden_dim": 32}})
    with pytest.raises(ConfigError, match="make another network"):
        fork(donor.checkpoint_path(2), donor.path, wider, tmp_path / "wider", {})


def test_an_online_agent_is_swept_too_in_rows_without_data(tmp_path: Path) -> None:
    from tests.rllib import fakes

    agent = {"model": {"latent_dim": 8, "encoder_dim": 8, "mlp_dim": 8, "num_critics": 2, "num_bins": 5}}
    plan_of = {"num_samples": 4, "num_policy": 2, "num_elites": 2, "iterations": 1, "horizon": 2}
    demonstrations = tiny_values(tmp_path)["datasets"]["plane"]
    imitates = {"run": {"agent": {**agent, "model": {**agent["model"], "num_bins": 1}, "plan": plan_of}}}
    values = {
        "seeds": [0],
        "run": {
            **{"num_updates": 8, "updates_per_call": 4, "checkpoint_every": 4, "log_every": 4, "eval_every": 4},
            **{"batch_size": 4, "eval_episodes": 2, "envs_per_runner": 2},
            **{"online": {"seed_steps": 24, "num_envs": 2, "updates_per_step": 0.5}, "agent": {"episode_len": 20}},
        },
        "variants": {"flat": {}},
        "datasets": {"plane": {"env": fakes.PLANE}, "shown": demonstrations},
        "algorithms": {
            "tdmpc2": {"run": {"agent": {**agent, "plan": plan_of}}},
            "iq_mpc": imitates,
        },
    }
    solo = tiny_plan(tmp_path, **{**values, "rows": ["plane"], "columns": ["tdmpc2"]})
    assert solo.cells[0].dataset is None and (solo.cells[0].config or {"dataset": 1})["dataset"] is None
    asked = iter([False, True])
    out = tmp_path / "out"
    outcomes, _ = run_sweep(solo, out, in_process, should_stop=lambda: next(asked, False))
    shown = tiny_plan(tmp_path, **{**values, "rows": ["shown"], "columns": ["iq_mpc"]})
    more, _ = run_sweep(shown, out, in_process)
    assert {o.state for o in more.values()} == {"finished"}, more
    result = RunDir(out / "shown/iq_mpc-flat-s0").result()
    assert result is not None and result["updates"] == 8 and result["steps"] >= 24
    outcomes, _ = run_sweep(solo, out, in_process)
    assert {o.state for o in outcomes.values()} == {"finished"}, outcomes
    with pytest.raises(ConfigError, match="needs a uri, or an env"):
        tiny_plan(tmp_path, datasets={"none": {}})
    with pytest.raises(ConfigError, match=r"plane/tdmpc2-flat-s0: online.num_runners = 2; a run of a sweep is one process"):
        run = {**values["run"], "online": {"num_runners": 2}}
        tiny_plan(tmp_path, **{**values, "run": run, "rows": ["plane"], "columns": ["tdmpc2"]})


def test_settings_of_a_search_that_would_move_its_rungs_are_refused(tmp_path: Path) -> None:
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2}
    search = {"num_updates": {"choice": [4, 8]}}
    with pytest.raises(ConfigError, match="search: num_updates; the trials of a search are judged at the same updates"):
        tiny_plan(tmp_path, variants={"baseline": {}}, run=run, search=search, tune={"scheduler": "asha"})


def test_records_are_plain_json(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"], search=LR, tune={"num_samples": 2})
    run_sweep(plan, tmp_path / "out", in_process)
    study = json.loads((tmp_path / "out/study.json").read_text())
    assert [cell["point"] for cell in study["cells"]] == [cell.point for cell in plan.cells]


def test_a_member_goes_on_from_anothers_state_in_folders_of_its_own(tmp_path: Path) -> None:
    """What a population does, without Tune: reports keep the state that others adopt; a restart goes on where it stood."""
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2, "num_updates": 6}
    tune = {"scheduler": "pbt", "num_samples": 2}
    plan = tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"], run=run, search=LR, tune=tune)
    search, out = plan.searches[0], tmp_path / "out"
    first, second = ({"agent.lr": lr} for lr in (1e-3, 2e-3))
    reports: list[dict[str, Any]] = []
    run_trial(search, out, "t1", first, reports.append, should_stop=lambda: bool(reports))
    (donated,) = reports
    assert donated["update"] == 2 and (out / donated["kept"] / "s0/manifest.json").exists()
    run_trial(search, out, "t2", second, reports.append, should_stop=lambda: len(reports) > 1)
    run_trial(search, out, "t1", first, reports.append)  # the donor goes on, and prunes its checkpoints

    explored = {"agent.lr": 1.2e-3}
    del reports[:]
    result = run_trial(search, out, "t2", second | explored, reports.append, adopted=donated)
    assert [(r["update"], r["generation"], r["point"]) for r in reports] == [(u, 1, explored) for u in (2, 4, 6)]
    assert result["runs"] == ["plane/bc-baseline-t2-g1-s0"] and reports[0]["values"] == donated["values"]
    made = RunDir(out / result["runs"][0])
    assert [step["settings"] for step in lineage(made.path)] == [None, explored]
    assert lineage(made.path)[1] | {"settings": None} == {
        "run": made.path.name,
        "from_update": 2,
        "from_run": "bc-baseline-t1-s0",
        "settings": None,
    }
    assert reports[0]["kept"] == "plane/bc-baseline-search/kept/t2-g1-00000002"  # beside what generation 0 left at this rung
    mine, own, theirs = (
        checkpoint.load(out / search.folder / "kept" / kept / "s0")[0]["agent"]["model"]
        for kept in ("t2-g1-00000002", "t2-g0-00000002", "t1-g0-00000002")
    )
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert any(not torch.equal(own[key], theirs[key]) for key in mine)
    assert made.config().agent["lr"] == 1.2e-3 and RunDir(out / search.run("t2", 0)).config().agent["lr"] == 2e-3
    del reports[:]
    run_trial(search, out, "t2", second, reports.append)  # started again with its first settings
    assert [(r["update"], r["generation"], r["point"]) for r in reports] == [(6, 1, explored)]


def test_a_member_keeps_what_others_may_still_come_for(tmp_path: Path) -> None:
    """A donor at update 4 runs on to 8, where the next exploit is, while exploiters wait for a slot."""
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2, "num_updates": 10}
    tune = {"scheduler": "pbt", "num_samples": 2, "perturbation_interval": 2}
    plan = tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"], run=run, search=LR, tune=tune)
    search, out = plan.searches[0], tmp_path / "out"
    reports: list[dict[str, Any]] = []
    run_trial(search, out, "t1", {"agent.lr": 1e-3}, reports.append)
    kept = sorted(path.name for path in (out / search.folder / "kept").iterdir())
    assert kept == ["t1-g0-00000004", "t1-g0-00000006", "t1-g0-00000008"]


def in_this_process(search: Search, out: Path, *, on_report: Any, on_end: Any, **_: Any) -> None:
    """A search without Tune: all trials to their end."""
    for point in search.trials:
        name = point_name(point)
        on_end(name, run_trial(search, out, name, point, lambda values, name=name: on_report(name, values))["state"], None)


def test_a_search_of_runs_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    def plan_of(**changes: Any) -> Plan:
        run = {**tiny_values(tmp_path)["run"], "eval_every": 2, **changes}
        tune = {"scheduler": "asha", "num_samples": 2}
        return tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"], run=run, search=LR, tune=tune)

    def go(plan: Plan) -> set[str]:
        return {o.state for _, o in sweep(plan, tmp_path / "out", in_process, SweepLog(), run_search=in_this_process)}

    plan = plan_of()
    assert go(plan) == {"finished"} == go(plan_of(eval_episodes=3))  # what may change, may change
    name = plan.searches[0].run(point_name(plan.searches[0].trials[0]), 0)
    message = f"{name} holds another run, batch_size = 4: it was started with 8; choose another --out"
    with pytest.raises(ConfigError, match=re.escape(message)):
        go(plan_of(batch_size=4))


def test_what_a_trial_has_reached_is_not_forgotten_when_it_reports_it_again(tmp_path: Path) -> None:
    run = {**tiny_values(tmp_path)["run"], "eval_every": 2}
    tune = {"scheduler": "asha", "num_samples": 3}
    search = tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"], run=run, search=LR, tune=tune).searches[0]

    def report(name: str, update: int, generation: int = 0) -> None:
        about = {"point": search.trials[0], "runs": [f"{name}-{generation}"], "generation": generation, "values": [1.0]}
        record.report(name, {"update": update, **about})

    def is_now(name: str) -> tuple[str, int]:
        trial = Record(search, tmp_path).trials[name]
        return trial["state"], trial["updates"]

    record = Record(search, tmp_path)
    for update in (2, 4):
        report("whole", update)
    record.end("whole", "pruned", None)  # ASHA has a rung at the last update when it is a grace period times its factor
    assert is_now("whole") == ("finished", 4)
    report("part", 2)
    record.end("part", "pruned", None)
    record = Record(search, tmp_path)
    for name in ("whole", "part"):
        report(name, 2)
    assert (is_now("whole"), is_now("part")) == (("finished", 4), ("pruned", 2))
    record.end("whole", "pruned", None)
    assert is_now("whole") == ("finished", 4)
    report("part", 4)
    assert is_now("part") == ("running", 4)
    report("part", 2, generation=1)  # a member that has taken another's state
    assert is_now("part") == ("running", 2) and record.trials["part"]["runs"] == ["part-1"]
    record.end("part", "failed", "why")
    assert is_now("part") == ("failed", 2)


def test_the_metrics_that_a_search_takes_are_those_of_evaluations() -> None:
    names = {"plan/nan_frac": 0.0, "plan/value_mean": 0.0, "plan/std_mean": 0.0}
    about = {"returns": [1.0], "lengths": [1], "act_metrics": names, "reports_success": True, "successes": [True]}
    evaluation: Any = SimpleNamespace(**about)
    dataset: Any = SimpleNamespace(card=SimpleNamespace(has_scale=True), normalized_score=lambda value: value)
    assert set(evaluation_metrics(evaluation, dataset)) == set(METRICS)
