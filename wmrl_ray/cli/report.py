"""`wmrl report`: run folders -> one HTML page, and on the terminal the tables of the studies among them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmrl_ray.cli.data import progress_bar
from wmrl_ray.config import check
from wmrl_ray.video import check_video_path, write_video

if TYPE_CHECKING:
    from wmrl_ray.report.film import Film

STYLES = {"better": {"fg": "green"}, "worse": {"fg": "red"}, "bold": {"bold": True}, "paper": {"dim": True}}


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page; its numbers go into the .json beside it.")] = Path(
        "report.html"
    ),
    video: Annotated[
        Path | None,
        typer.Option(help="Film the Workers with intents beside those without, e.g. fig2.mp4; an .mp4 is on the page too."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the paper's table with ours as Markdown.")] = None,
) -> None:
    """Write one HTML page that opens offline: tables over seeds, curves, trajectories, configuration.

    Where a folder holds the study.json of a sweep, the page and the terminal show the paper's table with ours in it.
    """
    from wmrl_ray.data.files import write_text
    from wmrl_ray.report.film import plan_film
    from wmrl_ray.report.render import check_report_path, read_report
    from wmrl_ray.report.tables import as_markdown, as_text

    check_report_path(out)
    if video is not None:
        check_video_path(video)
    if markdown is not None:
        check(markdown.parent.is_dir(), f"no such folder for --markdown: {markdown.parent}; create it first")
    made = read_report(runs)
    studies = made.numbers["studies"]
    check(
        markdown is None or bool(studies),
        f"--markdown {markdown}: no table of a paper in {', '.join(map(str, runs))}; give the folder of a `wmrl sweep` of one",
    )
    film = None if video is None else plan_film(made.groups)
    numbers = made.write(out)
    width = shutil.get_terminal_size((100, 24)).columns
    for study in studies:
        typer.echo(as_text(study, width, lambda style, text: typer.style(text, **STYLES.get(style, {}))) + "\n")
    if markdown is not None:
        write_text(markdown, "\n".join(map(as_markdown, studies)))
        print(markdown)
    if video is not None and film is not None:
        _write_film(film, video)
        if video.suffix == ".mp4":  # what browsers play
            made.embed_film(film.dataset, video)
            made.write(out)
        print(f"{video}   (dataset: {film.dataset})")
    print(f"{out}   (numbers: {numbers})")


def _write_film(film: Film, path: Path) -> None:
    from wmrl_ray.report.film import FPS

    if film.left_out:
        print(
            f"note: {path} shows {film.dataset}; report on the runs of one maze alone to film {', '.join(film.left_out)}",
            file=sys.stderr,
        )
    with progress_bar("film", "frames") as progress:
        write_video(path, film.frames(progress), FPS)
