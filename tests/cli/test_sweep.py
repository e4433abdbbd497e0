"""`wmrl sweep` as a user meets it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.cli.conftest import Wmrl
from tests.studies import tiny_plan, tiny_values
from wmrl_ray.cli.configs import available, available_studies, read_source, read_study
from wmrl_ray.cli.sweep import _on_ray as on_ray
from wmrl_ray.cli.sweep_display import SweepPanel, scores_table, show_plan
from wmrl_ray.config import ConfigError
from wmrl_ray.search import TuneSpec
from wmrl_ray.sweep import Job, Outcome


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.yaml", tiny_values(tmp_path / "data", variants={"baseline": {}}))


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_study_runs_and_is_not_repeated(wmrl: Wmrl, study: Path, tmp_path: Path) -> None:
    outcome = wmrl("sweep", study, "--no-ray", "--set", "eval_episodes=3", "--seeds", "0,4", "--only", "plane/bc")
    assert outcome.code == 0, outcome.err
    assert [(e["event"], e.get("run"), e.get("state")) for e in outcome.events] == [
        ("sweep", None, None),
        *(("run", f"plane/bc-baseline-s{seed}", "finished") for seed in (0, 4)),
        *(("cell", f"plane/bc-baseline-s{seed}", "finished") for seed in (0, 4)),
    ]
    assert "2 finished of 2 cells\nruns/test   (next: wmrl report runs/test)" in outcome.err
    recorded = json.loads((tmp_path / "runs/test/plane/bc-baseline-s4/config.json").read_text())
    assert (recorded["seed"], recorded["eval_episodes"]) == (4, 3)
    again = wmrl("sweep", study, "--no-ray", "--set", "eval_episodes=3", "--seeds", "0,4", "--only", "plane/bc")
    assert again.events[0] == {"event": "sweep", "jobs": 0, "finished_before": 2}


def test_a_failure_is_told_by_the_exit_code(wmrl: Wmrl, tmp_path: Path) -> None:
    bad = {"bc": {}, "dt": {"run": {"agent": {"sequence": 2}, "batch_size": 4}}, "iql": {"run": {"device": "cuda:9"}}}
    study = write(tmp_path / "bad.yaml", tiny_values(tmp_path / "data", variants={"baseline": {}}, algorithms=bad))
    outcome = wmrl("sweep", study, "--no-ray")
    assert outcome.code == 1
    assert "2 finished, 1 failed of 3 cells" in outcome.err
    assert [e["message"] for e in outcome.events if e.get("state") == "failed" and e["event"] == "cell"][0].startswith("device")


def test_a_dry_run_prints_every_cell_and_loads_no_ray(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom wmrl_ray.cli import main\n"
        "sys.argv = ['wmrl', 'sweep', 'iql_td_mpc/table2', '--dry-run', '--stand-ins', '--seeds', '0']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    cells = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cells) == 168 and all(cell["config"]["agent"] for cell in cells)
    assert {cell["manager"] for cell in cells if cell["variant"] == "intents" and cell["row"] == "maze2d-umaze-v1"} == {
        "maze2d-umaze-v1/manager-s0"
    }
    assert not (tmp_path / "runs").exists()


def test_when_nothing_can_run_every_reason_is_given_once(wmrl: Wmrl, tmp_path: Path) -> None:
    outcome = wmrl("sweep", "iql_td_mpc/table1", "--stand-ins", "--no-ray", "--only", "maze2d-large-v1")
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert lines[0] == "wmrl: none of the 25 cells can run:" and len(lines) == 4
    assert any("wmrl data make pointmaze-large" in line for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quick"], "quick is a single run, not a study; start it with: wmrl train quick"),
        (["table2"], "no study named: table2 (did you mean 'iql_td_mpc/table2'?); there are: iq_mpc/figure10, "),
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
        (["iql_td_mpc/table2", "--seeds", "0-4"], "--seeds '0-4'; whole numbers are needed"),
        (["iql_td_mpc/table2", "--set", "manager=3"], "--set manager=3; name a setting below it"),
        (["iql_td_mpc/table2", "--set", "num_updates=150"], "num_updates = 150 is not a multiple of updates_per_call"),
    ],
)
def test_a_mistake_is_one_line(wmrl: Wmrl, arguments: list[str], message: str) -> None:
    outcome = wmrl("sweep", *arguments)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.ray
def test_in_a_job_the_variables_that_the_job_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a driver whose runtime environment names a variable of its job's again."""
    compat = pytest.importorskip("wmrl_ray.rllib.compat")
    job = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2", "X": "1"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(compat, "init", lambda **arguments: started.append(arguments))
    on_ray(tmp_path, None, TuneSpec())
    assert started[0]["runtime_env"] == {"env_vars": {"MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    on_ray(tmp_path, None, TuneSpec())
    assert started[1]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "1"


def test_a_file_in_the_place_of_the_folder_is_one_line(wmrl: Wmrl, study: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    outcome = wmrl("sweep", study, "--no-ray", "--out", tmp_path / "taken")
    assert outcome.code == 2 and f"File exists: {tmp_path / 'taken'}" in outcome.err and outcome.err.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_train_refuses_a_study_and_does_not_list_any(wmrl: Wmrl, study: Path) -> None:
    for name in ("iql_td_mpc/table2", str(study)):
        outcome = wmrl("train", name)
        assert outcome.code == 2 and f"start it with: wmrl sweep {name}" in outcome.err and outcome.err.count("\n") == 1
    assert not {name.rpartition("/")[2] for name in available_studies()} & available().keys()
    with pytest.raises(ConfigError, match="there are: ") as caught:
        read_source("tabel2")
    assert "iql_td_mpc" not in str(caught.value)


def test_what_a_study_includes_is_merged_below_it(tmp_path: Path) -> None:
    write(tmp_path / "_base.yaml", {"seeds": [0, 1], "run": {"batch_size": 8, "agent": {"lr": 1}}, "datasets": {"a": {}}})
    file = write(tmp_path / "x.yaml", {"include": "_base.yaml", "table": "t", "seeds": [5], "run": {"agent": {"tau": 2}}})
    assert read_study(str(file)).values == {
        "table": "t",
        "seeds": [5],
        "run": {"batch_size": 8, "agent": {"lr": 1, "tau": 2}},
        "datasets": {"a": {}},
    }
    write(file, {"include": "none.yaml", "table": "t"})
    with pytest.raises(ConfigError, match="include = 'none.yaml'; there is no such file beside it"):
        read_study(str(file))


def test_a_terminal_shows_what_runs_what_ended_and_the_scores(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "data", seeds=[0, 1], columns=["bc"])
    console = Console(width=100, file=io.StringIO(), record=True)
    panel = SweepPanel(plan, console)
    panel.begin(6, 2)
    panel.progress("plane/bc-baseline-s0", 2, 4)
    console.print(panel.render())
    panel.end(Job("plane/manager-s0", ""), Outcome("failed", "out of [memory]"))
    scores = iter([10.0, 30.0])
    good = [(c, Outcome("finished", score=next(scores))) for c in plan.cells if c.variant == "baseline"]
    waiting = [(c, Outcome("waiting", "its Manager failed")) for c in plan.cells if c.variant == "intents"]
    panel.summary([*good, *waiting])
    text = console.export_text()
    assert "test tiny  0 of 6 runs ended" in text and "2 of 4" in text and "2 cells have finished already" in text
    assert "failed   plane/manager-s0  out of [memory]" in text
    row = next(line for line in text.splitlines() if line.startswith("plane "))
    assert row.split() == ["plane", "20.0", "(2)", "waiting"]
    assert text.count("its Manager failed") == 1
    assert scores_table(good, "t").row_count == 1


def test_scores_and_returns_are_never_averaged_together(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "data", seeds=[0, 1], columns=["bc"], variants={"baseline": {}})
    entry = {}
    for name, outcomes in {
        "returns": [Outcome("finished", episode_return=4.0), Outcome("finished", episode_return=6.0)],
        "mixed": [Outcome("finished", score=90.0, episode_return=4.0), Outcome("finished", episode_return=6.0)],
    }.items():
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(scores_table(list(zip(plan.cells, outcomes, strict=True)), "t"))
        entry[name] = console.export_text().splitlines()[-1].split()[1:]
    assert entry == {"returns": ["5.0", "return", "(2)"], "mixed": ["5.0", "return", "(2)"]}


@pytest.mark.parametrize("option", [("--num-cpus", "2"), ("--gpus-per-run", "0.5"), ("--max-failures", "1")])
def test_what_has_no_effect_without_ray_is_refused(wmrl: Wmrl, option: tuple[str, str]) -> None:
    outcome = wmrl("sweep", "iql_td_mpc/table1", "--no-ray", *option)
    assert outcome.code == 2
    assert f"{' '.join(option)} has no effect with --no-ray" in outcome.err


def test_a_terminal_shows_a_plan_with_its_reasons_below(tmp_path: Path) -> None:
    datasets = {"gone": {"uri": "gone-v0"}, **tiny_values(tmp_path)["datasets"]}
    console = Console(width=160, file=io.StringIO(), record=True)
    show_plan(tiny_plan(tmp_path, datasets=datasets, columns=["bc"]), False, console)
    text = console.export_text()
    assert "blocked, see 1" in text and "dataset 'gone-v0' is not on this machine" in text
    assert "4 cells, 2 of them ready, with 1 Managers before them" in text
