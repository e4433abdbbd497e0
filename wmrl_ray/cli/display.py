"""What a run shows while it trains: a live panel on a terminal, one JSON object per line anywhere else."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.run.events import Event

BARS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Shows a loop's events between __enter__ and __exit__."""

    def __enter__(self) -> Display: ...

    def __exit__(self, *exc: object) -> None: ...

    def on_event(self, event: Event) -> None: ...

    def note(self, text: str) -> None: ...


class JsonLines:
    """One object per event on `stream`; notes for people go to stderr."""

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream or sys.stdout

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.flush()

    def on_event(self, event: Event) -> None:
        if event.kind != "end":  # the command's own last line, "result", says the same and more
            about = {"message": event.message} if event.message else {}
            self.write({"event": event.kind, "update": event.update, "total": event.total, **about, **event.metrics})

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line, at once; floats with 6 digits (metrics.jsonl has them all), null for what JSON lacks."""
        self._stream.write(json.dumps({key: _short(value) for key, value in line.items()}, allow_nan=False) + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LivePanel:
    """Progress, speed, ETA, losses, and the evaluations with a sparkline; redrawn in place."""

    def __init__(self, config: RunConfig, run_dir: object, console: Console | None = None):
        from rich.console import Console
        from rich.markup import escape

        self._console = console or Console()
        self._title = escape(f"{config.algorithm} · {config.dataset or config.env} · seed {config.seed}")
        self._run_dir = escape(str(run_dir))
        self._total, self._update, self._first_update = config.num_updates, 0, 0
        self._started: float | None = None  # when the first event came, seconds
        self._reached = 0.0  # when the current update was reached
        self._metrics: dict[str, float] = {}
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._returns: list[float] = []  # of the exploring episodes, log by log
        self._checkpoint: int | None = None
        self._notes: list[str] = []

    def __enter__(self) -> LivePanel:
        from rich.live import Live

        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4)
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def on_event(self, event: Event) -> None:
        if event.update != self._update:
            self._reached = time.monotonic()
        if event.message:
            self.note(event.message)
        # Why not the newest of all: an evaluation's event may come after later updates
        self._update = event.update if event.kind == "recovery" else max(event.update, self._update)
        self._total = event.total
        if event.kind == "start":
            self._started, self._first_update = time.monotonic(), event.update
        elif event.kind == "update":
            self._metrics = event.metrics
            self._returns += [event.metrics["online/return_mean"]] if "online/return_mean" in event.metrics else []
        elif event.kind == "eval":
            self._evaluations.append((event.update, event.metrics))
        elif event.kind == "checkpoint":
            self._checkpoint = event.update

    def note(self, text: str) -> None:
        from rich.markup import escape

        self._notes.append(escape(text))

    def seconds_left(self) -> float | None:
        """At this session's average speed, evaluations included."""
        updates = self._update - self._first_update
        if self._started is None or updates <= 0:
            return None
        needed = (self._reached - self._started) / updates * (self._total - self._update)
        return max(0.0, needed - (time.monotonic() - self._reached))

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        head.add_row(ProgressBar(total=self._total, completed=self._update), self._progress_text())
        parts: list[RenderableType] = [head]
        losses = {k.removeprefix("loss/"): v for k, v in sorted(self._metrics.items()) if k.startswith("loss/")}
        if losses:
            parts.append(_row("loss", "   ".join(f"{k} [bold]{v:.4g}[/]" for k, v in losses.items())))
        if "online/steps" in self._metrics:
            parts.append(_row("own steps", self._online_text()))
        if self._evaluations:
            parts.append(_row("evaluation", self._evaluation_text()))
        checkpoint = "" if self._checkpoint is None else f"   last checkpoint at {self._checkpoint:,}"
        parts.append(_row("run", f"{self._run_dir}[dim]{checkpoint}[/]"))
        parts += [f"[yellow]{note}[/]" for note in self._notes]
        return Panel(Group(*parts), title=self._title, title_align="left", border_style="dim")

    def _progress_text(self) -> str:
        from wmrl_ray.report.words import duration

        if self._started is None:
            return "[dim]starting ...[/]"
        speed = self._metrics.get("time/updates_per_s")
        left = self.seconds_left()
        words = [f"[bold]{self._update:,}[/] of {self._total:,}"]
        words += [f"{speed:,.0f} updates/s"] if speed is not None else []
        words += [f"{duration(left)} left"] if left is not None and self._update < self._total else []
        return " · ".join(words)

    def _online_text(self) -> str:
        steps, episodes = self._metrics["online/steps"], self._metrics["online/episodes"]
        text = f"[bold]{steps:,.0f}[/] in {episodes:,.0f} episodes"
        if self._returns:
            text += f"   return [bold]{self._returns[-1]:.1f}[/]   [cyan]{sparkline(self._returns[-40:])}[/]"
        return text

    def _evaluation_text(self) -> str:
        metrics = self._evaluations[-1][1]
        scored = "eval/score_mean" in metrics
        key, name = ("eval/score_mean", "score") if scored else ("eval/return_mean", "return")
        std = metrics.get("eval/score_std" if scored else "eval/return_std")
        text = f"{name} [bold]{metrics[key]:.1f}[/]" + (f" ± {std:.1f}" if std is not None else "")
        if "eval/success_mean" in metrics:
            text += f"   success {metrics['eval/success_mean']:.0%}"
        return f"{text}   [cyan]{sparkline([m[key] for _, m in self._evaluations if key in m][-40:])}[/]"


def make_display(config: RunConfig, run_dir: object, as_json: bool = False) -> Display:
    """The live panel when stdout is a terminal and `as_json` is not asked for."""
    return JsonLines() if as_json or not sys.stdout.isatty() else LivePanel(config, run_dir)


def sparkline(values: Iterable[float]) -> str:
    """`▁▃█`: one bar for each value, from the lowest to the highest of them; a gap for a value that is not finite."""
    values = list(values)
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)
    top = len(BARS) - 1
    return "".join(" " if not math.isfinite(v) else BARS[round(top * (v - low) / span) if span else top // 2] for v in values)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _row(name: str, text: str) -> str:
    return f"[dim]{name:<11}[/]{text}"
