"""Spaces of settings: what is drawn from them."""

from __future__ import annotations

import pytest

from wmrl_ray.space import corners, draw, make_space, point_name

LR = {"agent.lr": {"loguniform": [1e-4, 1e-2]}}
KINDS = {
    "a": {"uniform": [0, 1]},
    "b": {"loguniform": ["1e-4", 1]},
    "c": {"quniform": [1, 2, 0.25]},
    "d": {"randint": [3, 6]},
    "e": {"lograndint": [1, 1000]},
    "f": {"choice": ["x", "y", None]},
}


def test_draws_are_of_their_kind_and_the_same_again() -> None:
    space = make_space(KINDS)
    points = draw(space, 400, seed=1)
    assert points == draw(space, 400, seed=1) and points[:10] == draw(space, 10, seed=1)
    assert points[:10] != draw(space, 10, seed=2)
    columns = {key: [point[key] for point in points] for key in KINDS}
    assert all(0 <= a < 1 for a in columns["a"]) and abs(sum(columns["a"]) / 400 - 0.5) < 0.05
    assert sum(b < 1e-2 for b in columns["b"]) / 400 == pytest.approx(0.5, abs=0.08)  # half of the decades
    assert set(columns["c"]) == {1, 1.25, 1.5, 1.75, 2} and set(columns["d"]) == {3, 4, 5}
    assert min(columns["e"]) >= 1 and max(columns["e"]) <= 999 and all(isinstance(e, int) for e in columns["e"])
    assert set(columns["f"]) == {"x", "y", None}


def test_another_setting_changes_nothing_of_what_one_draws() -> None:
    alone, both = draw(make_space(LR), 5, 0), draw(make_space({**LR, "batch_size": {"randint": [8, 64]}}), 5, 0)
    assert [point["agent.lr"] for point in both] == [point["agent.lr"] for point in alone]


def test_every_end_is_in_a_corner_and_what_leaves_the_space_is_clipped() -> None:
    space = make_space(KINDS)
    found = corners(space)
    assert {point["d"] for point in found} == {3, 5} and {point["f"] for point in found} == {"x", "y", None}
    assert [space["d"].clip(v) for v in (2.4, 4.8, 7)] == [3, 4, 5] and space["c"].clip(1.3) == 1.25
    assert point_name({"x": 1, "y": 2}) == point_name({"y": 2, "x": 1}) != point_name({"x": 1, "y": 3})
