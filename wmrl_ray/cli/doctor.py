"""`wmrl doctor`: the findings as a table, or as JSON."""

from __future__ import annotations

from typing import Annotated

import typer

STYLES = {"ok": "green", "note": "cyan", "missing": "dim", "warn": "yellow", "broken": "bold red"}
SIGNS = {"ok": "ok", "note": "note", "missing": "not installed", "warn": "warning", "broken": "BROKEN"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also compute with torch and start a private local Ray.")] = False,
) -> None:
    """Check versions, simulators, GPU, rendering, disk, memory and ports; exit with 1 if something is broken."""
    from wmrl_ray.doctor import examine, is_broken, to_json

    findings = examine(full)
    if as_json:
        print(to_json(findings))
    else:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("", "", "", "found", "what to do"):
            table.add_column(column, overflow="fold")
        area = ""
        for found in sorted(findings, key=lambda f: list(dict.fromkeys(g.area for g in findings)).index(f.area)):
            if area and found.area != area:
                table.add_section()
            style = STYLES[found.status]
            table.add_row(
                "" if found.area == area else f"[bold]{found.area}[/]",
                escape(found.name),
                f"[{style}]{SIGNS[found.status]}[/]",
                escape(found.detail),
                escape(found.fix),
            )
            area = found.area
        console.print(table)
        broken = sum(f.status == "broken" for f in findings)
        console.print(f"[bold red]{broken} broken[/]" if broken else "[green]nothing is broken[/]")
    if is_broken(findings):
        raise typer.Exit(1)
