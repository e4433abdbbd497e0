"""Numbers as words: what a page, a table or a terminal shows."""

from __future__ import annotations

import json
import math
from typing import Any


def number(x: float | None, digits: int = 1) -> str:
    """`12.3`, with an en dash for what is not known and a real minus sign."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{round(x, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before a zero


def signed(x: float) -> str:
    """`+33.3`, with a real minus sign."""
    return f"{round(x, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


def count(x: float | None) -> str:
    """`20,000`."""
    return "–" if x is None else f"{x:,.0f}"


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `4 min 05 s`, `12 s`, `3.4 s`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def value(x: Any) -> str:
    """A configuration or card value on one line."""
    if isinstance(x, float):
        return f"{x:.6g}"
    return json.dumps(x) if isinstance(x, list | dict) else "–" if x is None else str(x)
