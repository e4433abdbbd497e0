"""results.parquet of a sweep's folder: every evaluation of every run on one row, with what is needed to make it again.

    pandas.read_parquet("runs/iql_td_mpc/results.parquet").query("is_last").groupby(["row", "algorithm"]).score_mean.mean()

Every run, but for what members of a population have left behind to go on from another's state: those folders stay without a row
(why: `rllib/population.py`).

It is written again, as a whole, when a run ends: complete or absent, with a checksum for every page. What a column means is in
`COLUMNS`, and in the file's own schema. Nothing in it depends on the machine that it was made on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl_ray.config import ConfigError, read_json
from wmrl_ray.study import Cell, Plan

if TYPE_CHECKING:
    import pyarrow as pa

    from wmrl_ray.sweep import Job, Listener, Outcome

FILE, FAILURES = "results.parquet", "failures.json"
SCHEMA = "wmrl.results/v1"
STRING, INT, FLOAT, BOOL = "string", "int64", "float64", "bool"

COLUMNS: dict[str, tuple[str, str]] = {
    "paper": (STRING, "paper whose table the sweep fills"),
    "table": (STRING, "table or figure of the paper; with `row`, `column`, `variant` and `seed` it names the cell"),
    "row": (STRING, "row of the table: a dataset or a task"),
    "column": (STRING, "column of the table"),
    "variant": (STRING, "flat, baseline, intents or random, with the suffix of its point of a grid or a search"),
    "point": (STRING, "JSON: the settings that a grid or a search chose; {} elsewhere"),
    "seed": (INT, "seed of the run"),
    "run": (STRING, "folder of the run, relative to the sweep's"),
    "manager": (STRING, "folder of the run whose intents the Worker observes; null without"),
    "algorithm": (STRING, "algorithm of the run"),
    "env": (STRING, "id of the environment of the evaluation"),
    "dataset": (STRING, "name of the dataset; null for an agent that learns from its own steps alone"),
    "dataset_sha256": (STRING, "of the dataset's content"),
    "is_stand_in": (
        BOOL,
        "the dataset was made by this project in place of the original: its scores are on a scale of their own",
    ),
    "update": (INT, "updates before the evaluation; null for a run without any evaluation yet"),
    "num_updates": (INT, "updates that the run is planned to make"),
    "is_last": (BOOL, "the last evaluation of its run: the one that tables show, never the best one"),
    "state": (STRING, "finished or unfinished: whether the run has made all its updates"),
    "steps": (FLOAT, "the agent's own steps before the evaluation; null offline"),
    "time_s": (FLOAT, "training time before the evaluation, in seconds, evaluations included"),
    "episodes": (FLOAT, "episodes of the evaluation"),
    "return_mean": (FLOAT, "mean return over the episodes"),
    "return_std": (FLOAT, "standard deviation of the return over the episodes"),
    "score_mean": (FLOAT, "normalised score: 0 and 100 are the reference returns of the dataset; null where it has none"),
    "score_std": (FLOAT, "standard deviation of the score over the episodes"),
    "success_mean": (FLOAT, "share of episodes that succeeded; null where the environment does not say"),
    "length_mean": (FLOAT, "mean length of the episodes"),
    "config": (STRING, "JSON: the run's config.json, datasets at a path by the path's last part"),
    "config_sha256": (STRING, "of `config` without what does not change what is learned: equal hashes learn alike"),
    "lineage": (STRING, "JSON: the runs that it continues, and where it changed its settings; null for a run of one piece"),
    "git_revision": (STRING, "revision of the code that the run began with; null outside a checkout"),
    "git_dirty": (BOOL, "the code differed from the revision"),
    "git_revisions": (
        STRING,
        "JSON: [[update from where on, revision], ...] of a run resumed with other code; null for one revision",
    ),
    "python": (STRING, "version"),
    "packages": (STRING, "JSON: package -> version"),
}

Row = dict[str, Any]


def schema() -> pa.Schema:
    """Of the table; each field's metadata has its description."""
    import pyarrow as pa

    types = {STRING: pa.string(), INT: pa.int64(), FLOAT: pa.float64(), BOOL: pa.bool_()}
    fields = [pa.field(name, types[kind], metadata={"description": text}) for name, (kind, text) in COLUMNS.items()]
    return pa.schema(fields, metadata={"schema": SCHEMA})


def write_results(rows: Sequence[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wmrl_ray.data.files import replacing

    table = pa.Table.from_pylist(list(rows), schema())
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def read_results(path: Path) -> pa.Table:
    """The table, every page checked. Raises ConfigError for a file that is damaged or is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is damaged ({str(error).splitlines()[0]}); `wmrl sweep` writes it again") from error
    found = (table.schema.metadata or {}).get(b"schema", b"").decode()
    if found != SCHEMA:
        raise ConfigError(f"{path} has schema {found!r}; this version reads {SCHEMA!r}")
    return table


def rows_of(path: Path, cell: dict[str, Any]) -> list[Row]:
    """The rows of one run; none before it has started.

    cell: paper, table, row, column, variant, seed, run, manager, point.
    """
    from wmrl_ray.report.runs import read_run

    if not (path / "config.json").exists():
        return []
    run = read_run(path)
    config, hashed = _config(run.config)
    revision, plus, _ = str(run.environment.get("git_revision") or "").partition("+changes")
    lineage = path / "lineage.json"
    about = {
        **{name: cell.get(name) for name in ("paper", "table", "row", "column", "variant", "seed", "run", "manager")},
        "point": json.dumps(cell.get("point") or {}, sort_keys=True),
        "algorithm": run.algorithm,
        "env": run.env_id,
        "dataset": run.dataset.get("name") if run.config.get("dataset") else None,
        "dataset_sha256": run.dataset.get("sha256"),
        "is_stand_in": bool(run.dataset.get("stand_in")),
        "num_updates": int(run.config["num_updates"]),
        "state": "finished" if run.is_complete else "unfinished",
        "config": config,
        "config_sha256": hashed,
        "lineage": lineage.read_text() if lineage.exists() else None,
        "git_revision": revision or None,
        "git_dirty": bool(plus) if revision else None,
        "git_revisions": _revisions(run.sessions),
        "python": run.environment.get("python"),
        "packages": json.dumps(run.environment.get("packages") or {}, sort_keys=True),
    }
    steps = dict(zip(*(values.tolist() for values in run.curve("online/steps")), strict=True))
    rows = []
    for line in run.evaluations:
        measured = {name: line.get(f"eval/{name}") for name in COLUMNS if f"eval/{name}" in line}
        own = {"update": line["update"], "time_s": line.get("time_s"), "steps": steps.get(line["update"])}
        rows.append({**about, **measured, **own, "is_last": line is run.evaluations[-1]})
    return rows or [{**about, "is_last": False}]


def _revisions(sessions: Sequence[dict[str, Any]]) -> str | None:
    """Each where it begins, the first too; None where it is one and the same."""
    found = [(session["update"], session.get("git_revision")) for session in sessions]
    new = [one for number, one in enumerate(found) if number == 0 or one[1] != found[number - 1][1]]
    return json.dumps(new) if len(new) > 1 else None


def _config(values: dict[str, Any]) -> tuple[str, str]:
    """(JSON, hash) of a config.json."""
    from wmrl_ray.config import flatten
    from wmrl_ray.run.settings import NOT_LEARNED, is_among

    dataset = values.get("dataset")
    values = {**values, "dataset": Path(dataset).name if dataset and Path(str(dataset)).is_absolute() else dataset}
    learned = {key: value for key, value in flatten(values) if not is_among(key, NOT_LEARNED | {"num_updates"})}
    digest = hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()
    return json.dumps(values, sort_keys=True), digest


class Ledger:
    """Listens to a sweep, and keeps results.parquet and failures.json of its folder; `inner` hears everything as well."""

    def __init__(self, plan: Plan, out: Path, inner: Listener) -> None:
        self._plan, self._out, self._inner = plan, out, inner
        self._cells: dict[str, dict[str, Any]] = {}
        for file in sorted(out.glob("study-*.json")):
            study = read_json(file, "sweep its table again, which writes it: finished runs are not repeated")
            names = {"paper": study["paper"], "table": study["table"]}
            self._cells |= {cell["run"]: {**cell, **names} for cell in study["cells"]}
        self._rows: dict[str, list[Row]] = {}
        self._is_behind = False  # what is written: the disk was full
        failures = out / FAILURES
        self.failed: dict[str, str] = (
            read_json(failures, "delete it: what has failed is then tried again") if failures.exists() else {}
        )
        self._update(list(self._cells))

    def begin(self, num_jobs: int, num_finished: int) -> None:
        self._inner.begin(num_jobs, num_finished)

    def progress(self, name: str, update: int, total: int) -> None:
        self._inner.progress(name, update, total)

    def end(self, job: Job, outcome: Outcome) -> None:
        from wmrl_ray.data.files import despite_full_disk, write_json

        was = dict(self.failed)
        self.failed.pop(job.name, None)
        if outcome.state == "failed":
            self.failed[job.name] = outcome.message or "no message"
        if self.failed != was:
            with despite_full_disk(f"{self._out / FAILURES} lacks {job.name}"):
                write_json(self._out / FAILURES, self.failed)
        self._update([job.name])
        self._inner.end(job, outcome)

    def add(self, cell: Cell) -> None:
        """A run that the plan did not know: a searcher chose it."""
        if cell.run not in self._cells:
            self._cells[cell.run] = {**cell.record, "paper": self._plan.paper, "table": self._plan.table}

    def close(self, cells: Sequence[Cell]) -> None:
        """All of the sweep's cells, at its end."""
        for cell in cells:
            self.add(cell)
        self._update([cell.run for cell in cells])

    def _update(self, runs: Sequence[str]) -> None:
        from wmrl_ray.data.files import despite_full_disk

        known = [run for run in runs if run in self._cells]
        changed = {
            run: rows for run in known if (rows := rows_of(self._out / run, self._cells[run])) != self._rows.get(run, [])
        }
        self._rows |= changed
        self._is_behind |= bool(changed)
        if self._is_behind:
            with despite_full_disk(f"{self._out / FILE} is written when the next run ends"):
                write_results([row for run in sorted(self._rows) for row in self._rows[run]], self._out / FILE)
                self._is_behind = False
