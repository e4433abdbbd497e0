"""Studies: YAML -> cells. What the shipped tables of the IQL-TD-MPC paper hold, and what is refused."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.studies import tiny_plan, tiny_values
from wmrl_ray.cli.configs import available_studies, read_source, read_study
from wmrl_ray.cli.experts import default_config
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents import AGENTS
from wmrl_ray.data.makers import MAKERS
from wmrl_ray.data.makers.experts import expert_dataset_id
from wmrl_ray.run.config import RunConfig
from wmrl_ray.study import Cell, Plan, Study, expand

WORKERS = {"awac", "bc", "dt", "iql", "td3_bc", "cql"}


def study(name: str) -> Study:
    return from_dict(Study, read_study(f"iql_td_mpc/{name}").values)


@cache
def plan(name: str, stand_ins: bool = False) -> Plan:
    """With every dataset there."""
    return expand(study(name), stand_ins=stand_ins, is_here=lambda uri: True)


def config(name: str, row: str, column: str, variant: str) -> dict[str, Any]:
    found = [c for c in plan(name).cells if c.key == (row, column, variant, 0)]
    assert len(found) == 1 and found[0].config is not None
    return found[0].config


@pytest.mark.parametrize(
    ("table", "cells", "rows", "columns", "variants"),
    [
        ("table1", 350, 14, {"iql", "tt", "tap", "tdmpc", "iql_tdmpc"}, {"flat"}),
        ("table2", 840, 14, WORKERS, {"baseline", "intents"}),
        ("table3", 280, 7, {"awac", "bc", "iql", "td3_bc"}, {"baseline", "random"}),
    ],
)
def test_a_table_has_the_papers_cells_and_no_others(
    table: str, cells: int, rows: int, columns: set[str], variants: set[str]
) -> None:
    found = plan(table).cells
    assert (plan(table).paper, plan(table).table) == ("iql_td_mpc", table)
    assert len(found) == cells == len({c.run for c in found}) == len({c.key for c in found})
    assert len({c.row for c in found}) == rows
    assert ({c.column for c in found}, {c.variant for c in found}, {c.seed for c in found}) == (
        columns,
        variants,
        {0, 1, 2, 3, 4},
    )


def test_every_column_is_an_algorithm_or_says_that_it_is_not_implemented() -> None:
    missing = {c.column: c.blocked for c in plan("table1").cells if c.column not in AGENTS}
    assert missing.keys() == {"tt", "tap"}
    assert all("not implemented" in str(reason) and "paper" in str(reason) for reason in missing.values())
    assert not any(c.blocked for c in plan("table1").cells if c.column in AGENTS)


def test_one_manager_serves_all_workers_of_a_dataset_and_seed() -> None:
    workers = [c for c in plan("table2").cells if c.variant == "intents"]
    assert Counter(Counter(c.manager for c in workers).values()) == {6: 70}
    assert set(plan("table2").managers) == {c.manager for c in workers}
    for cell in workers:
        manager = plan("table2").managers[str(cell.manager)]
        assert (manager["dataset"], manager["seed"]) == (cell.dataset, cell.seed)
    assert not any(c.manager for c in plan("table2").cells if c.variant == "baseline")


def test_the_papers_numbers_of_updates_and_episodes_and_its_k_and_h() -> None:
    row = "antmaze-large-play-v2"
    assert config("table1", row, "iql_tdmpc", "flat")["num_updates"] == 1_000_000
    assert config("table2", row, "bc", "baseline")["num_updates"] == 500_000
    assert config("table2", row, "bc", "intents")["num_updates"] == 200_000
    manager = plan("table2").managers[f"{row}/manager-s3"]
    assert (manager["num_updates"], manager["agent"]["skip"], manager["agent"]["plan"]["horizon"]) == (300_000, 8, 4)
    everything = [c.config for table in ("table1", "table2", "table3") for c in plan(table).cells if c.config]
    assert {(c["eval_episodes"], c["eval_every"]) for c in everything} == {(100, 0)}
    assert {c["batch_size"] for c in everything if c["algorithm"] != "dt"} == {256}


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ("antmaze-umaze-v2", "iql", {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0}),
        ("maze2d-large-v1", "iql", {"expectile": 0.7, "beta": 3.0, "reward_shift": 0.0}),
        ("antmaze-ultra-play-v0", "awac", {"temperature": 0.1, "reward_shift": -1.0}),
        ("halfcheetah-medium-v2", "awac", {"temperature": 0.3333, "reward_shift": 0.0}),
        ("antmaze-medium-play-v2", "cql", {"lagrange": False, "clip_difference": None, "actor_lr": 3e-5, "reward_shift": -1.0}),
        ("maze2d-umaze-v1", "cql", {"lagrange": True, "action_gap": 5.0, "conservative_coef": 10.0}),
        ("halfcheetah-medium-v2", "dt", {"lr": 8e-4, "reward_scale": 0.001, "target_return": 12000.0}),
        ("antmaze-umaze-v2", "dt", {"lr": 1e-4, "reward_scale": 1.0, "target_return": 1.0}),
        ("antmaze-umaze-v2", "td3_bc", {"alpha": 2.5, "reward_shift": -1.0}),
    ],
)
def test_settings_are_those_of_the_datasets_family(row: str, column: str, expected: dict[str, Any]) -> None:
    for variant in ("baseline", "intents"):
        agent = config("table2", row, column, variant)["agent"]
        assert {key: agent[key] for key in expected} == expected


def test_tables_two_and_three_share_their_baselines() -> None:
    second = {c.run: c.config for c in plan("table2").cells}
    third = {c.run: c.config for c in plan("table3").cells if c.variant == "baseline"}
    assert len(third) == 140
    assert all(second[run] == settings for run, settings in third.items())


def test_random_vectors_have_the_size_of_intents_and_need_no_manager() -> None:
    cells = [c for c in plan("table3").cells if c.variant == "random"]
    latent = plan("table2").managers["antmaze-umaze-v2/manager-s0"]["agent"]["model"]["latent_dim"]
    assert {(c.random_dim, c.manager) for c in cells} == {(latent, None)}
    assert plan("table3").managers == {}


def test_a_stand_in_is_one_of_our_makers_datasets() -> None:
    cells = plan("table2", stand_ins=True).cells
    made = {maker.dataset_id for maker in MAKERS.values()}
    assert {c.row for c in cells if c.dataset not in made} == {c.row for c in cells if c.row.startswith("halfcheetah")}
    assert all("no stand-in" in str(c.blocked) for c in cells if c.dataset not in made)
    assert not any(c.blocked for c in cells if c.dataset in made)
    assert len({c.dataset for c in cells if c.dataset in made}) == 11


@pytest.mark.parametrize(
    ("row", "stand_ins", "parts"),
    [
        ("maze2d-umaze-v1", True, ["wmrl data make pointmaze-umaze"]),
        ("antmaze-ultra-diverse-v0", True, ["wmrl data make antmaze-ultra-diverse"]),
        (
            "maze2d-umaze-v1",
            False,
            [
                "wmrl data import FILE d4rl/maze2d-umaze-v1 --env ENV --ref-min 23.85 --ref-max 161.86",
                "minari download D4RL/pointmaze/umaze-v2",
                "--stand-ins",
            ],
        ),
        ("halfcheetah-medium-v2", False, ["--env HalfCheetah-v5 --ref-min -280.178953 --ref-max 12135"]),
        ("antmaze-ultra-play-v0", False, ["TAP's fork of D4RL", "get_dataset()"]),
    ],
)
def test_an_absent_dataset_says_on_one_line_how_to_get_it(row: str, stand_ins: bool, parts: list[str]) -> None:
    absent = expand(study("table2"), stand_ins=stand_ins, is_here=lambda uri: False)
    reasons = {str(c.blocked) for c in absent.cells if c.row == row}
    assert len(reasons) == 1 and absent.managers == {}
    reason = reasons.pop()
    assert "\n" not in reason and "not on this machine" in reason
    assert all(part in reason for part in parts), reason


def test_k_and_h_multiply_the_intents_and_show_in_the_names() -> None:
    cells = plan("k_and_h").cells
    assert len(cells) == 100 and len(plan("k_and_h").managers) == 90 and plan("k_and_h").table == "table2"
    own = [c for c in cells if c.variant in ("baseline", "intents")]
    assert len(own) == 20  # k = 8, H = 4: the folders of Table II
    assert {c.run for c in own} < {c.run for c in plan("table2").cells}
    assert {c.manager for c in own if c.manager} < plan("table2").managers.keys()
    cell = next(c for c in cells if c.run == "maze2d-large-v1/bc-intents-skip16-horizon2-s4")
    assert (cell.variant, cell.manager) == ("intents-skip16-horizon2", "maze2d-large-v1/manager-skip16-horizon2-s4")
    agent = plan("k_and_h").managers[str(cell.manager)]["agent"]
    assert (agent["skip"], agent["plan"]["horizon"], agent["plan"]["num_samples"]) == (16, 2, 0)


def test_only_picks_rows_columns_and_variants() -> None:
    def keys(*patterns: str) -> set[tuple[Any, ...]]:
        return {cell.key[:3] for cell in plan("table2").select(patterns).cells}

    assert keys("maze2d-large-v1/bc") == {("maze2d-large-v1", "bc", "baseline"), ("maze2d-large-v1", "bc", "intents")}
    assert len(keys("*/*/intents")) == 14 * 6
    assert len(keys("antmaze-*/bc/baseline", "*/dt/baseline")) == 8 + 14
    assert plan("table2").select(["*/*/baseline"]).managers == {}
    with pytest.raises(ConfigError, match=r"'bc' .* matches no cell; rows: antmaze-umaze-v2.*columns: .*variants: baseline"):
        keys("bc")


def test_overrides_are_for_every_run_or_for_one_algorithm(tmp_path: Path) -> None:
    values = from_dict(Study, tiny_values(tmp_path))
    made = expand(values, overrides={"num_updates": 8, "manager": {"num_updates": 6}, "bc": {"agent": {"lr": 0.5}}}, seeds=[7])
    assert {c.config["num_updates"] for c in made.cells if c.config} == {8}
    assert {name: c["num_updates"] for name, c in made.managers.items()} == {"plane/manager-s7": 6}
    assert {c.column: c.config["agent"]["lr"] for c in made.cells if c.config} == {"bc": 0.5, "td3_bc": 3e-4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed' \(did you mean 'seeds'\?\)"),
        ({"run": {"num_update": 3}}, r"plane/bc-baseline-s0: unknown key 'num_update' \(did you mean 'num_updates'\?\)"),
        ({"algorithms": {"bc": {"run": {"agent": {"lrr": 1}}}}}, r"plane/bc-.*unknown key 'agent.lrr' \(did you mean 'lr'\?\)"),
        ({"algorithms": {"bcc": {}}}, r"plane/bcc-.*unknown algorithm 'bcc' \(did you mean 'bc'\?\)"),
        ({"algorithms": {"bc": {"family": {}}}}, r"unknown key 'algorithms.bc.family' \(did you mean 'families'\?\)"),
        ({"algorithms": {"bc": {"families": {"gim": {}}}}}, "families of bc: unknown 'gim'"),
        ({"rows": ["plain"]}, r"rows: unknown 'plain' \(did you mean 'plane'\?\)"),
        ({"columns": ["td3"]}, "columns: unknown 'td3'"),
        ({"variants": {"intent": {}}}, r"variants: unknown 'intent' \(did you mean 'intents'\?\)"),
        ({"run": {"seed": 3}}, "seed = 3; the study's rows, columns and seeds decide it"),
        ({"manager": None}, "need settings of a Manager"),
        ({"grid": {"agent.skip": [1]}}, r"plane/bc-baseline-skip1.*unknown key 'agent.skip'"),
        ({"grid": {"manager.agent.skip": [1]}, "variants": {"baseline": {}}}, "there is no variant 'intents'"),
        ({"grid": {"seed": [1]}}, "seeds are an axis of their own"),
        ({"grid": {"manager.agent.skp": [1]}}, r"plane/manager-s0: unknown key 'agent.skp' \(did you mean 'skip'\?\)"),
        ({"seeds": [-1]}, "none may be negative"),
        ({"seeds": []}, r"seeds = \[\]; name at least one"),
        ({"seeds": [0, 1, 0]}, r"seeds = \[0, 1, 0\]; one of them is there twice"),
        ({"rows": []}, r"rows = \[\]; name at least one"),
        ({"rows": ["plane", "plane"]}, "rows = .*; one of them is there twice"),
        ({"columns": []}, r"columns = \[\]; name at least one"),
        ({"columns": ["bc", "td3_bc", "bc"]}, "columns = .*; one of them is there twice"),
        ({"grid": {"manager.agent.skip": []}}, r"manager.agent.skip = \[\]; name at least one"),
        ({"grid": {"manager.agent.skip": [2, 2]}}, r"manager.agent.skip = \[2, 2\]; one of them is there twice"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_plan(tmp_path, **changes)


def test_a_study_record_has_what_the_report_reads() -> None:
    cell = Cell("row", "uri", "bc", "intents", 1, "row/bc-intents-s1", {"algorithm": "bc"}, manager="row/manager-s1")
    assert cell.record == {
        "row": "row",
        "dataset": "uri",
        "column": "bc",
        "variant": "intents",
        "seed": 1,
        "run": "row/bc-intents-s1",
        "manager": "row/manager-s1",
        "blocked": None,
        "point": {},
    }


def test_a_plan_of_any_shipped_study_loads_no_ray() -> None:
    code = (
        "import sys\nfrom wmrl_ray.cli.configs import read_study\nfrom wmrl_ray.config import from_dict\n"
        "from wmrl_ray.study import Study, expand\n"
        f"for name in {sorted(available_studies())!r}:\n    expand(from_dict(Study, read_study(name).values))\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def iq_mpc_config(row: str, column: str) -> dict[str, Any]:
    """Of a run of the paper's locomotion, manipulation or visual tasks, resolved."""
    values = read_study("iq_mpc/table7").values | {"rows": [row], "columns": [column], "seeds": [0]}
    (cell,) = expand(from_dict(Study, values), is_here=lambda uri: True).cells
    assert cell.config is not None
    return cell.config


V0 = {"hopper-hop", "walker-run", "humanoid-walk", "walker-run-visual", "walker-walk-visual"}


@pytest.mark.parametrize("row", read_study("iq_mpc/table7").values["datasets"])
def test_the_baseline_of_iq_mpc_has_the_public_codes_loss_for_each_task(row: str) -> None:
    found, ours = iq_mpc_config(row, "iq_sac"), iq_mpc_config(row, "iq_mpc")
    assert found["agent"]["objective"] == ("v0" if row in V0 else "value")
    assert found["agent"]["temperature"] == (1.0 if row == "humanoid-walk" else 0.01)
    assert found["online"]["seed_steps"] == 1280
    assert ours["online"] == found["online"] | {"seed_steps": None}  # as many demonstrations, and as large a replay
    assert (ours["num_updates"], ours["eval_episodes"]) == (found["num_updates"], found["eval_episodes"])


def test_table_7_of_iq_mpc_has_its_rows_losses() -> None:
    cells = expand(from_dict(Study, read_study("iq_mpc/table7").values), is_here=lambda uri: True).cells
    losses = {cell.row: cell.config["agent"]["objective"] for cell in cells if cell.column == "iq_sac" and cell.config}
    assert losses == {"hopper-hop": "v0", "cheetah-run": "value", "walker-run": "v0", "quadruped-run": "value"}


@pytest.mark.parametrize(("name", "objective"), [("dmc-walker-walk-iq-sac", "v0"), ("dmc-cartpole-swingup-iq-sac", "value")])
def test_the_single_runs_of_the_baseline_are_its_too(name: str, objective: str) -> None:
    config = from_dict(RunConfig, read_source(name).values).resolved()
    assert (config.agent["objective"], config.online.seed_steps, config.online.num_demonstrations) == (objective, 1280, 100)
    ours = from_dict(RunConfig, read_source(name.replace("iq-sac", "iq-mpc")).values)
    assert (ours.dataset, ours.env, ours.env_config) == (config.dataset, config.env, config.env_config)


@pytest.mark.parametrize(
    ("figure", "table", "runs"),
    [("figure3", "table1", 36), ("figure4", "table7", 3), ("figure11", "table5", 18), ("figure13", "table6", 6)],
)
def test_a_figure_of_iq_mpc_shares_its_runs_with_the_table_beside_it(figure: str, table: str, runs: int) -> None:
    first, second = (
        {cell.run: cell.config for cell in expand(from_dict(Study, read_study(f"iq_mpc/{name}").values)).cells}
        for name in (figure, table)
    )
    assert len(first) == runs and first.items() <= second.items()


def test_mabes_table_names_every_cell_and_runs_the_systems_that_exist() -> None:
    found = expand(from_dict(Study, read_study("mabe/table1").values), is_here=lambda uri: True).cells
    robots = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"}
    rows = {f"{robot}-{kind}-v0": env for robot, env in robots.items() for kind in ("medium", "medium-replay", "medium-expert")}
    assert len(found) == 9 * 7 * 3 == len({c.run for c in found})
    assert {c.row for c in found} == set(rows)
    columns = {"bc", "mabe", "mopo", "morel", "sac", "cql", "brac_v"}
    assert ({c.column for c in found}, {c.seed for c in found}) == (columns, {0, 1, 2})
    assert {c.column for c in found if not c.blocked} == columns & AGENTS.keys()
    assert all("is not implemented here; the paper's own numbers" in str(c.blocked) for c in found if c.blocked)
    for cell in found:
        if cell.config is None:
            continue
        assert (cell.config["env"], cell.config["dataset"]) == (rows[cell.row], f"d4rl/{cell.row}")
        # CORL's settings of gym, as those of the other paper's table
        assert cell.config["agent"] == config("table2", "halfcheetah-medium-v2", cell.column, "baseline")["agent"]
        assert (cell.config["num_updates"], cell.config["batch_size"]) == (1_000_000, 256)


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        ("hopper-medium-replay-v0", "--env Hopper-v5 --ref-min -20.272305 --ref-max 3234.3"),
        ("walker2d-medium-expert-v0", "--env Walker2d-v5 --ref-min 1.629008 --ref-max 4592.3"),
        ("halfcheetah-medium-v0", "--env HalfCheetah-v5 --ref-min -280.178953 --ref-max 12135"),
    ],
)
def test_the_data_of_mabes_table_are_d4rls_to_import_and_have_no_stand_ins(row: str, scores: str) -> None:
    values = from_dict(Study, read_study("mabe/table1").values)
    for stand_ins, reason in (
        (
            False,
            f"dataset 'd4rl/{row}' is not on this machine; D4RL writes its HDF5 file (gym.make('{row}').get_dataset()), then: "
            f"wmrl data import FILE d4rl/{row} {scores}",
        ),
        (True, f"there is no stand-in for {row}; get the original, and sweep without --stand-ins"),
    ):
        cells = expand(values, stand_ins=stand_ins, is_here=lambda uri: False).cells
        assert {cell.blocked for cell in cells if cell.row == row and cell.column == "bc"} == {reason}


IQ_MPC = sorted(name for name in available_studies() if name.startswith("iq_mpc/"))


@pytest.mark.parametrize("name", IQ_MPC)
def test_the_command_for_absent_demonstrations_makes_the_dataset_that_the_row_wants(name: str) -> None:
    cells = expand(from_dict(Study, read_study(name).values), is_here=lambda uri: False, seeds=[0]).cells
    cells = [cell for cell in cells if cell.column in AGENTS]
    assert cells
    for cell in cells:
        found = re.search(r"make it: (wmrl data make .*?) \(", str(cell.blocked))
        assert found, cell.blocked
        *start, of_expert = shlex.split(found[1].removesuffix(" --pixels"))
        assert start == ["wmrl", "data", "make"] and of_expert.startswith("expert:"), found[1]
        task, pixels = of_expert.removeprefix("expert:"), found[1].endswith(" --pixels")
        assert expert_dataset_id(task, of_images=pixels) == cell.dataset
        assert cell.config is not None and cell.config["env"] == task
        trained_in = default_config(task, pixels).values.get("env_config", {})
        assert trained_in.get("obs") == cell.config["env_config"].get("obs")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        (
            "iq_mpc/figure2",
            "hopper-hop",
            "hopper-hop has no stand-in and needs none: you make its dataset yourself (wmrl data make expert:dmc/hopper-hop); "
            "sweep without --stand-ins",
        ),
        (
            "iq_mpc/figure5",
            "walker-run-visual",
            "walker-run-visual has no stand-in and needs none: you make its dataset yourself "
            "(wmrl data make expert:dmc/walker-run --pixels); sweep without --stand-ins",
        ),
        (
            "iql_td_mpc/table1",
            "halfcheetah-medium-v2",
            "there is no stand-in for halfcheetah-medium-v2; get the original, and sweep without --stand-ins",
        ),
    ],
)
def test_a_row_without_a_stand_in_says_whether_there_is_an_original_to_get(name: str, row: str, reason: str) -> None:
    cells = expand(from_dict(Study, read_study(name).values), stand_ins=True, is_here=lambda uri: True, seeds=[0]).cells
    assert {cell.blocked for cell in cells if cell.row == row and cell.column in AGENTS} == {reason}
