"""The `search:` of a study: settings that are drawn instead of listed, and drawn again alike from the same seed.

space = make_space({"agent.lr": {"loguniform": [1e-4, 1e-2]}, "agent.expectile": {"choice": [0.7, 0.9]}})
draw(space, 8, seed=0)   # 8 points; the first 4 of them are those of draw(space, 4, seed=0)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wmrl_ray.config import check, did_you_mean

Point = dict[str, Any]  # dotted setting -> value

# How many numbers each kind takes; None: a list of any length.
KINDS: dict[str, int | None] = {
    "uniform": 2,  # [low, high)
    "loguniform": 2,
    "quniform": 3,  # low, high, step: multiples of the step from low to high, which are multiples too, and both possible
    "randint": 2,  # low to high - 1, as in NumPy and Tune
    "lograndint": 2,
    "choice": None,
}
WHOLE = ("randint", "lograndint")


@dataclass(frozen=True)
class Distribution:
    """Of one setting. values: the bounds, or for `choice` what there is to choose from."""

    kind: str
    values: list[Any]

    def draw(self, stream: random.Random) -> Any:
        u = stream.random()
        if self.kind == "choice":
            return self.values[int(u * len(self.values))]
        low, high = self.values[:2]
        if self.kind == "randint":
            return low + int(u * (high - low))
        if self.kind == "quniform":
            step = self.values[2]
            return low + step * int(u * (round((high - low) / step) + 1))
        if self.kind == "uniform":
            return low + u * (high - low)
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
        return min(int(value), high - 1) if self.kind == "lograndint" else value

    @property
    def ends(self) -> list[Any]:
        """The values whose runs are checked before anything starts: every choice, or the lowest and the highest."""
        if self.kind == "choice":
            return self.values
        return [self.values[0], self.values[1] - 1 if self.kind in WHOLE else self.values[1]]

    def clip(self, value: Any) -> Any:
        """`value`, or the nearest one that could be drawn: what perturbs a setting may not leave the space."""
        if self.kind == "choice":
            return value
        low, high = self.ends
        clipped = min(max(value, low), high)
        if self.kind == "quniform":
            clipped = low + self.values[2] * round((clipped - low) / self.values[2])
        return int(clipped) if self.kind in WHOLE else clipped


Space = dict[str, Distribution]


def make_space(search: Mapping[str, Mapping[str, Any]]) -> Space:
    """`{setting: {kind: values}}` -> distributions. Raises ConfigError, naming the setting."""
    return {setting: _distribution(setting, entry) for setting, entry in search.items()}


def draw(space: Space, num: int, seed: int) -> list[Point]:
    """`num` points. Each setting has a stream of its own, so that another setting does not change what this one draws."""
    streams = {setting: random.Random(f"{seed}/{setting}") for setting in space}  # Why random: it hashes a string the same way
    return [{setting: one.draw(streams[setting]) for setting, one in space.items()} for _ in range(num)]


def corners(space: Space) -> list[Point]:
    """Points that hold each end of each setting at least once, the others at their first."""
    first = {setting: one.ends[0] for setting, one in space.items()}
    points = [{**first, setting: end} for setting, one in space.items() for end in one.ends]
    return [point for point, _ in itertools.groupby(points)]


def point_name(point: Point) -> str:
    """`t` and 8 characters: the same for the same settings, wherever and in whatever order they are found."""
    return "t" + hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]


def _distribution(setting: str, entry: Mapping[str, Any]) -> Distribution:
    where = f"search: {setting} = {entry!r}"
    check(isinstance(entry, Mapping) and len(entry) == 1, f"{where}; one kind is needed, such as loguniform: [1.0e-4, 1.0e-2]")
    kind, values = next(iter(entry.items()))
    check(kind in KINDS, f"{where}: unknown kind {kind!r}{did_you_mean(str(kind), KINDS)}; known: {', '.join(KINDS)}")
    check(isinstance(values, list) and len(values) > 0, f"{where}; a list is needed")
    if kind == "choice":
        check(len(set(map(repr, values))) == len(values), f"{where}; one of them is there twice")
        return Distribution(kind, values)
    values = [_number(where, value) for value in values]
    check(len(values) == KINDS[kind], f"{where}; {kind} takes {KINDS[kind]} numbers")
    low, high = values[:2]
    check(low < high, f"{where}; the first must be below the second")
    check("log" not in kind or low > 0, f"{where}; a logarithm needs positive bounds")
    check(kind not in WHOLE or all(float(v).is_integer() for v in values), f"{where}; whole numbers are needed")
    check(kind != "quniform" or 0 < values[2] <= high - low, f"{where}; the step must be positive, and not beyond the range")
    check(  # Why: Tune's and Optuna's quantities are multiples of the step
        kind != "quniform" or all(math.isclose(v / values[2], round(v / values[2]), abs_tol=1e-7) for v in (low, high)),
        f"{where}; both bounds must be multiples of the step {values[-1]}",
    )
    return Distribution(kind, [int(v) for v in values] if kind in WHOLE else values)


def _number(where: str, value: Any) -> Any:
    """An int or a float."""
    if isinstance(value, str):  # PyYAML reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    check(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        f"{where}; not a number: {value!r}",
    )
    return value
