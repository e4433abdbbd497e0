"""A paper's table with ours in it: the paper's values, which runs count, significance, and what must never be mixed."""

from __future__ import annotations

import json

import pytest

from tests.report.studies import D4RL, OTHER_ROW, OURS, ROW, planned, report, write_study
from tests.report.test_report import Page
from wmrl_ray.config import ConfigError
from wmrl_ray.report import write_report
from wmrl_ray.report.study import find_studies, read_study
from wmrl_ray.report.tables import as_markdown, as_text


def cell_of(study, column="bc", row=ROW):
    (found,) = [row_ for row_ in study["rows"] if row_["name"] == row]
    return found["cells"][list(study["columns"]).index(column)]


def notes_of(study, cell):
    return [study["notes"][i - 1] for i in cell["notes"]]


def test_an_improvement_is_green_with_the_papers_value_in_the_same_cell(pair):
    page, study = pair([1.0, 2.0, 3.0], [60.0, 64.0, 65.0])
    cell = cell_of(study)
    assert cell["arms"]["baseline"]["scores"] == [1.0, 2.0, 3.0]
    assert (cell["arms"]["baseline"]["mean"], cell["arms"]["intents"]["mean"]) == (2.0, 63.0)
    assert (cell["delta"], cell["verdict"], cell["paper"]) == (61.0, "better", {"baseline": 3, "ours": 64})
    assert cell["p"] < 0.05
    assert '<span class="better">2.0 → 63.0 (+61.0) ▲</span>' in page
    assert '<span class="paper">3 → 64 (+61)</span>' in page


def test_a_degradation_is_red(pair):
    page, study = pair([60.0, 64.0, 65.0], [1.0, 2.0, 3.0])
    assert cell_of(study)["verdict"] == "worse"
    assert '<span class="worse">63.0 → 2.0 (−61.0) ▼</span>' in page


def test_what_is_not_significant_has_no_colour(pair):
    page, study = pair([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])  # p = 0.055; Student's test would call it significant
    assert (cell_of(study)["verdict"], round(cell_of(study)["p"], 3)) == ("same", 0.055)
    assert '<span class="plain">2.0 → 6.0 (+4.0)</span>' in page and "3 seeds, p = 0.055" in page


@pytest.mark.parametrize(("baseline", "ours", "said"), [
    ([1.0], [60.0], "1 seed, one seed: no test"),
    ([1.0, 2.0, 3.0], [60.0], "3 | 1 seeds, one seed: no test"),
    ([0.0, 0.0], [0.0, 0.0], "2 seeds, no spread: no test"),
    ([0.0, 0.0], [50.0, 50.0], "2 seeds, no spread: no test"),
])  # fmt: skip
def test_what_cannot_be_tested_says_so(pair, baseline, ours, said):
    page, study = pair(baseline, ours)
    cell = cell_of(study)
    assert (cell["p"], cell["verdict"]) == (None, None)
    assert said in page and 'class="better"' not in page


def test_the_ablation_compares_random_vectors(pair):
    row = "antmaze-large-play-v2"
    page, study = pair([54.0, 55.0, 56.0], [24.0, 25.0, 26.0], column="iql", table="table3", other="random", row=row)
    cell = cell_of(study, "iql", row)
    assert (study["title"], cell["delta"], cell["verdict"]) == ("Table III", -30.0, "worse")
    assert '<span class="paper">54 → 25 (−29)</span>' in page


def test_table_1_shows_mean_and_deviation_and_what_is_near_the_best(tmp_path, write_run):
    cells = []
    for column, scores in {"iql": (70.0, 80.0), "tdmpc": (76.0, 76.0), "iql_tdmpc": (60.0,)}.items():
        for seed, score in enumerate(scores):
            write_run(f"{column}-{seed}", column, seed, (score,), trajectories=False)
            cells.append(planned(column, "flat", seed, f"{column}-{seed}"))
    write_study(tmp_path / "runs", cells, "table1")
    page, study = report(tmp_path)
    assert [cell_of(study, column)["bold"] for column in ("iql", "tdmpc", "iql_tdmpc")] == [False, True, False]
    assert '<span class="bold">76.0 ± 0.0</span>' in page and "75.0 ± 7.1" in page and ">60.0</span>" in page
    assert '<span class="paper">37.7 ± 2.0</span>' in page  # no difference to the paper: another scale
    assert cell_of(study, "iql")["delta_to_paper"] is None


def test_on_d4rls_own_data_ours_is_compared_with_the_paper(tmp_path, write_run):
    write_run("iql-0", "iql", 0, (40.0,), card=D4RL, trajectories=False)
    write_study(tmp_path / "runs", [planned("iql", "flat", 0, "iql-0")], "table1", stand_ins=False)
    page, study = report(tmp_path)
    assert cell_of(study, "iql")["delta_to_paper"] == pytest.approx(2.3)
    assert "37.7 ± 2.0 (ours +2.3)" in page
    assert "Stand-in data." not in page


def test_stand_ins_are_named_at_the_top_of_the_section(pair):
    page, study = pair([1.0, 2.0], [3.0, 4.0])
    assert study["stand_ins"] is True
    assert page.index("Table II of") < page.index("Stand-in data.</strong>") < page.index("Main experiment")
    for text in (as_text(study), as_markdown(study)):
        assert text.upper().index("STAND-IN DATA.") < text.index("Main experiment")
    assert f"stand-in: {OURS}" in page


def test_an_original_that_cannot_be_had_is_not_called_a_stand_in(tmp_path, write_run):
    write_run("bc-0", trajectories=False)
    blocked = planned(
        row="halfcheetah-medium-v2", run="x", blocked="there is no stand-in", dataset="d4rl/halfcheetah-medium-v2"
    )
    write_study(tmp_path / "runs", [planned(), blocked])
    page, study = report(tmp_path)
    assert {row["name"]: row["datasets"] for row in study["rows"] if row["datasets"]} == {ROW: [OURS]}
    assert f"stand-in: {OURS}" in page and "d4rl/halfcheetah-medium-v2" not in page


@pytest.mark.parametrize("stand_ins", [True, False])
def test_a_run_on_the_other_kind_of_data_is_left_out(tmp_path, write_run, stand_ins):
    write_run("a", "bc", 0, (10.0,), card=D4RL, trajectories=False)
    write_run("b", "bc", 1, (90.0,), trajectories=False)
    write_study(tmp_path / "runs", [planned(run="a"), planned(seed=1, run="b")], stand_ins=stand_ins)
    _, study = report(tmp_path)
    cell = cell_of(study)
    assert cell["arms"]["baseline"]["scores"] == [90.0 if stand_ins else 10.0]
    (note,) = [note for note in notes_of(study, cell) if note.startswith("left out")]
    assert ("is not a stand-in" in note) == stand_ins


def test_seeds_on_different_scales_are_not_averaged(tmp_path, write_run):
    write_run("a", "bc", 0, (10.0,), trajectories=False)
    write_run("b", "bc", 1, (90.0,), card={"name": "other", "ref_max_score": 500.0, "sha256": "cd" * 32}, trajectories=False)
    write_study(tmp_path / "runs", [planned(run="a"), planned(seed=1, run="b")])
    _, study = report(tmp_path)
    assert cell_of(study)["arms"]["baseline"]["mean"] is None
    assert any("different scales" in note for note in notes_of(study, cell_of(study)))


def test_what_was_not_run_is_a_dash_with_its_reason_below(tmp_path, write_run):
    write_run("bc-0", "bc", 0, (10.0,), trajectories=False)
    write_run("dt-0", "dt", 0, (), planned=100, trajectories=False)
    cells = [
        planned(),
        planned(variant="intents", run="later"),
        planned("dt", run="dt-0"),
        planned("cql", row=OTHER_ROW, run="x/cql", blocked="no <dataset>: wmrl data make antmaze-ultra-play"),
    ]
    write_study(tmp_path / "runs", cells)
    page, study = report(tmp_path)
    assert notes_of(study, cell_of(study)) == ["not run yet"]
    assert set(notes_of(study, cell_of(study, "dt"))) == {"no evaluation yet", "not part of this study"}
    reasons = notes_of(study, cell_of(study, "cql", OTHER_ROW))
    assert "no <dataset>: wmrl data make antmaze-ultra-play" in reasons
    number = 1 + study["notes"].index("not run yet")
    assert f'<span class="plain">10.0 → –<sup>{number}</sup></span>' in page
    assert "<li>no &lt;dataset&gt;: wmrl data make antmaze-ultra-play</li>" in page
    assert f"10.0 → –[{number}]" in as_text(study) and f"[{number}] not run yet" in as_text(study)
    assert f"10.0 → – \\[{number}\\]" in as_markdown(study)
    assert (study["num_runs"], study["num_planned"]) == (1, 4)


def test_an_unfinished_run_is_marked_and_not_tested(tmp_path, write_run):
    for seed in range(3):
        write_run(f"b{seed}", "bc", seed, (1.0, 1.0 + seed), trajectories=False)
        write_run(f"i{seed}", "bc", seed, (9.0, 60.0 + seed), planned=None if seed else 500, trajectories=False)
    cells = [planned(seed=seed, run=f"b{seed}") for seed in range(3)]
    cells += [planned(variant="intents", seed=seed, run=f"i{seed}") for seed in range(3)]
    write_study(tmp_path / "runs", cells)
    page, study = report(tmp_path)
    cell = cell_of(study)
    assert cell["arms"]["intents"]["unfinished"] == [0]
    assert (cell["p"], cell["verdict"]) == (None, None)
    assert "2.0 → 61.0 (+59.0) †" in page and "3 seeds, unfinished: no test" in page


@pytest.mark.parametrize("missing", ["baseline", "intents"])
def test_an_arm_whose_seeds_are_not_all_there_is_not_tested(tmp_path, write_run, missing):
    cells = []
    for variant, scores in (("baseline", (1.0, 2.0, 3.0)), ("intents", (60.0, 61.0, 62.0))):
        for seed, score in enumerate(scores):
            cells.append(planned(variant=variant, seed=seed, run=f"{variant}-{seed}"))
            if (variant, seed) != (missing, 1):
                write_run(f"{variant}-{seed}", "bc", seed, (score,), trajectories=False)
    write_study(tmp_path / "runs", cells)
    page, study = report(tmp_path)
    assert (cell_of(study)["verdict"], cell_of(study)["why_no_test"]) == (None, "incomplete")
    assert 'class="better"' not in page and "2 of 3" in page and "incomplete: no test" in page


def test_workers_of_other_intents_than_those_beside_them_are_noted(tmp_path, write_run):
    write_run("manager-0", "manager", 0, (), planned=100, trajectories=False)
    write_run("manager-1", "manager", 1, (), planned=900, trajectories=False)
    cells = []
    for column, seed, sha in (("bc", 0, "aa"), ("bc", 1, "bb"), ("iql", 0, "aa"), ("iql", 1, "bb"), ("cql", 0, "cc")):
        card = {"sha256": sha * 32, "obs_dim": 4 + (column == "iql" and seed)}
        write_run(f"{column}-{seed}", column, seed, (1.0,), card=card, trajectories=False)
        cells.append(planned(column, "intents", seed, f"{column}-{seed}") | {"manager": f"manager-{seed}"})
    write_study(tmp_path / "runs", cells)
    _, study = report(tmp_path)
    longer = "the Managers of its seeds were trained with different settings, or for longer"
    mixed = "Workers of the same seed were trained on different datasets: with other intents, or other data"
    dims = "its seeds have vectors of different sizes behind their observations"
    found = {c: set(notes_of(study, cell_of(study, c))) - {"not part of this study"} for c in ("bc", "iql", "cql")}
    assert found == {"bc": {longer, mixed}, "iql": {longer, mixed, dims}, "cql": {mixed}}


def test_a_run_that_is_not_what_the_study_says_is_left_out(tmp_path, write_run):
    write_run("bc-0", "iql", 0, trajectories=False)
    write_study(tmp_path / "runs", [planned()])
    _, study = report(tmp_path)
    assert cell_of(study)["arms"]["baseline"]["mean"] is None
    assert "left out: bc-0 is iql with seed 0, not what study.json says" in study["notes"]


def test_seeds_that_differ_in_more_than_the_seed_are_noted(tmp_path, write_run):
    write_run("a", "bc", 0, (1.0, 2.0), trajectories=False)
    write_run("b", "bc", 1, (2.0,), trajectories=False, agent={"horizon": 5, "lr": 1.0})
    write_study(tmp_path / "runs", [planned(run="a"), planned(seed=1, run="b")])
    _, study = report(tmp_path)
    assert {
        "its seeds were run with different settings",
        "its seeds were evaluated after different numbers of updates",
    } <= set(notes_of(study, cell_of(study)))


def test_a_study_is_found_in_a_given_folder_or_below_it_once(tmp_path, write_run):
    run = write_run("study/bc-0", trajectories=False)
    file = write_study(run.parent, [planned()])
    assert find_studies([tmp_path, run.parent, tmp_path / "runs"]) == [file]
    assert find_studies([run]) == []
    _, numbers = write_report([run], tmp_path / "report.html")
    assert json.loads(numbers.read_text())["studies"] == []


def test_a_folder_that_two_tables_share_shows_both(tmp_path, write_run):
    write_run("bc-0", "bc", 0, (10.0,), trajectories=False)
    second = write_study(tmp_path / "runs", [planned(row="antmaze-large-play-v2", variant="random", run="x")], "table3")
    second.rename(second.with_name("study-table3.json"))
    file = write_study(tmp_path / "runs", [planned()])
    (tmp_path / "runs" / "study-table2.json").write_text(file.read_text())
    _, numbers = write_report([tmp_path / "runs"], tmp_path / "report.html")
    assert [study["title"] for study in json.loads(numbers.read_text())["studies"]] == ["Table II", "Table III"]


def test_every_point_of_a_grid_is_a_table_against_the_same_baseline(tmp_path, write_run):
    for name, score in (("base", 10.0), ("paper", 50.0), ("other", 30.0)):
        write_run(name, "bc", 0, (score,), trajectories=False)
    cells = [planned(run="base"), planned(variant="intents", run="paper"), planned(variant="intents-skip4", run="other")]
    write_study(tmp_path / "runs", cells)
    html, numbers = write_report([tmp_path / "runs"], tmp_path / "report.html")
    studies = json.loads(numbers.read_text())["studies"]
    assert [(study["point"], cell_of(study)["delta"]) for study in studies] == [(None, 40.0), ("skip4", 20.0)]
    assert ["not of this point" in study["caption"] for study in studies] == [False, True]  # the paper has no values for it
    assert [study["num_planned"] for study in studies] == [2, 2]
    assert html.read_text().count("(arXiv:2306.00867), with skip4</h2>") == 1


def test_a_study_that_the_paper_has_no_table_of_is_reported_without_one(tmp_path, write_run):
    run = write_run("bc-0", "bc", 0, (10.0,), trajectories=False)
    file = write_study(run.parent, [planned(variant="intents-skip4", run="bc-0")], "k_and_h")
    html, path = write_report([run.parent], tmp_path / "report.html")
    numbers = json.loads(path.read_text())
    assert numbers["studies"] == []
    (warning,) = [warning for warning in numbers["warnings"] if str(file) in warning]
    assert "table 'k_and_h' is none of the paper's" in warning and "runs/bc-0" in html.read_text()


@pytest.mark.parametrize(("changes", "said"), [
    ({"paper": "test", "table": "tiny"}, "no tables of a paper 'test'"),
    ({"cells": [planned(), planned(row="kitchen-mixed-v0")]}, "row 'kitchen-mixed-v0'"),
    ({"cells": [planned(), planned(column="iql_tdmpc")]}, "column 'iql_tdmpc'"),
    ({"cells": [planned(), planned(variant="flat")]}, "variant 'flat'"),
])  # fmt: skip
def test_a_study_beyond_the_paper_is_a_warning_and_the_tables_beside_it_are_shown(tmp_path, write_run, changes, said):
    write_run("paper/bc-0", "bc", 0, (10.0,), trajectories=False)
    write_study(tmp_path / "runs" / "paper", [planned()])
    write_run("ours/bc-0", "bc", 1, (20.0,), trajectories=False)
    file = write_study(tmp_path / "runs" / "ours", **{"cells": [planned()]} | changes)
    html, path = write_report([tmp_path / "runs"], tmp_path / "report.html")
    numbers = json.loads(path.read_text())
    assert [study["path"] for study in numbers["studies"]] == [str(tmp_path / "runs" / "paper" / "study.json")]
    (warning,) = [warning for warning in numbers["warnings"] if warning.startswith(f"{file}: ")]
    assert said in warning and warning.endswith("its runs are in the report without a table")
    assert "ours/bc-0" in html.read_text()


def test_a_damaged_study_is_no_warning(tmp_path, write_run):
    write_run("bc-0", trajectories=False)
    write_study(tmp_path / "runs", [{"row": ROW}], paper="test")
    with pytest.raises(ConfigError, match="a cell has no column"):
        write_report([tmp_path / "runs"], tmp_path / "report.html")


def test_a_cell_may_name_a_run_beside_its_study(tmp_path, write_run):
    write_run("elsewhere/bc-0", "bc", 0, (10.0,), trajectories=False)
    write_run("study/bc-1", "bc", 1, (30.0,), trajectories=False)
    write_study(tmp_path / "runs" / "study", [planned(run="../elsewhere/bc-0"), planned(seed=1, run="bc-1")])
    _, numbers = write_report([tmp_path / "runs" / "study"], tmp_path / "report.html")
    (study,) = json.loads(numbers.read_text())["studies"]
    assert cell_of(study)["arms"]["baseline"]["mean"] == 20.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"schema": "wmrl.study/v9"}, "schema 'wmrl.study/v9'; this version reads 'wmrl.study/v1'"),
    ({"paper": "iql_tdmpc"}, r"did you mean 'iql_td_mpc'.*known: iq_mpc, iql_td_mpc"),
    ({"table": "table4"}, "table 'table4' is none of the paper's .table1, table2, table3."),
    ({"stand_ins": None}, "stand_ins"),
    ({"cells": [planned(row="maze2d-umaze-v2")]}, "row 'maze2d-umaze-v2' .did you mean 'maze2d-umaze-v1'"),
    ({"cells": [planned(column="tt")]}, "column 'tt'"),
    ({"cells": [planned(variant="intent")]}, "variant 'intent' .did you mean 'intents'"),
    ({"cells": [planned(variant="random")]}, "variant 'random'.*the paper's table has baseline, intents"),
    ({"cells": [planned(), planned(run="bc-1")]}, "maze2d-umaze-v1 bc baseline 0 is there twice"),
    ({"cells": [{"row": ROW}]}, "a cell has no column, variant, seed, run"),
    ({"cells": ["bc"]}, "a cell has no row"),
    ({"cells": [planned(row=[ROW])]}, "a cell's row is .'maze2d-umaze-v1'."),
])  # fmt: skip
def test_a_study_that_does_not_fit_the_paper_is_one_line(tmp_path, changes, message):
    file = write_study(tmp_path, **{"cells": [planned()]} | changes)
    with pytest.raises(ConfigError, match=message) as error:
        read_study(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_study_cut_in_half_is_one_line(tmp_path):
    file = write_study(tmp_path, [planned()])
    file.write_text(file.read_text()[:40])
    with pytest.raises(ConfigError, match=r"is damaged .*; start its sweep again, which rewrites it"):
        read_study(file)


def test_the_page_with_a_table_is_well_formed_offline_and_escaped(pair):
    page_text, _ = pair([1.0, 2.0], [3.0, 4.0])
    page = Page()
    page.feed(page_text)
    page.close()
    assert (page.open, page.fetched) == ([], [])


def test_success_rates_and_correlations_stand_beside_the_papers(tmp_path, write_run):
    """IQ-MPC's tables: of Table 1 the success rate, of Table 7 what `wmrl analyse reward` wrote; a figure is named as one."""
    card = {"name": "wmrl/expert/x-v0", "stand_in": None, "ref_min_score": None, "ref_max_score": None}
    for seed, score in enumerate((80.0, 90.0)):
        folder = write_run(f"x/iq_mpc-flat-s{seed}", "iq_mpc", seed, (10.0, score), card=card)
        (folder / "rewards.json").write_text(json.dumps({"pearson": 0.5 + 0.25 * seed, "update": 10_000}))
    about = {"schema": "wmrl.study/v1", "paper": "iq_mpc", "stand_ins": False}
    cell = {"dataset": "wmrl/expert/x-v0", "column": "iq_mpc", "variant": "flat", "manager": None, "blocked": None}
    for table, row in (("table1", "key-turn"), ("table7", "hopper-hop"), ("figure6", "hopper-hop")):
        cells = [{**cell, "row": row, "seed": seed, "run": f"x/iq_mpc-flat-s{seed}"} for seed in (0, 1)]
        (tmp_path / f"runs/study-{table}.json").write_text(json.dumps({**about, "table": table, "cells": cells}))
    (tmp_path / "runs/study.json").write_text((tmp_path / "runs/study-table1.json").read_text())
    page, numbers = write_report([tmp_path / "runs"], tmp_path / "page.html")
    found = json.loads(numbers.read_text())
    assert any("Fig. 6 is a figure" in warning for warning in found["warnings"])
    success, pearson = found["studies"]
    assert "0.85 ± 0.07" in as_text(success, 200) and "0.87 ± 0.03" in as_text(success, 200)
    assert "0.62 ± 0.18" in as_text(pearson, 200) and "0.85 ± 0.07" in page.read_text()
    old = {"pearson": 0.75, "update": 0}  # of a checkpoint before the last evaluation
    mixed = {"pearson": 0.75, "update": 10_000, "random_episodes": 5}
    for other in (old, mixed):
        (tmp_path / "runs/x/iq_mpc-flat-s1/rewards.json").write_text(json.dumps(other))
        _, numbers = write_report([tmp_path / "runs"], tmp_path / "page.html")
        pearson = json.loads(numbers.read_text())["studies"][1]
        assert any("wmrl analyse reward" in note for note in pearson["notes"]) and "0.62 ± 0.18" not in as_text(pearson, 200)
    (tmp_path / "runs/x/iq_mpc-flat-s1/rewards.json").unlink()
    _, numbers = write_report([tmp_path / "runs"], tmp_path / "page.html")
    assert any("wmrl analyse reward" in note for note in json.loads(numbers.read_text())["studies"][1]["notes"])
