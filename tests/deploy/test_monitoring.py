"""The dashboard and the rules ask for what a run exports, and for nothing else."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import ROOT

pytest.importorskip("ray")

from wmrl_ray.rllib.telemetry import TAGS, exported_names

DASHBOARD = ROOT / "deploy" / "grafana" / "wmrl.json"
RULES = ROOT / "deploy" / "prometheus" / "wmrl-rules.yaml"
WORDS = frozenset({"max", "min", "sum", "avg", "by", "and", "or", "unless", "delta", "rate", "on", "label_values", "m"})


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def unknown_names(expression: str) -> set[str]:
    """Names in PromQL that are neither functions, nor our labels, nor metrics that a run exports."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|\$\w+', "", expression)
    return set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - exported_names() - set(TAGS) - WORDS


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_asks_for_metrics_that_we_export(expression: str) -> None:
    assert unknown_names(expression) == set()
    assert any(name in expression for name in exported_names())


def test_a_metric_that_nobody_exports_is_found() -> None:
    assert unknown_names("max by (run) (ray_wmrl_update)") == {"ray_wmrl_update"}
    assert unknown_names('sum by (WorkerId) (ray_wmrl_updates{run="x"})') == {"WorkerId"}


def test_every_exported_metric_is_shown_somewhere() -> None:
    text = " ".join(expressions())
    assert {name for name in exported_names() if not re.search(rf"\b{name}\b", text)} == set()


def test_series_of_dead_processes_do_not_show_twice() -> None:
    for panel in panels():
        for target in panel["targets"]:
            assert target["expr"].startswith("max by (run)"), panel["title"]


def test_panels_have_titles_places_and_the_dashboards_own_datasource() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len({panel["title"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["datasource"] == "${datasource}"
        grid = panel["gridPos"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not cells & own, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        cells |= own


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")
def test_promtool_takes_the_rules_and_refuses_a_broken_one(tmp_path: Any) -> None:
    def check(rules: Any) -> int:
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(rules))
        return subprocess.run(["promtool", "check", "rules", file], capture_output=True, timeout=60).returncode

    rules = yaml.safe_load(RULES.read_text())
    assert check(rules) == 0
    broken = copy.deepcopy(rules)
    broken["groups"][0]["rules"][1]["expr"] += " >"
    assert check(broken) != 0
