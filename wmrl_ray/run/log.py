"""metrics.jsonl: what a run measured, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from wmrl_ray.data.files import as_json

FILE = "metrics.jsonl"
Line = dict[str, Any]  # update, time_s and metrics by their paths


class Log(NamedTuple):
    """What a metrics.jsonl holds. damaged: numbers of lines that are none. is_cut: it ends within a line, where a process
    was killed as it wrote.
    """

    lines: list[Line]
    damaged: list[int]
    is_cut: bool


def read_log(file: Path) -> Log:
    """A damaged line loses only itself, and NaN, which older versions wrote, its metric. Nothing where no log is."""
    lines: list[Line] = []
    damaged: list[int] = []
    *texts, end = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else [""]
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text, parse_constant=lambda name: None)
            found = {name: value for name, value in line.items() if value is not None}
            lines.append({**found, "update": int(line["update"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged.append(number)
    return Log(lines, damaged, bool(end))


def as_log(lines: Iterable[Line]) -> str:
    """The text of a log that holds these lines."""
    return "".join(as_json(line, FILE) + "\n" for line in lines)
