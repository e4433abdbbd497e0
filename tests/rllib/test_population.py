"""What the searches' schedulers and searchers decide, driven by trials that train nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers.pbt import _explore

from tests.studies import tiny_plan, tiny_values
from wmrl_ray.rllib import search as module
from wmrl_ray.search import Search

LR = {"agent.lr": {"loguniform": [1e-4, 1e-1]}}


def search_of(folder: Path, space: dict[str, Any] = LR, num_updates: int = 8, **tune: Any) -> Search:
    run = {**tiny_values(folder)["run"], "eval_every": 2, "num_updates": num_updates}
    plan = tiny_plan(folder, variants={"baseline": {}}, columns=["bc"], run=run, search=space, tune=tune)
    return plan.searches[0]


@pytest.mark.parametrize("choices", [[8, 16, 32], ["adam", "sgd"], [True, False], [None, 0.5]])
def test_a_population_explores_a_choice_among_its_choices(tmp_path: Path, choices: list[Any]) -> None:
    setting = "agent.x"
    mutations = {setting: module._mutation(module.Distribution("choice", choices))}
    random.seed(0)
    points = [{setting: choices[0]}]
    for _ in range(60):
        points.append(_explore(points[-1], mutations, 0.25, (1.2, 0.8), None)[0])
    assert {repr(point[setting]) for point in points} == set(map(repr, choices))
