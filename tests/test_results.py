"""results.parquet: what it holds, that it is whole, and that a run's end writes it; and what --resume does with failures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.studies import SweepLog, run_sweep, tiny_plan
from wmrl_ray import results
from wmrl_ray.config import ConfigError
from wmrl_ray.data.files import partial_of
from wmrl_ray.results import COLUMNS, read_results, schema, write_results
from wmrl_ray.run.folder import RunDir
from wmrl_ray.study import Plan
from wmrl_ray.sweep import Job, Outcome, in_process, sweep


def small(folder: Path, **changes: Any) -> Plan:
    return tiny_plan(folder, **{"variants": {"baseline": {}}, "columns": ["bc"], "seeds": [0, 1], **changes})


def table(out: Path) -> list[dict[str, Any]]:
    return read_results(out / "results.parquet").to_pylist()


def test_every_evaluation_of_every_run_is_a_row_with_its_provenance(tmp_path: Path) -> None:
    out, ended = tmp_path / "out", []

    class Log(SweepLog):
        def end(self, job: Job, outcome: Outcome) -> None:
            ended.append(len(table(out)))

    run = {"num_updates": 4, "updates_per_call": 2, "checkpoint_every": 2, "log_every": 2, "eval_every": 2, "batch_size": 8}
    plan = small(tmp_path / "data", run={**run, "eval_episodes": 2, "envs_per_runner": 2})
    sweep(plan, out, in_process, Log())
    assert ended == [2, 4]  # it is there as each run ends
    rows = table(out)
    assert [(row["run"], row["update"], row["is_last"]) for row in rows] == [
        (f"plane/bc-baseline-s{seed}", update, update == 4) for seed in (0, 1) for update in (2, 4)
    ]
    assert list(rows[0]) == list(COLUMNS)
    for row in rows:
        folder = RunDir(out / row["run"])
        line = next(x for x in folder.read_metrics() if x["update"] == row["update"] and "eval/return_mean" in x)
        assert (row["return_mean"], row["length_mean"], row["episodes"]) == (
            line["eval/return_mean"],
            line["eval/length_mean"],
            2,
        )
        assert (row["paper"], row["table"], row["row"], row["column"], row["seed"]) == (
            "test",
            "tiny",
            "plane",
            "bc",
            row["seed"],
        )
        assert json.loads(row["config"])["agent"]["lr"] == 3e-4 and json.loads(row["config"])["dataset"] == "plane.npz"
        assert str(tmp_path) not in json.dumps(row) and len(row["dataset_sha256"]) == 64
        assert json.loads(row["packages"])["torch"] and row["state"] == "finished"
        revision = json.loads((folder.path / "environment.json").read_text())["git_revision"]
        assert (row["git_revision"] or "") + ("+changes" if row["git_dirty"] else "") == (revision or "")
        assert row["git_revisions"] is None
    assert len({row["config_sha256"] for row in rows}) == 2  # of the two seeds


def test_equal_hashes_learn_alike(tmp_path: Path) -> None:
    def digest(**run: Any) -> str:
        values = {"algorithm": "bc", "dataset": "/x/plane.npz", "seed": 0, "num_updates": 4, "agent": {"lr": 1.0}}
        return results._config({**values, **run})[1]

    assert digest() == digest(num_updates=8, device="cuda") == digest(dataset="/elsewhere/plane.npz")
    assert len({digest(), digest(seed=1), digest(agent={"lr": 2.0}), digest(dataset="/x/other.npz")}) == 4


def test_a_run_resumed_with_other_code_says_where() -> None:
    sessions = [{"update": u, "git_revision": r} for u, r in ((0, "abc"), (2, "abc"), (4, "def"), (6, None))]
    assert json.loads(results._revisions(sessions) or "") == [[0, "abc"], [4, "def"], [6, None]]
    assert results._revisions(sessions[:2]) is None and results._revisions([]) is None


def test_a_file_that_lost_a_byte_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    row = dict.fromkeys(COLUMNS) | {"run": "plane/bc-baseline-s0", "config": json.dumps({"x": list(range(300))})}
    write_results([row], file)
    assert read_results(file).to_pylist() == [row] and pq.read_schema(file).equals(schema(), check_metadata=True)
    assert pq.read_schema(file).field("update").metadata[b"description"].decode() == COLUMNS["update"][1]
    whole = file.read_bytes()
    at = pq.ParquetFile(file).metadata.row_group(0).column(list(COLUMNS).index("config")).dictionary_page_offset or 0
    file.write_bytes(whole[: at + 60] + bytes([whole[at + 60] ^ 1]) + whole[at + 61 :])
    with pytest.raises(ConfigError, match="is damaged .*`wmrl sweep` writes it again"):
        read_results(file)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(ConfigError, match="has schema ''"):
        read_results(file)


def failing(jobs: Sequence[Job], listener: Any, should_stop: Callable[[], bool]) -> dict[str, Outcome]:
    """The first seed fails."""
    good = in_process([job for job in jobs if not job.name.endswith("s0")], listener, should_stop)
    for job in jobs:
        if job.name.endswith("s0"):
            good[job.name] = Outcome("failed", "boom")
            listener.end(job, good[job.name])
    return good


def test_what_failed_is_left_until_it_is_asked_for(tmp_path: Path) -> None:
    plan, out = small(tmp_path / "data"), tmp_path / "out"
    outcomes, _ = run_sweep(plan, out, failing)
    assert {name[-2:]: o.state for name, o in outcomes.items()} == {"s0": "failed", "s1": "finished"}
    outcomes, log = run_sweep(plan, out, in_process)
    assert log.jobs == [] and outcomes["plane/bc-baseline-s0"].message == "boom (--resume errored tries it again)"
    outcomes, log = run_sweep(plan, out, in_process, resume="errored")
    assert log.jobs == ["plane/bc-baseline-s0"] and {o.state for o in outcomes.values()} == {"finished"}
    assert json.loads((out / "failures.json").read_text()) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failures.json", "delete it: what has failed is then tried again"),
        ("study-other.json", "sweep its table again"),
        ("plane/bc-baseline-s0/config.json", "restore it, or start the run over"),
        ("plane/bc-baseline-s0/result.json", "delete it, and resume the run"),
    ],
)
def test_a_damaged_file_of_the_folder_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    plan, out = small(tmp_path / "data"), tmp_path / "out"
    run_sweep(plan, out, in_process)
    (out / name).write_text("{")
    with pytest.raises(ConfigError, match=rf"{re.escape(str(out / name))}.*{message}"):
        run_sweep(plan, out, in_process)


def test_a_fresh_start_loses_nothing(tmp_path: Path) -> None:
    plan, out = small(tmp_path / "data"), tmp_path / "out"
    run_sweep(plan, out, in_process)
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.json*")}
    _, log = run_sweep(plan, out, in_process, resume="fresh")
    assert len(log.jobs) == 2
    aside = tmp_path / "out.1"
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*.json*")} == before
    run_sweep(plan, out, in_process, resume="fresh")
    assert (tmp_path / "out.2/study.json").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no sweep .* but something else; choose another --out"):
        run_sweep(plan, other, in_process, resume="fresh")
    assert (other / "thesis.tex").exists()


def test_as_many_checkpoints_are_kept_as_asked(tmp_path: Path) -> None:
    run = {"num_updates": 8, "updates_per_call": 2, "checkpoint_every": 2, "log_every": 2, "eval_every": 0, "batch_size": 8}
    for keep in (1, 3):
        plan = small(tmp_path / "data", seeds=[0], run={**run, "eval_episodes": 2, "envs_per_runner": 2, "num_to_keep": keep})
        run_sweep(plan, tmp_path / f"out{keep}", in_process)
        found = sorted(path.name for path in (tmp_path / f"out{keep}/plane/bc-baseline-s0/checkpoints").iterdir())
        assert found == [f"{update:08d}" for update in (2, 4, 6, 8)][-keep:]


def test_a_disk_that_is_full_while_results_are_written_costs_that_write_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out, writes = small(tmp_path / "data"), tmp_path / "out", []
    write_table = pq.write_table

    def full_once(table: Any, where: Any, **kwargs: Any) -> None:
        writes.append(table.num_rows)
        if len(writes) == 1:
            raise OSError(28, "No space left on device")
        write_table(table, where, **kwargs)

    monkeypatch.setattr(pq, "write_table", full_once)
    with pytest.warns(UserWarning, match="No space left on device: .*results.parquet is written when the next run ends"):
        outcomes, _ = run_sweep(plan, out, in_process)
    assert {outcome.state for outcome in outcomes.values()} == {"finished"}
    table = read_results(out / "results.parquet")
    assert writes == [1, 2] and sorted(table["seed"].to_pylist()) == [0, 1]


def test_the_last_write_that_failed_is_made_up_for_by_the_next_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = small(tmp_path / "data"), tmp_path / "out"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="No space left"):
        patch.setattr(pq, "write_table", full)
        run_sweep(plan, out, failing)
    assert not (out / "results.parquet").exists()
    assert [path.name for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"] == []
    _, log = run_sweep(plan, out, in_process)
    assert log.jobs == [] and read_results(out / "results.parquet").num_rows == 1


def test_what_a_killed_sweep_left_half_written_is_removed(tmp_path: Path) -> None:
    plan, out = small(tmp_path / "data"), tmp_path / "out"
    run_sweep(plan, out, in_process)
    partials = [partial_of(out / "results.parquet"), partial_of(out / "study.json")]
    for path in partials:
        path.write_bytes(b"PAR1")
    (out / ".tune/trial").mkdir(parents=True)
    (out / ".tune.stop").touch()
    (out / "mine.partial").touch()
    run_sweep(plan, out, in_process)
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".lock"}
    assert (out / "mine.partial").exists()
