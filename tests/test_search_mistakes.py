"""Mistakes in a study that searches: each is named on one line before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.studies import tiny_values
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.study import Study, expand

LR = {"agent.lr": {"loguniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"agent.lr": {"loguniforme": [1, 2]}}}, r"unknown kind 'loguniforme' \(did you mean 'loguniform'\?\)"),
        ({"search": {"agent.lr": {"uniform": [1]}}}, "uniform takes 2 numbers"),
        ({"search": {"agent.lr": {"uniform": [2, 1]}}}, "the first must be below the second"),
        ({"search": {"agent.lr": {"loguniform": [0, 1]}}}, "a logarithm needs positive bounds"),
        ({"search": {"agent.lr": {"randint": [0.5, 1]}}}, "whole numbers are needed"),
        ({"search": {"agent.lr": {"quniform": [1, 10, 4]}}}, "both bounds must be multiples of the step 4"),
        ({"search": {"agent.lr": {"choice": [1, 1]}}}, "one of them is there twice"),
        ({"search": {"agent.lrr": {"uniform": [1, 2]}}}, r"plane/bc-baseline-t.*unknown key 'agent.lrr'"),
        ({"search": LR, "grid": {"agent.lr": [0.1]}}, "agent.lr: in grid and in search"),
        ({"search": {"seed": {"randint": [0, 9]}}}, "seeds are an axis of their own"),
        ({"tune": {"num_samples": 3}}, "tune draws from search"),
        ({"tune": {"schedular": "asha"}}, r"unknown key 'tune.schedular' \(did you mean 'scheduler'\?\)"),
        (
            {"search": LR, "tune": {"scheduler": "ashe"}},
            r"tune.scheduler = 'ashe' \(did you mean 'asha'\?\); allowed: 'asha', 'pbt'",
        ),
        ({"search": LR, "tune": {"scheduler": "pbt", "searcher": "optuna", "num_samples": 4}}, "a population starts at random"),
        (
            {"search": LR, "tune": {"scheduler": "pbt", "num_samples": 4, "max_concurrent": 3}},
            "members take turns by themselves",
        ),
        ({"search": LR, "tune": {"scheduler": "asha", "num_samples": 4}}, "eval_every = 0; tune.scheduler judges runs"),
        (
            {"search": {"agent.lr": {"uniform": [-1, 1]}}, "tune": {"searcher": "optuna"}, "run": {"eval_every": 2}},
            r"plane/bc-baseline, {'agent.lr': -1}: agent: lr = -1.0; it must be positive",
        ),
        ({"search": LR, "tune": {"num_samples": 4, "max_concurrent": 2}}, "max_concurrent = 2 without scheduler or searcher"),
        (
            {"search": LR, "tune": {"scheduler": "asha", "metric": "eval/return_men"}},
            r"tune: metric = 'eval/return_men' \(did you mean 'eval/return_mean'\?\)",
        ),
        ({"run": {"num_learners": 2}}, "num_learners = 2; a run of a sweep is one process"),
        ({"tune": {"gpus_per_run": 1.5}}, r"gpus_per_run = 1.5; a share of one GPU \(up to 1\), or a whole number"),
        (
            {"search": LR, "tune": {"scheduler": "asha", "num_samples": 4, "grace_period": 2}, "run": {"eval_every": 2}},
            "tune.grace_period = 2 with 2 evaluations in a run: no trial would be stopped early",
        ),
        (
            {
                "search": LR,
                "tune": {"scheduler": "pbt", "num_samples": 4, "perturbation_interval": 2},
                "run": {"eval_every": 2},
            },
            "tune.perturbation_interval = 2 with 2 evaluations in a run: no member would ever take another's state",
        ),
        ({"table": "a/b"}, "name 'a/b' has a slash in it"),
        ({"algorithms": {"bc": None}}, "algorithms.bc is empty; write bc: {} for its defaults"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = tiny_values(tmp_path, variants={"baseline": {}}, columns=["bc"])
    values |= {**changes, "run": {**values["run"], **changes.get("run", {})}}
    with pytest.raises(ConfigError, match=message):
        expand(from_dict(Study, values))
