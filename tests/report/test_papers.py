"""The papers' own values are those that the papers print."""

import pytest

from wmrl_ray.cli.configs import available_studies, read_study
from wmrl_ray.config import from_dict
from wmrl_ray.report.study import load_paper, split_points, summarize_study
from wmrl_ray.report.study import read_study as read_written
from wmrl_ray.study import Study, expand
from wmrl_ray.sweep_folder import write_study

SUMS = {  # added up over the rows from the printed tables: a digit that is wrong shows here
    "table1": {"iql": 725.1, "tt": 781.2, "tap": 747.2, "tdmpc": 420.1, "iql_tdmpc": 860.7},
    "table2": {"awac": 606.8, "bc": 239.2, "dt": 305.2, "iql": 651, "td3_bc": 521.6, "cql": 429.6},
    "table3": {"awac": 189.8, "bc": 133.2, "iql": 401, "td3_bc": 177.6},
}
SUMS_BEHIND = {  # of the standard deviations; of the values behind the arrow
    "table1": {"iql": 103.61, "tt": 63.7, "tap": 35.3, "tdmpc": 116.21, "iql_tdmpc": 300.2},
    "table2": {"awac": 803, "bc": 736, "dt": 673, "iql": 836, "td3_bc": 749, "cql": 405},
    "table3": {"awac": 185.2, "bc": 137, "iql": 379, "td3_bc": 178.2},
}


@pytest.mark.parametrize(("table", "num_rows", "keys"), [
    ("table1", 14, ("mean", "std")), ("table2", 14, ("baseline", "ours")), ("table3", 7, ("baseline", "ours"))
])  # fmt: skip
def test_the_papers_tables_are_complete_and_add_up(table, num_rows, keys):
    values = load_paper("iql_td_mpc")["tables"][table]
    assert len(values["rows"]) == num_rows
    assert all(list(row) == list(values["columns"]) for row in values["rows"].values())
    assert all(tuple(cell) == keys for row in values["rows"].values() for cell in row.values())
    for key, sums in zip(keys, (SUMS, SUMS_BEHIND), strict=True):
        added = {column: sum(row[column][key] for row in values["rows"].values()) for column in values["columns"]}
        assert added == pytest.approx(sums[table])


def test_single_values_are_as_printed():
    tables = load_paper("iql_td_mpc")["tables"]
    assert tables["table1"]["rows"]["antmaze-medium-play-v2"]["tdmpc"] == {"mean": 1.8, "std": 3.91}
    assert tables["table1"]["rows"]["maze2d-large-v1"]["tap"] == {"mean": -2.1, "std": 0.1}
    assert tables["table2"]["rows"]["maze2d-umaze-v1"]["cql"] == {"baseline": -14, "ours": 7}
    assert tables["table2"]["rows"]["antmaze-medium-play-v2"]["td3_bc"] == {"baseline": 0.2, "ours": 60}
    assert tables["table3"]["rows"]["antmaze-large-play-v2"]["iql"] == {"baseline": 54, "ours": 25}


def test_the_ablation_has_the_main_experiments_baselines():
    main, ablation = (load_paper("iql_td_mpc")["tables"][key]["rows"] for key in ("table2", "table3"))
    for row, cells in ablation.items():
        assert {c: v["baseline"] for c, v in cells.items()} == {c: main[row][c]["baseline"] for c in cells}


def test_iq_mpcs_tables_are_as_printed_and_its_figures_say_that_they_are_only_figures():
    paper = load_paper("iq_mpc")
    tables = paper["tables"]
    assert tables["table1"]["rows"]["object-hold"]["iq_mpc"] == {"mean": 0.96, "std": 0.03}
    assert tables["table5"]["rows"]["pick-cube"]["iq_sac"] == {"mean": 0.61, "std": 0.13}
    assert tables["table6"]["points"]["-gradient_penaltyFalse"]["pick-cube"]["iq_mpc"] == {"mean": 0.51, "std": 0.11}
    sums = {"table1": [0.72, 0.66, 0.68, 2.56], "table5": [1.46, 0.01, 1.68], "table7": [2.81, 3.59]}
    for key, columns in sums.items():
        added = [sum(row[column]["mean"] for row in tables[key]["rows"].values()) for column in tables[key]["columns"]]
        assert added == pytest.approx(columns)
    assert {figure["values"] for figure in paper["figures"].values()} == {"figure only"} and len(paper["figures"]) == 12


def test_mabes_table_is_complete_and_has_the_averages_that_it_prints():
    table = load_paper("mabe")["tables"]["table1"]
    columns = ["bc", "mabe", "mopo", "morel", "sac", "cql", "brac_v"]
    assert list(table["columns"]) == columns and len(table["rows"]) == 9
    assert all(list(row) == columns for row in table["rows"].values())
    means = {column: sum(row[column]["mean"] for row in table["rows"].values()) / 9 for column in columns}
    printed = {"bc": 31.7, "mabe": 77.5, "mopo": 42.1, "morel": 72.9, "sac": 0.4, "cql": 63.9, "brac_v": 35.5}
    rounded = {column: round(mean, 1) for column, mean in means.items()}
    assert rounded == printed | {"bc": 31.9}  # Why: its rows do not give the average that the paper prints for BC
    with_std = {column for row in table["rows"].values() for column, cell in row.items() if cell["std"] is not None}
    assert with_std == {"mabe", "mopo"}
    assert sum(row["mabe"]["std"] for row in table["rows"].values()) == pytest.approx(33.9)
    assert sum(row["mopo"]["std"] for row in table["rows"].values()) == pytest.approx(126.5)
    assert table["rows"]["hopper-medium-expert-v0"]["bc"] == {"mean": 111.9, "std": None}
    assert table["rows"]["walker2d-medium-v0"]["cql"] == {"mean": 79.2, "std": None}


@pytest.mark.parametrize("name", [name for name in available_studies() if "/table" in name])
def test_a_report_has_a_place_for_every_cell_of_a_shipped_table(tmp_path, name):
    plan = expand(from_dict(Study, read_study(name).values), is_here=lambda uri: True, seeds=[0])
    write_study(plan, tmp_path)
    for point in split_points(read_written(tmp_path / "study.json")):
        summary = summarize_study(point, [])
        assert [row["name"] for row in summary["rows"]] == list(dict.fromkeys(cell.row for cell in plan.cells))
        assert set(summary["columns"]) == {cell.column for cell in plan.cells}


# From the papers' captions, not from the files here: what each prints of results, and what else has a number there. (The text
# of Fig. 15 of IQ-MPC is lost: it is that of Appendix E.4, between Fig. 14 of E.3 and Fig. 16 of F.)
RESULTS = {
    "iql_td_mpc": ["table1", "table2", "table3"],
    "iq_mpc": [
        *("table1", "table5", "table6", "table7"),
        *("figure2", "figure3", "figure4", "figure5", "figure6"),
        *("figure10", "figure11", "figure12", "figure13", "figure14", "figure15", "figure16"),
    ],
    "mabe": ["table1"],
}
WITHOUT_RUNS = {
    "iq_mpc": {
        "figure1": "the training workflow, drawn",
        **dict.fromkeys(("figure7", "figure8", "figure9"), "pictures of the tasks"),
        **dict.fromkeys(("table2", "table3", "table4"), "sizes of observations and actions"),
    },
    "mabe": {
        "figure1": "how often each is best in Table 1",
        "figure2": "the method, drawn",
        "figure3": "MABE without parts of it; MABE does not exist here yet",
        "figure4": "MABE with two priors; MABE does not exist here yet",
        "figure5": "the transfer, drawn",
        "figure6": "MABE and MOPO after a transfer; neither exists here yet",
        "table2": "what algorithms are made of",
    },
}
NUMBERED = {"iq_mpc": {"table": 7, "figure": 16}, "mabe": {"table": 2, "figure": 6}}  # the last of each
OURS = {"iql_td_mpc": ["k_and_h"]}  # studies that no paper has


@pytest.mark.parametrize("paper", RESULTS)
def test_every_table_and_figure_of_a_paper_has_a_config_and_the_other_way_round(paper):
    shipped = [name.partition("/")[2] for name in available_studies() if name.startswith(f"{paper}/")]
    assert sorted(shipped) == sorted([*RESULTS[paper], *OURS.get(paper, [])])
    for name in RESULTS[paper]:
        study = read_study(f"{paper}/{name}").values
        assert (study["paper"], study["table"]) == (paper, name)


@pytest.mark.parametrize("paper", RESULTS)
def test_every_table_and_figure_of_a_paper_has_its_values_or_says_that_there_are_none(paper):
    values = load_paper(paper)
    assert values["paper"] == paper
    assert sorted([*values["tables"], *values.get("figures", {})]) == sorted(RESULTS[paper])
    assert not {*RESULTS[paper]} & {*WITHOUT_RUNS.get(paper, {})}


@pytest.mark.parametrize("paper", NUMBERED)
def test_every_number_of_a_papers_tables_and_figures_is_accounted_for(paper):
    numbered = {*RESULTS[paper], *WITHOUT_RUNS[paper]}
    assert numbered == {f"{kind}{i}" for kind, last in NUMBERED[paper].items() for i in range(1, last + 1)}
