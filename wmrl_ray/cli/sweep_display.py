"""What a sweep shows: a line for each run that ends and a table at last; JSON lines where stdout is no terminal."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wmrl_ray.cli.display import JsonLines
from wmrl_ray.space import point_name

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from wmrl_ray.search import Search
    from wmrl_ray.study import Cell, Plan
    from wmrl_ray.sweep import Job, Outcome

COLOURS = {"finished": "green", "failed": "red", "waiting": "yellow", "stopped": "yellow", "pruned": "dim", "blocked": "dim"}
SHOWN = 8  # runs in progress that a terminal shows


class SweepJsonLines(JsonLines):
    """`{"event": "run", "run": ..., "state": ...}` for each run that ends, then one "cell" for each cell."""

    def begin(self, num_jobs: int, num_finished: int) -> None:
        self.write({"event": "sweep", "jobs": num_jobs, "finished_before": num_finished})

    def progress(self, name: str, update: int, total: int) -> None:
        pass

    def end(self, job: Job, outcome: Outcome) -> None:
        self.write({"event": "run", "run": job.name, **dataclasses.asdict(outcome)})

    def summary(self, results: Sequence[tuple[Cell, Outcome]]) -> None:
        for cell, outcome in results:
            self.write({"event": "cell", **dataclasses.asdict(outcome), **cell.record})


class SweepPanel:
    """Lines above, what runs now below them; afterwards the table of scores over seeds."""

    def __init__(self, plan: Plan, console: Console | None = None):
        from rich.console import Console

        self._console = console or Console()
        self._title = f"{plan.paper} {plan.table}" + (" (stand-ins)" if plan.stand_ins else "")
        self._total, self._ended = 0, 0
        self._running: dict[str, tuple[int, int]] = {}  # name -> update, of how many
        self._notes: list[str] = []
        self._started = time.monotonic()

    def __enter__(self) -> SweepPanel:
        from rich.live import Live

        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2, transient=True)
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def begin(self, num_jobs: int, num_finished: int) -> None:
        self._total = num_jobs
        if num_finished:
            self._console.print(f"[dim]{num_finished} cells have finished already[/]")

    def progress(self, name: str, update: int, total: int) -> None:
        self._running[name] = (update, total)

    def end(self, job: Job, outcome: Outcome) -> None:
        from rich.markup import escape

        self._running.pop(job.name, None)
        self._ended += 1
        text = f"  [dim]{escape(outcome.message)}[/]" if outcome.message else f"  {_result(outcome)}"
        self._console.print(f"[{COLOURS[outcome.state]}]{outcome.state:<8}[/] {escape(job.name)}{text}")

    def note(self, text: str) -> None:
        from rich.markup import escape

        self._notes.append(escape(text))

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.markup import escape
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        from wmrl_ray.report.words import duration

        table = Table.grid(padding=(0, 2))
        running = list(self._running.items())
        for name, (update, total) in running[:SHOWN]:
            table.add_row(escape(name), ProgressBar(total=total, completed=update, width=24), f"{update:,} of {total:,}")
        more = [f"[dim]and {len(running) - SHOWN} more[/]"] if len(running) > SHOWN else []
        spent = duration(time.monotonic() - self._started)
        head = f"[bold]{escape(self._title)}[/]  {self._ended} of {self._total} runs ended in {spent}"
        return Group(head, table, *more, *(f"[yellow]{note}[/]" for note in self._notes))

    def summary(self, results: Sequence[tuple[Cell, Outcome]]) -> None:
        self._console.print(scores_table(results, self._title))
        _print_reasons(self._console, [outcome.message for _, outcome in results if outcome.state != "finished"])


def make_sweep_display(plan: Plan, as_json: bool = False) -> Any:
    """The panel when stdout is a terminal and `as_json` is not asked for."""
    return SweepJsonLines() if as_json or not sys.stdout.isatty() else SweepPanel(plan)


def scores_table(results: Sequence[tuple[Cell, Outcome]], title: str) -> Table:
    """Rows and columns as in the paper, an entry for each variant: the mean over the seeds that finished, and their number."""
    from rich.table import Table

    columns = list(dict.fromkeys((cell.column, cell.variant) for cell, _ in results))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for column, variant in columns:
        table.add_column(f"{column}\n{variant}", justify="right")
    for row in dict.fromkeys(cell.row for cell, _ in results):
        entries = []
        for column in columns:
            outcomes = [outcome for cell, outcome in results if (cell.row, cell.column, cell.variant) == (row, *column)]
            entries.append(_entry(outcomes))
        table.add_row(row, *entries)
    return table


def show_plan(plan: Plan, as_json: bool, console: Console | None = None) -> None:
    """Every cell: on a terminal a table, elsewhere one JSON object each, with its resolved configuration."""
    if console is None and (as_json or not sys.stdout.isatty()):
        lines = JsonLines()
        for cell in plan.cells:
            lines.write({"event": "cell", **dataclasses.asdict(cell)})
        for search in plan.searches:
            lines.write({"event": "search", **_search_line(search)})
            for point, seed in itertools.product(search.trials, search.configs):
                run = search.run(point_name(point), seed)
                config = search.config(point, seed)
                lines.write({"event": "trial", "run": run, "seed": seed, "point": point, "config": config})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    reasons = list(dict.fromkeys(one.blocked for one in (*plan.cells, *plan.searches) if one.blocked))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("run", "left"), ("dataset", "left"), ("updates", "right"), ("after", "left"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for cell in plan.cells:
        updates = f"{cell.config['num_updates']:,}" if cell.config else ""
        state = f"[yellow]blocked, see {reasons.index(cell.blocked) + 1}[/]" if cell.blocked else "[green]ready[/]"
        table.add_row(cell.run, cell.dataset or cell.column, updates, cell.manager or "", state)
    for search in plan.searches:
        state = f"[yellow]blocked, see {reasons.index(search.blocked) + 1}[/]" if search.blocked else "[green]ready[/]"
        for point in search.trials or [{}]:
            name = point_name(point) if point else "?"
            seeds = ",".join(map(str, search.configs))
            settings = ", ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in point.items()
            )
            run = f"{search.prefix}-{name}-s[{seeds}]"
            table.add_row(
                escape(run), search.dataset or "", f"{search.rungs[-1]:,}", escape(settings or _chosen(search)), state
            )
    console.print(table)
    if plan.cells:
        ready = sum(not cell.blocked for cell in plan.cells)
        console.print(f"{len(plan.cells)} cells, {ready} of them ready, with {len(plan.managers)} Managers before them")
    for search in plan.searches:
        line = _search_line(search)
        schedule = f"scheduler {search.tune.scheduler}" if search.tune.scheduler else "no scheduler"
        console.print(
            f"search {search.prefix}: {line['num_samples']} trials x {len(search.configs)} seeds, {line['searcher']} points, "
            f"{schedule}, judged by {line['metric']} ({line['mode']}) at {len(search.rungs)} updates up to "
            f"{search.rungs[-1]:,}"
        )
    _print_reasons(console, reasons)


def _search_line(search: Search) -> dict[str, Any]:
    about = {name: getattr(search, name) for name in ("row", "dataset", "column", "variant", "prefix", "rungs", "blocked")}
    space = {setting: {one.kind: one.values} for setting, one in search.space.items()}
    return {**about, "seeds": list(search.configs), "space": space, **dataclasses.asdict(search.tune)}


def _chosen(search: Search) -> str:
    return f"{search.tune.num_samples} points that {search.tune.searcher} chooses; every end of the space was checked"


def _print_reasons(console: Console, reasons: Sequence[str | None]) -> None:
    from rich.markup import escape

    for number, reason in enumerate(dict.fromkeys(filter(None, reasons)), start=1):
        console.print(f"[dim]{number:>3}[/] {escape(reason)}", soft_wrap=True)


def _entry(outcomes: Sequence[Outcome]) -> str:
    """Scores where every seed has one; returns, marked so, where one has none: the two are never averaged together."""
    finished = [o for o in outcomes if o.score is not None or o.episode_return is not None]
    scores = [o.score for o in finished if o.score is not None]
    returns = [o.episode_return for o in finished if o.episode_return is not None]
    if scores and len(scores) == len(finished):
        return f"{sum(scores) / len(scores):.1f} [dim]({len(scores)})[/]"
    if returns:
        return f"{sum(returns) / len(returns):.1f} [dim]return ({len(returns)})[/]"
    state = next((o.state for o in outcomes if o.state != "finished"), "")
    return f"[{COLOURS[state]}]{state}[/]" if state else ""


def _result(outcome: Outcome) -> str:
    from wmrl_ray.report.words import duration

    words = [f"{outcome.updates:,} updates in {duration(outcome.seconds)}"] if outcome.updates else []
    if outcome.score is not None:
        words.append(f"score {outcome.score:.1f}")
    elif outcome.episode_return is not None:
        words.append(f"return {outcome.episode_return:.1f}")
    return ", ".join(words) or (outcome.dataset or "")
