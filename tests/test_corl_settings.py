"""The settings of CORL's algorithms in the tables of the IQL-TD-MPC paper, written out once more, from CORL's own files.

CORL: github.com/corl-team/CORL at eeeeef2, where `configs/offline/A/F/*.yaml` has one file for each algorithm and dataset, over
the defaults of `algorithms/offline/A.py`. CQL is that of 57e4037, of the paper's time, whose antmaze files are of the v0 data.
The numbers of updates are the paper's own: CORL trains DT for 100,000, all others for 1,000,000.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from tests.test_study import WORKERS, plan
from wmrl_ray.core.agents import agent_config

ROWS = {
    "antmaze": {
        *(f"antmaze-umaze{kind}-v2" for kind in ("", "-diverse")),
        *(f"antmaze-{size}-{kind}-v2" for size in ("medium", "large") for kind in ("play", "diverse")),
        *(f"antmaze-ultra-{kind}-v0" for kind in ("play", "diverse")),  # no files in CORL: as the other ant mazes
    },
    "maze2d": {f"maze2d-{size}-v1" for size in ("umaze", "medium", "large")},
    # Why only these: in CORL DT's target is by robot and hopper's IQL by dataset; rows of others need entries of their own
    "gym": {f"halfcheetah-{kind}-v2" for kind in ("medium", "medium-replay", "medium-expert")},
}
UPDATES = {
    ("table1", "flat"): 1_000_000,
    ("table2", "baseline"): 500_000,
    ("table2", "intents"): 200_000,
    ("table3", "baseline"): 500_000,
    ("table3", "random"): 500_000,
}

# In all families. Of ours alone, at what CORL does: largest_weight, log_std_min and log_std_max (constants in its code),
# average_over_padding, grad_clip None, and critic_layers and actor_layers (in the networks of 57e4037).
ALWAYS: dict[str, dict[str, Any]] = {
    # algorithms/offline/iql.py; the cosine is over max_timesteps
    "iql": {
        "hidden_dim": 256,
        "lr": 3e-4,
        "lr_steps": 1_000_000,
        "gamma": 0.99,
        "tau": 0.005,
        "largest_weight": 100.0,
        "deterministic_actor": False,
        "log_std_min": -20.0,
        "log_std_max": 2.0,
        "normalize_obs": True,
        "reward_scale": 1.0,
    },
    # algorithms/offline/awac.py
    "awac": {
        "hidden_dim": 256,
        "lr": 3e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "largest_weight": 100.0,
        "log_std_min": -20.0,
        "log_std_max": 2.0,
        "normalize_obs": True,
        "reward_scale": 1.0,
    },
    # algorithms/offline/td3_bc.py
    "td3_bc": {
        "hidden_dim": 256,
        "lr": 3e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "alpha": 2.5,
        "policy_noise": 0.2,
        "noise_clip": 0.5,
        "policy_every": 2,
        "normalize_obs": True,
        "reward_scale": 1.0,
    },
    # algorithms/offline/any_percent_bc.py, with frac 1.0 of configs/offline/bc: all of the data
    "bc": {"hidden_dim": 256, "lr": 3e-4, "normalize_obs": True, "grad_clip": None},
    # algorithms/offline/dt.py
    "dt": {
        "sequence": 20,
        "embedding_dim": 128,
        "num_layers": 3,
        "num_heads": 1,
        "episode_len": 1000,
        "dropout": 0.1,
        "weight_decay": 1e-4,
        "warmup": 10_000,
        "grad_clip": 0.25,
        "average_over_padding": True,
        "normalize_obs": True,
    },
    # algorithms/offline/cql.py of 57e4037. Its action gap is -1 where there is no multiplier to learn, and then not read
    "cql": {
        "hidden_dim": 256,
        "actor_layers": 3,
        "critic_layers": 3,
        "lr": 3e-4,
        "actor_lr": 3e-5,
        "gamma": 0.99,
        "tau": 0.005,
        "conservative_coef": 10.0,
        "num_actions": 10,
        "action_gap": 5.0,
        "clip_difference": None,
        "max_target_backup": False,
        "reward_scale": 1.0,
        "log_std_min": -20.0,
        "log_std_max": 2.0,
        "normalize_obs": True,
        "grad_clip": None,
    },
}

# By family: batch size, and the agent's settings besides those above. normalize_reward of CORL is r - 1 on antmaze.
BY_FAMILY: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("antmaze", "iql"): (256, {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0}),  # configs/offline/iql/antmaze/*_v2.yaml
    ("maze2d", "iql"): (256, {"expectile": 0.7, "beta": 3.0, "reward_shift": 0.0}),  # iql/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "iql"): (256, {"expectile": 0.7, "beta": 3.0, "reward_shift": 0.0}),  # iql/halfcheetah/medium*_v2.yaml
    ("antmaze", "awac"): (256, {"temperature": 0.1, "reward_shift": -1.0}),  # awac/antmaze/*_v2.yaml
    ("maze2d", "awac"): (256, {"temperature": 0.1, "reward_shift": 0.0}),  # awac/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "awac"): (256, {"temperature": 0.3333, "reward_shift": 0.0}),  # awac/halfcheetah/medium*_v2.yaml
    ("antmaze", "td3_bc"): (256, {"reward_shift": -1.0}),  # td3_bc/antmaze/*_v2.yaml
    ("maze2d", "td3_bc"): (256, {"reward_shift": 0.0}),  # td3_bc/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "td3_bc"): (256, {"reward_shift": 0.0}),  # td3_bc/halfcheetah/medium*_v2.yaml
    ("antmaze", "bc"): (256, {}),  # bc/antmaze/*_v2.yaml
    ("maze2d", "bc"): (256, {}),  # bc/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "bc"): (256, {}),  # bc/halfcheetah/medium*_v2.yaml
    # The first of each file's target_returns
    ("antmaze", "dt"): (64, {"lr": 1e-4, "reward_scale": 1.0, "target_return": 1.0}),  # dt/antmaze/*_v2.yaml
    ("maze2d", "dt"): (
        4096,
        {"lr": 8e-4, "reward_scale": 1.0, "target_return": 280.0},
    ),  # dt/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "dt"): (4096, {"lr": 8e-4, "reward_scale": 0.001, "target_return": 12000.0}),  # dt/halfcheetah/medium*_v2.yaml
    ("antmaze", "cql"): (256, {"lagrange": False, "reward_shift": -1.0}),  # 57e4037: cql/antmaze/*_v0.yaml
    ("maze2d", "cql"): (256, {"lagrange": True, "reward_shift": 0.0}),  # 57e4037: cql/maze2d/{umaze,medium,large}_v1.yaml
    ("gym", "cql"): (256, {"lagrange": False, "reward_shift": 0.0}),  # 57e4037: cql/halfcheetah/medium*_v2.yaml
}

# Without a family, for runs outside the tables: the defaults of CORL's code, but AWAC's temperature, which is 1.0 there and in
# none of its files of mazes and gym (0.1 and 0.3333).
DEFAULTS: dict[str, dict[str, Any]] = {
    "iql": {"expectile": 0.7, "beta": 3.0, "reward_shift": 0.0},
    "awac": {"temperature": 0.1, "reward_shift": 0.0},
    "td3_bc": {"reward_shift": 0.0},
    "bc": {},
    "dt": {"lr": 1e-4, "reward_scale": 0.001, "target_return": 12000.0},
    "cql": {"lagrange": False, "reward_shift": 0.0},
}

# What the Manager and IQL-TD-MPC take from CORL's IQL (configs/offline/iql). On antmaze in units a tenth as large, rewards of
# (r - 1) / 10: beta and the planner's temperature, factors of values in an exponent, are ten times CORL's 10 and our 0.5.
PLANNERS: dict[str, dict[str, Any]] = {
    "antmaze": {"expectile": 0.9, "beta": 100.0, "reward_scale": 0.1, "reward_shift": -0.1, "temperature": 5.0},
    "maze2d": {"expectile": 0.7, "beta": 3.0, "reward_scale": 1.0, "reward_shift": 0.0, "temperature": 0.5},
    "gym": {"expectile": 0.7, "beta": 3.0, "reward_scale": 1.0, "reward_shift": 0.0, "temperature": 0.5},
}


def cells(algorithm: str, family: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Table, variant and resolved settings of every cell, in all tables."""
    tables = [(table, cell) for table in ("table1", "table2", "table3") for cell in plan(table).cells]
    return [(t, c.variant, c.config) for t, c in tables if c.column == algorithm and c.row in ROWS[family] and c.config]


def of_plans(agent: dict[str, Any]) -> dict[str, Any]:
    settings = agent | {"temperature": agent["plan"]["temperature"]}
    return {name: settings[name] for name in PLANNERS["gym"]}


@pytest.mark.parametrize("table", ["table1", "table2", "table3"])
def test_the_tables_have_no_rows_but_those_whose_settings_are_here(table: str) -> None:
    assert {cell.row for cell in plan(table).cells} <= set().union(*ROWS.values())


@pytest.mark.parametrize(("family", "algorithm"), BY_FAMILY)
def test_every_cell_of_an_algorithm_of_corl_has_corls_settings(family: str, algorithm: str) -> None:
    batch_size, settings = BY_FAMILY[family, algorithm]
    expected = ALWAYS[algorithm] | settings | {"precision": "float32", "compile": "off"}
    found = cells(algorithm, family)
    assert {(table, variant) for table, variant, _ in found} >= {("table2", "baseline"), ("table2", "intents")}
    for table, variant, config in found:
        assert config["agent"] == expected, (table, variant, config["dataset"])
        assert config["batch_size"] == batch_size, (table, variant, config["dataset"])


@pytest.mark.parametrize("algorithm", DEFAULTS)
def test_an_algorithm_of_corl_has_corls_settings_by_default(algorithm: str) -> None:
    expected = ALWAYS[algorithm] | DEFAULTS[algorithm] | {"precision": "float32", "compile": "off"}
    assert asdict(agent_config(algorithm, {})) == expected


@pytest.mark.parametrize("algorithm", [*sorted(WORKERS), "tdmpc", "iql_tdmpc"])
def test_every_cell_has_the_updates_of_its_table_and_variant(algorithm: str) -> None:
    found = [cell for family in ROWS for cell in cells(algorithm, family)]
    assert found
    assert {(table, variant): config["num_updates"] for table, variant, config in found}.items() <= UPDATES.items()
    assert len({(table, variant, config["num_updates"]) for table, variant, config in found}) == len({c[:2] for c in found})


@pytest.mark.parametrize("family", PLANNERS)
def test_a_manager_has_iqls_settings_of_its_family(family: str) -> None:
    managers = [m for name, m in plan("table2").managers.items() if name.split("/")[0] in ROWS[family]]
    assert len(managers) == 5 * len(ROWS[family])
    for config in managers:
        assert of_plans(config["agent"]) == PLANNERS[family], config["dataset"]
        assert (config["num_updates"], config["batch_size"]) == (300_000, 256)


@pytest.mark.parametrize("family", PLANNERS)
def test_iql_tdmpc_has_iqls_settings_of_its_family(family: str) -> None:
    found = cells("iql_tdmpc", family)
    assert len(found) == 5 * len(ROWS[family])
    for _, _, config in found:
        assert of_plans(config["agent"]) == PLANNERS[family], config["dataset"]
        assert config["batch_size"] == 256
