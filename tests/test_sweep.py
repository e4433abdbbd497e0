"""A sweep in one process: what is shared, what is repeated (nothing), and what a failure takes along (its own Workers)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.holders import held_elsewhere
from tests.rllib import fakes
from tests.studies import MANAGER_AGENT, SweepLog, run_sweep, tiny_plan, tiny_values
from tests.test_trackers import read_tensorboard
from wmrl_ray import intents
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.report import write_report
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.events import OnEvent
from wmrl_ray.run.folder import RunDir
from wmrl_ray.study import Plan, Study, expand
from wmrl_ray.sweep import Job, Outcome, in_process, perform
from wmrl_ray.train import train


def run(plan: Plan, out: Path, **kwargs: Any) -> tuple[dict[str, Outcome], SweepLog]:
    return run_sweep(plan, out, in_process, **kwargs)


def states(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.state for name, outcome in outcomes.items()}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets that got intents, or random vectors."""
    seen: list[str] = []
    augment = intents.augment

    def count(uri: str, *args: Any, **kwargs: Any) -> str:
        seen.append(uri)
        return augment(uri, *args, **kwargs)

    monkeypatch.setattr(intents, "augment", count)
    return seen


def test_a_manager_is_trained_once_for_all_its_workers_and_nothing_is_repeated(tmp_path: Path, passes: list[str]) -> None:
    plan, out = tiny_plan(tmp_path / "once"), tmp_path / "out"
    outcomes, log = run(plan, out)
    assert set(states(outcomes).values()) == {"finished"} and len(outcomes) == 4
    assert log.jobs == [
        "plane/manager-s0",
        *(f"plane/{name}-baseline-s0" for name in ("bc", "td3_bc")),
        *(f"plane/{name}-intents-s0" for name in ("bc", "td3_bc")),
    ]
    assert len(passes) == 1 and log.numbers == (5, 0)
    assert ("plane/bc-intents-s0", 2, 2) in log.updates

    worker, plain = (RunDir(out / f"plane/bc-{variant}-s0") for variant in ("intents", "baseline"))
    data, plain_data = (open_dataset(r.config().dataset) for r in (worker, plain))
    assert (data.card.obs_dim, plain_data.card.obs_dim) == (fakes.OBS_DIM + 3, fakes.OBS_DIM)
    np.testing.assert_array_equal(data.obs[:, : fakes.OBS_DIM], plain_data.obs)
    assert str(data.card.env_id).startswith("intents:") and str(data.card.env_id).endswith(fakes.PLANE)
    assert "eval/return_mean" in (worker.result() or {}) and outcomes["plane/bc-intents-s0"].episode_return is not None
    assert RunDir(out / "plane/td3_bc-intents-s0").config().dataset == worker.config().dataset

    again, log = run(plan, out)
    assert log.jobs == [] and log.numbers == (0, 4) and len(passes) == 1
    assert all(outcome.again for outcome in again.values())
    assert {n: o.episode_return for n, o in again.items()} == {n: o.episode_return for n, o in outcomes.items()}


def test_random_vectors_take_the_place_of_intents(tmp_path: Path, passes: list[str]) -> None:
    plan = tiny_plan(tmp_path / "random", variants={"random": {}}, seeds=[0, 1])
    outcomes, log = run(plan, tmp_path / "out")
    assert set(states(outcomes).values()) == {"finished"}
    assert log.jobs[:2] == ["plane/random3-s0", "plane/random3-s1"] and len(passes) == 2
    datasets = [open_dataset(RunDir(tmp_path / f"out/plane/bc-random-s{seed}").config().dataset) for seed in (0, 1)]
    first, second = (data.obs[:, fakes.OBS_DIM :] for data in datasets)
    assert first.shape[1] == 3 and first.min() >= 0 and first.max() <= 1 and not np.array_equal(first, second)
    assert str(datasets[0].card.env_id).startswith("random-intents:3:")


def test_a_managers_failure_blocks_its_workers_and_no_others(tmp_path: Path) -> None:
    other = fakes.write_plane_dataset(tmp_path / "other.npz")
    plane = {"uri": str(other), "env": fakes.PLANE}
    datasets = {"good": plane, "bad": {**plane, "family": "bad"}}
    manager = {"run": {"agent": MANAGER_AGENT}, "families": {"bad": {"agent": {"skip": 40}}}}  # longer than any episode
    outcomes, _ = run(tiny_plan(tmp_path / "bad", datasets=datasets, manager=manager), tmp_path / "out")
    expected = {name: "waiting" if name.startswith("bad") and "intents" in name else "finished" for name in outcomes}
    assert states(outcomes) == expected and len(expected) == 8
    assert "bad/manager-s0, which it needs, failed" in str(outcomes["bad/bc-intents-s0"].message)


def test_what_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path / "stopped", variants={"baseline": {}}), tmp_path / "out"
    asked = iter([False, True, True, True])
    outcomes, log = run(plan, out, should_stop=lambda: next(asked))
    assert states(outcomes) == {"plane/bc-baseline-s0": "stopped", "plane/td3_bc-baseline-s0": "stopped"}
    assert outcomes["plane/bc-baseline-s0"].updates == 2 and RunDir(out / "plane/bc-baseline-s0").result() is None
    outcomes, log = run(plan, out)
    assert set(states(outcomes).values()) == {"finished"}
    assert [update for name, update, _ in log.updates if name.startswith("plane/bc")][0] == 2


def test_every_run_of_a_sweep_has_the_trackers_that_it_names(tmp_path: Path) -> None:
    values = tiny_values(tmp_path / "data", variants={"baseline": {}}, columns=["bc"])
    silent = {**values, "run": {**values["run"], "track": []}}
    for name, study in {"with": values, "without": silent}.items():
        run(expand(from_dict(Study, study)), tmp_path / name)
    with_tensorboard, without = (tmp_path / name / "plane/bc-baseline-s0/tensorboard" for name in ("with", "without"))
    assert set(read_tensorboard(with_tensorboard)["eval/return_mean"]) == {4} and not without.exists()


def test_a_listener_hears_every_event_of_its_run(tmp_path: Path) -> None:
    cell = tiny_plan(tmp_path, variants={"baseline": {}}, columns=["bc"]).cells[0]
    heard: list[tuple[str, Path, str]] = []

    def listener(config: RunConfig, folder: Path) -> OnEvent:
        return lambda event: heard.append((config.algorithm, folder, event.kind))

    perform(Job("a", str(tmp_path / "a"), cell.config), lambda update, total: None, listener=listener)
    assert {(name, folder) for name, folder, _ in heard} == {("bc", tmp_path / "a")}
    assert [kind for _, _, kind in heard] == ["start", "update", "checkpoint", "update", "eval", "checkpoint", "end"]


def test_workers_of_a_stopped_manager_are_stopped_too(tmp_path: Path) -> None:
    outcomes, _ = run(tiny_plan(tmp_path / "none"), tmp_path / "out", should_stop=lambda: True)
    assert set(states(outcomes).values()) == {"stopped"}


def test_runs_with_other_settings_in_the_folder_are_named_before_anything_starts(tmp_path: Path) -> None:
    baseline = {"variants": {"baseline": {}}, "columns": ["bc"]}
    run(tiny_plan(tmp_path / "same", **baseline), tmp_path / "out")
    changed = tiny_plan(tmp_path / "same", **baseline, algorithms={"bc": {"run": {"agent": {"lr": 0.5}}}})
    with pytest.raises(ConfigError, match=r"plane/bc-baseline-s0 holds another run, agent.lr = 0.5: .* choose another --out"):
        run(changed, tmp_path / "out")


@pytest.mark.parametrize("changes", [{"columns": ["bc"]}, {}])  # no open cell; one beside the finished
def test_a_manager_that_would_train_further_is_named_before_its_workers_are_mixed(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    only = {"variants": {"intents": {}}}
    plan, out = tiny_plan(tmp_path / "further", **only, columns=["bc"]), tmp_path / "out"
    run(plan, out)
    files = sorted(out.rglob("*"))
    longer = tiny_plan(tmp_path / "further", **only, **changes)
    longer.managers["plane/manager-s0"]["num_updates"] = 6
    with pytest.raises(
        ConfigError, match=r"bc-intents-s0 has other intents: .* would go on from 4 to 6 updates; choose another --out"
    ):
        run(longer, out)
    assert sorted(out.rglob("*")) == files


def test_a_manager_that_was_trained_further_or_is_gone_is_named_only_where_it_is_needed(tmp_path: Path) -> None:
    only = {"variants": {"intents": {}}}
    plan, out = tiny_plan(tmp_path / "gone", **only, columns=["bc"]), tmp_path / "out"
    both = tiny_plan(tmp_path / "gone", **only)
    run(plan, out)
    manager = out / "plane/manager-s0"
    manager.rename(tmp_path / "aside")
    assert run(plan, out)[1].jobs == []  # all its Workers have finished
    with pytest.raises(ConfigError, match="its Manager plane/manager-s0 is not there any more; choose another --out"):
        run(both, out)
    (tmp_path / "aside").rename(manager)
    assert run(both, out)[1].jobs == ["plane/manager-s0", "plane/td3_bc-intents-s0"]
    train(from_dict(RunConfig, {**plan.managers["plane/manager-s0"], "num_updates": 6}), manager, resume=True)
    with pytest.raises(ConfigError, match="other intents: it was trained on .*-intents-.*; choose another --out"):
        run(plan, out)


def test_random_vectors_of_another_size_are_named_before_anything_starts(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path / "size", variants={"random": {}}, columns=["bc"]), tmp_path / "out"
    run(plan, out)
    other = tiny_plan(tmp_path / "size", variants={"random": {}})
    other = dataclasses.replace(other, cells=[dataclasses.replace(cell, random_dim=5) for cell in other.cells])
    with pytest.raises(ConfigError, match="bc-random-s0 has other vectors: it was trained on .*random3.*random5"):
        run(other, out)


def test_study_json_names_every_cell_and_keeps_those_of_earlier_sweeps(tmp_path: Path) -> None:
    out = tmp_path / "out"
    algorithms = {"bc": {}, "td3_bc": {}, "tt": {"not_implemented": "TT is not implemented"}}
    plan = tiny_plan(tmp_path / "json", variants={"baseline": {}}, algorithms=algorithms)
    run(plan.select(["*/bc"]), out)
    outcomes, log = run(plan.select(["*/t*"]), out)
    assert outcomes["plane/tt-baseline-s0"].state == "blocked" and log.jobs == ["plane/td3_bc-baseline-s0"]
    study = json.loads((out / "study.json").read_text())
    assert study == json.loads((out / "study-tiny.json").read_text())
    assert {key: study[key] for key in ("schema", "paper", "table", "stand_ins")} == {
        "schema": "wmrl.study/v1",
        "paper": "test",
        "table": "tiny",
        "stand_ins": False,
    }
    assert [cell["column"] for cell in study["cells"]] == ["bc", "td3_bc", "tt"]
    assert [cell["blocked"] for cell in study["cells"]] == [None, None, "TT is not implemented"]
    assert all((out / cell["run"] / "result.json").exists() for cell in study["cells"] if not cell["blocked"])


def test_a_study_of_ones_own_is_reported(tmp_path: Path) -> None:
    run(tiny_plan(tmp_path / "own", variants={"baseline": {}}, columns=["bc"]), tmp_path / "out")
    page, numbers = write_report([tmp_path / "out"], tmp_path / "page.html")
    assert "no tables of a paper 'test'" in str(json.loads(numbers.read_text())["warnings"])
    assert "plane/bc-baseline-s0" in page.read_text()


def test_stand_ins_and_originals_do_not_share_a_folder(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "mixed", variants={"baseline": {}}, columns=["bc"])
    run(plan, tmp_path / "out")
    with pytest.raises(ConfigError, match="their scores differ; choose another --out"):
        run(dataclasses.replace(plan, stand_ins=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{", "study-tiny.json is damaged .*delete it"),
        ("[]", "study-tiny.json is damaged"),
        ({"cells": [{"row": "plane"}]}, "study-tiny.json is damaged .KeyError: 'column'."),
        ({"cells": [{"row": [], "column": "bc", "variant": "baseline", "seed": 0}]}, "study-tiny.json is damaged .TypeError"),
        ({"schema": "wmrl.study/v9"}, "study-tiny.json holds table 'tiny' with schema 'wmrl.study/v9', this version writes"),
        ({"paper": "other"}, "study-tiny.json holds table 'tiny' of the paper 'other', not of 'test'; choose another --out"),
    ],
)
def test_what_is_not_a_record_of_this_table_is_not_merged(tmp_path: Path, changes: Any, message: str) -> None:
    plan, out = tiny_plan(tmp_path / "merge", variants={"baseline": {}}, columns=["bc"]), tmp_path / "out"
    run(plan, out)
    file = out / "study-tiny.json"
    file.write_text(changes if isinstance(changes, str) else json.dumps(json.loads(file.read_text()) | changes))
    before = file.read_text()
    with pytest.raises(ConfigError, match=message):
        run(plan, out)
    assert file.read_text() == before


def test_actions_that_are_not_finite_fail_their_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmrl_ray.core.agents.bc import BC

    def act(self: BC, obs: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, dict[str, Any]]:
        return torch.full((len(obs), self.action_dim), torch.nan), None, {}

    monkeypatch.setattr(BC, "act", act)
    outcomes, _ = run(tiny_plan(tmp_path / "nan", variants={"baseline": {}}), tmp_path / "out")
    assert states(outcomes) == {"plane/bc-baseline-s0": "failed", "plane/td3_bc-baseline-s0": "finished"}
    assert "action is not finite" in str(outcomes["plane/bc-baseline-s0"].message)


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "locked", variants={"baseline": {}}, columns=["bc"])

    with held_elsewhere(tmp_path / "out") as other:
        with pytest.raises(ConfigError, match=f"process {other.pid} on .* is at work in {tmp_path}/out"):
            run(plan, tmp_path / "out")
        with pytest.raises(ConfigError, match=f"process {other.pid} on .* is at work"):
            run(plan, tmp_path / "out", resume="fresh")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}
    assert set(states(run(plan, tmp_path / "out")[0]).values()) == {"finished"}


def test_a_manager_trained_further_gives_a_dataset_of_another_name(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "further")
    config, cell = plan.managers["plane/manager-s0"], plan.cells[0]
    folder = tmp_path / "manager"
    train(from_dict(RunConfig, config), folder)
    ids = [intents.augmented(cell.dataset, folder, env=fakes.PLANE) for _ in range(2)]
    assert ids[0] == ids[1]
    train(from_dict(RunConfig, {**config, "num_updates": 6}), folder, resume=True)
    assert intents.augmented(cell.dataset, folder, env=fakes.PLANE) not in ids
