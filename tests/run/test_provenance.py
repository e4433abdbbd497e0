"""Which code made which part of a run."""

from __future__ import annotations

import pytest

from wmrl_ray.run import provenance
from wmrl_ray.run.provenance import changed, describe_environment, with_session

FIRST = {
    "update": 0,
    "started": "2026-01-01T00:00:00Z",
    "command": "wmrl train",
    "git_revision": "abc",
    "packages": {"torch": "1"},
}


def test_what_differs_by_nature_is_no_change() -> None:
    assert changed(FIRST, {**FIRST, "update": 7, "started": "2026-01-02T00:00:00Z", "command": "wmrl train --resume"}) == []
    other = {**FIRST, "git_revision": "def", "packages": {"torch": "1", "ray": "2"}}
    assert changed(FIRST, other) == ["git_revision", "packages.ray"] and changed(other, FIRST) == [
        "git_revision",
        "packages.ray",
    ]


def test_a_session_is_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = with_session([], 0)
    assert mine == [{"update": 0, **describe_environment(), "started": mine[0]["started"]}] and mine[0]["packages"]["torch"]
    assert with_session(mine, 5) == mine  # built again, after the loss of an actor
    monkeypatch.setattr(provenance, "_PROCESS", "another")
    again = with_session(mine, 5)
    assert again[0] == mine[0] and [one["update"] for one in again] == [0, 5] and not changed(*again)
    monkeypatch.setattr(provenance, "_git_revision", lambda: "def")
    monkeypatch.setattr(provenance, "_PROCESS", mine[0]["process"])
    assert changed(*with_session(mine, 5)) == ["git_revision"]
