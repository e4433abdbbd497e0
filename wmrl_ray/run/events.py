"""What a run says while it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Event:
    """What a loop tells its display.

    recovery: an actor was lost, and the run went back to its newest checkpoint, at `update`. warning: something else that is to
    be known. Both have a message, of one line.
    """

    kind: Literal["start", "update", "eval", "checkpoint", "recovery", "warning", "end"]
    update: int
    total: int
    metrics: dict[str, float]
    message: str = ""


OnEvent = Callable[[Event], None]
