"""The commands of `wmrl`, and what becomes of an error: one line and exit code 2 for a user's, a traceback for ours."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from wmrl_ray import __version__
from wmrl_ray.cli import analyse, data, doctor, envs, evaluate, intents, job, report, sweep, train
from wmrl_ray.cli.errors import EXIT_USER_ERROR, remote_message, user_message

app = typer.Typer(
    name="wmrl",
    help="World-model reinforcement learning on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` decides what is shown
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"wmrl_ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """World-model reinforcement learning on Ray."""


app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("intents")(intents.intents)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("envs")(envs.envs)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(analyse.app, name="analyse")
app.add_typer(job.app, name="job")


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
    """Ours on one line, once, without the place in the code that it comes from."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        if str(message) not in _shown:  # Why here: Python forgets what it showed whenever a module changes its filters
            _shown.add(str(message))
            print(f"wmrl: {message}", file=sys.stderr)
    else:
        _show_others(message, category, filename, *rest)


_show_others = warnings.showwarning
_shown: set[str] = set()


def main() -> None:
    """The entry point of the `wmrl` script."""
    warnings.showwarning = _show_warning
    if not sys.flags.safe_path and "" not in sys.path:
        # The current folder, for modules of one's own, as `python -m` has it. Why last: `wmrl` runs in folders of any content
        sys.path.append("")
    try:
        app()
    except Exception as error:
        if (remote := remote_message(error)) is not None:
            message, code = remote
        elif (message := user_message(error)) is not None:
            code = EXIT_USER_ERROR
        else:
            raise
        print(f"wmrl: {message}", file=sys.stderr)
        sys.exit(code)
