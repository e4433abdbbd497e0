"""`wmrl report`: run folders -> one HTML page, and on the terminal the tables of the studies among them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from wmrl_ray.config import check

STYLES = {"better": {"fg": "green"}, "worse": {"fg": "red"}, "bold": {"bold": True}, "paper": {"dim": True}}


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page; its numbers go into the .json beside it.")] = Path(
        "report.html"
    ),
    markdown: Annotated[Path | None, typer.Option(help="Also write the paper's table with ours as Markdown.")] = None,
) -> None:
    """Write one HTML page that opens offline: tables over seeds, curves, trajectories, configuration.

    Where a folder holds the study.json of a sweep, the page and the terminal show the paper's table with ours in it.
    """
    from wmrl_ray.report.render import check_report_path, read_report, write_text
    from wmrl_ray.report.tables import as_markdown, as_text

    check_report_path(out)
    if markdown is not None:
        check(markdown.parent.is_dir(), f"no such folder for --markdown: {markdown.parent}; create it first")
    made = read_report(runs)
    studies = made.numbers["studies"]
    check(
        markdown is None or bool(studies),
        f"--markdown {markdown}: there is no study.json in {', '.join(map(str, runs))}; give the folder of a `wmrl sweep`",
    )
    numbers = made.write(out)
    width = shutil.get_terminal_size((100, 24)).columns
    for study in studies:
        typer.echo(as_text(study, width, lambda style, text: typer.style(text, **STYLES.get(style, {}))) + "\n")
    if markdown is not None:
        write_text(markdown, "\n".join(map(as_markdown, studies)))
        print(f"{markdown}")
    print(f"{out}   (numbers: {numbers})")
