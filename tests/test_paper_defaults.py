"""Every default of the papers' agents, against tests/papers: what the paper or the code it builds on has, and where.

A row names the agents (or `run`) that have the setting, the paper's symbol, its value and the place; where ours is another,
that and why. Places are sections, appendices, equations and algorithms of the paper, `code OWNER/NAME` of a public repository
that it builds on, or `decided here`. The algorithms of CORL: test_corl_settings.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import pytest

from tests.test_corl_settings import DEFAULTS
from wmrl_ray.core.agents import AGENTS, agent_config
from wmrl_ray.run.config import RunConfig

PAPERS = {path.stem: json.loads(path.read_text())["settings"] for path in Path(__file__).with_name("papers").glob("*.json")}
PLACE = re.compile(r"(Section [IVX]+|Appendix [A-Z]\.\d|Eq\. \d+|Algorithm \d)(: .+)?|code [\w-]+/[\w-]+|decided here")
ROWS = [row for rows in PAPERS.values() for row in rows]
IN_PAPERS = sorted({agent for row in ROWS for agent in row["agents"]} - {"run"})


def expected(agent: str) -> dict[str, Any]:
    """Setting: our default, by the papers' rows."""
    rows = [row for row in ROWS if agent in row["agents"]]
    return {row["setting"]: row["ours"] if "why" in row else row["value"] for row in rows}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"plan": {"horizon": 3}} -> {"plan.horizon": 3}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize("agent", IN_PAPERS)
def test_every_default_is_the_papers_or_a_deviation_that_is_listed(agent: str) -> None:
    assert flat(asdict(agent_config(agent, {}))) == expected(agent)


def test_a_run_takes_the_papers_batch_size() -> None:
    defaults = {f.name: f.default for f in fields(RunConfig) if f.default is not MISSING}
    assert expected("run").items() <= defaults.items()


def test_every_algorithm_is_in_the_papers_or_in_corl() -> None:
    ours = [name for name, agent in AGENTS.items() if agent.__module__.startswith("wmrl_ray.")]  # tests add their own
    assert sorted([*IN_PAPERS, *DEFAULTS]) == sorted(ours)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_says_where_it_comes_from_once_and_why_ours_is_another(paper: str) -> None:
    seen: set[tuple[str, str]] = set()
    for row in PAPERS[paper]:
        names = {(agent, row["setting"]) for agent in row["agents"]}
        assert PLACE.fullmatch(row["place"]), row
        assert names and not names & seen, row
        assert row.keys() - {"ours", "why"} == {"agents", "setting", "symbol", "value", "place"}, row
        assert row.keys() & {"ours", "why"} in (set(), {"ours", "why"}), row
        assert "why" not in row or (row["why"] and row["ours"] != row["value"]), row
        seen |= names
