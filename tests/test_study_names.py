"""A study's settings stay each cell's own, and what its values name lies below the sweep's folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.rllib import fakes
from tests.studies import run_sweep, tiny_values
from wmrl_ray.cli.configs import overridden, read_study
from wmrl_ray.config import ConfigError, from_dict, merged, with_key
from wmrl_ray.data.files import below, slug
from wmrl_ray.study import Plan, Study, expand
from wmrl_ray.sweep import in_process

TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merging_writes_into_nothing_and_shares_nothing_that_can_be_written_into(below: Any, first: Any, second: Any) -> None:
    read = copy.deepcopy((below, first, second))
    try:
        found = merged(below, first, second)
    except ConfigError:  # a mapping below what is none
        found = {}
    assert (below, first, second) == read
    _spoil({key: value for key, value in found.items() if key in first | second})
    assert (first, second) == read[1:]


def _spoil(tree: Any) -> None:
    """Writes into every mapping and list of it."""
    for value in list(tree.values()) if isinstance(tree, dict) else []:
        _spoil(value)
    tree.update(spoilt=1) if isinstance(tree, dict) else tree.append(1) if isinstance(tree, list) else None


def test_the_last_layer_counts_and_mappings_join() -> None:
    layers = {"a": {"x": 1}, "b": 1}, {"a": {"y": 2}}, {"a.x": 3, "c.d": [4]}
    assert merged(*layers) == {"a": {"x": 3, "y": 2}, "b": 1, "c": {"d": [4]}}
    assert with_key({"a": 1}, "b.c", 2) == {"a": 1, "b": {"c": 2}}


def shared(folder: Path, **changes: Any) -> Study:
    """Two algorithms on a row with arguments of its environment, which all cells read from one mapping."""
    values = tiny_values(folder, variants={"baseline": {}, "intents": {}}, **changes)
    values["datasets"]["plane"]["env_config"] = {"shared": 0}
    values["run"]["env_config"] = {"of_run": 0}
    return from_dict(Study, values)


def env_configs(plan: Plan) -> dict[str, Any]:
    return {cell.run: cell.config["env_config"] for cell in plan.cells if cell.config}


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({}, {"bc": {"env_config": {"shared": 1, "own": 2}}}),
        ({}, {"manager": {"env_config": {"shared": 1}}}),
        ({"algorithms": {"bc": {"run": {"env_config": {"shared": 1}}}, "td3_bc": {}}}, {}),
        ({"algorithms": {"bc": {"families": {"": {"env_config": {"shared": 1}}}}, "td3_bc": {}}}, {}),
        ({"grid": {"env_config.shared": [1, 0]}}, {}),
        ({"grid": {"manager.env_config.shared": [1, 0]}}, {}),
        ({"search": {"env_config.shared": {"choice": [1, 2]}}, "tune": {"num_samples": 4}}, {}),
    ],
)
def test_no_setting_of_one_cell_reaches_another(tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Each cell's settings are what they are in a study in which it is alone, and what was read is as it was read."""
    study = shared(tmp_path, seeds=[0, 1], **changes)
    before = copy.deepcopy(study), copy.deepcopy(overrides)
    plan = expand(study, overrides=overrides)
    assert (study, overrides) == before
    for cell in plan.cells:
        alone = shared(tmp_path, **changes, columns=[cell.column], seeds=[cell.seed])
        (same,) = [other for other in expand(alone, overrides=copy.deepcopy(overrides)).cells if other.run == cell.run]
        assert same == cell
    assert expand(study, overrides=overrides) == plan


def test_a_search_writes_into_no_other_trial(tmp_path: Path) -> None:
    tune = {"scheduler": "asha", "num_samples": 3}
    space = {"env_config.shared": {"choice": [1, 2]}}
    values = tiny_values(tmp_path, variants={"baseline": {}}, search=space, tune=tune, columns=["bc"])
    values["run"] |= {"eval_every": 2, "env_config": {"shared": 0}}
    (search,) = expand(from_dict(Study, values)).searches
    before = copy.deepcopy(search)
    assert [search.config({"env_config.shared": n}, 0)["env_config"]["shared"] for n in (5, 6)] == [5, 6]
    assert search == before


def test_a_set_for_one_algorithm_stays_there() -> None:
    values = overridden({}, ["iq_mpc.env_config.p_tremble=0.1"])
    study = from_dict(Study, read_study("iq_mpc/figure2").values)
    found = {
        c.column: c.config["env_config"] for c in expand(study, overrides=values, is_here=lambda uri: True).cells if c.config
    }
    assert {column for column, config in found.items() if "p_tremble" in config} == {"iq_mpc"} < found.keys()


def test_every_seed_of_figure_15_has_folders_of_its_own() -> None:
    def runs(name: str) -> set[str]:
        study = from_dict(Study, read_study(f"iq_mpc/{name}").values)
        return {cell.run for cell in expand(study, is_here=lambda uri: True).cells}

    tremble = runs("figure15")
    assert len(tremble) == 2 * len({run.rpartition("-s")[2] for run in tremble})
    assert all("-p_tremble0.0" in run for run in tremble) and not tremble & runs("figure2")


# -- names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["lr0.001", "skip16", "use_planningTrue", "x1e-05", "a+b=c", "-1"])
def test_a_plain_value_is_its_own_slug(text: str) -> None:
    assert slug(text) == text


@given(st.text(max_size=400))
@example("a" * 300)
@example("..")
def test_a_slug_is_one_short_part_of_a_path(text: str) -> None:
    name = slug(text, 80)
    assert name and not name.startswith(".") and "/" not in name and len(name.encode()) <= 80 and name.isascii()
    assert slug(name, 80) == name


@given(st.lists(st.text(max_size=300), min_size=2, max_size=2, unique=True))
def test_two_values_have_two_slugs(pair: list[str]) -> None:
    if all(slug(text) != text for text in pair):
        assert slug(pair[0]) != slug(pair[1])


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", ".", "a/.."])
def test_what_leads_out_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="leads out of"):
        below(tmp_path / "out", name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leads out of"):
        below(tmp_path / "out", "link/x")
    assert below(tmp_path / "out", "a/../b/c") == tmp_path / "out/a/../b/c"


ODD = [
    "models/a",
    "../../../../escaped/x",
    "x/../../../../../../tmp/absolutely/x",
    "a" * 300,
    "ü",
    ["list", 1],
    "a b",
    "-rf",
    ".",
]


def test_every_run_of_odd_values_lies_below_out(tmp_path: Path) -> None:
    values = tiny_values(tmp_path / "in", variants={"baseline": {}}, columns=["bc"], grid={"agent.precision": ["float32"]})
    values["run"] |= {"num_updates": 2, "env_config": {}}
    values["grid"] = {"track": [[], ["tensorboard"]]}
    plan = expand(from_dict(Study, values | {"grid": {"env_config.tag": ODD}}))
    assert len({cell.run for cell in plan.cells}) == len(ODD)
    out = (tmp_path / "sub" / "out").resolve()
    for cell in plan.cells:
        assert below(out, cell.run).resolve().parent == out / "plane"
        assert len(cell.run.rpartition("/")[2].encode()) < 200
    outcomes, _ = run_sweep(expand(from_dict(Study, values)), out, in_process)
    assert {outcome.state for outcome in outcomes.values()} == {"finished"}
    assert {path.parent.name for path in tmp_path.rglob("config.json")} == {run.rpartition("/")[2] for run in outcomes}
    assert {path.parents[2] for path in tmp_path.rglob("config.json")} == {out}


def test_a_sweep_asks_again_where_its_folders_lead(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plane").symlink_to(tmp_path / "away", target_is_directory=True)
    plan = expand(from_dict(Study, tiny_values(tmp_path / "in", variants={"baseline": {}}, columns=["bc"])))
    with pytest.raises(ConfigError, match="'plane/bc-baseline-s0' leads out of"):
        run_sweep(plan, tmp_path / "out", in_process)
    assert not (tmp_path / "away").exists()


@pytest.mark.parametrize("key", ["paper", "table", "datasets", "algorithms"])
def test_a_long_name_is_one_line_and_no_traceback(tmp_path: Path, key: str) -> None:
    values, name = tiny_values(tmp_path), "ü" * 130
    values[key] = {name: {}} if key == "algorithms" else {name: {"env": fakes.PLANE}} if key == "datasets" else name
    with pytest.raises(ConfigError, match="has 260 bytes; folders are named after it: at most 80"):
        expand(from_dict(Study, values))


def test_one_value_in_two_spellings_is_refused(tmp_path: Path) -> None:
    values = tiny_values(tmp_path, variants={"baseline": {}}, columns=["bc"], grid={"agent.lr": [0.1, "0.1"]})
    with pytest.raises(ConfigError, match=r"plane/bc-baseline-lr0.1-s0: 2 cells have this name"):
        expand(from_dict(Study, values))


# -- stand-ins --------------------------------------------------------------------------------------------------------------


def test_a_stand_in_made_with_fewer_steps_is_not_ready_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    metadata = tmp_path / "wmrl/pointmaze/umaze-v0/data/metadata.json"
    metadata.parent.mkdir(parents=True)
    study = from_dict(Study, read_study("iql_td_mpc/table2").values)

    def reasons(steps: int) -> set[str | None]:
        metadata.write_text(json.dumps({"total_steps": steps}))
        return {cell.blocked for cell in expand(study, stand_ins=True).cells if cell.dataset == "wmrl/pointmaze/umaze-v0"}

    assert reasons(1_000_000) == {None}
    (reason,) = reasons(50_000)
    assert "has 50,000 steps here, and a stand-in of that id has 1,000,000" in str(reason)
    assert "wmrl data make pointmaze-umaze --overwrite" in str(reason)
