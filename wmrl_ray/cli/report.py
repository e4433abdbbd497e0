"""`wmrl report`: run folders -> one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page; its numbers go into the .json beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """Write one HTML page that opens offline: tables over seeds, curves, trajectories, configuration."""
    from wmrl_ray.report import write_report

    html, numbers = write_report(runs, out)
    print(f"{html}   (numbers: {numbers})")
