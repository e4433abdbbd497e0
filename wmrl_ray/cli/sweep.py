"""`wmrl sweep`: the cells of a paper's table, or any other study, as runs that are started, shared and resumed together."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmrl_ray.cli.configs import overridden, read_study
from wmrl_ray.cli.errors import EXIT_ERROR, EXIT_INTERRUPTED
from wmrl_ray.cli.signals import StopRequest
from wmrl_ray.cli.sweep_display import make_sweep_display, show_plan
from wmrl_ray.config import ConfigError, check, from_dict

if TYPE_CHECKING:
    from wmrl_ray.search import TuneSpec
    from wmrl_ray.study import Plan, Study
    from wmrl_ray.sweep import Cell, Execute, Outcome
    from wmrl_ray.sweep_search import RunSearch

RESUMES = ("auto", "errored", "fresh")
# Why: libraries count their threads when they are loaded, and trials that share cores must not each have one for every core
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def sweep(
    file_or_name: Annotated[
        str, typer.Argument(metavar="FILE_OR_NAME", help="YAML file of a study, or a name such as iql_td_mpc/table2.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where runs go; tables that share it share runs. Default: runs/PAPER[-stand-ins].")
    ] = None,
    stand_ins: Annotated[bool, typer.Option("--stand-ins", help="Our own datasets in place of the originals.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW/COLUMN/VARIANT", help="These cells alone, e.g. 'antmaze-*/bc' or '*/*/intents'. Repeatable."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,...", help="In place of the study's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For every run, or for one algorithm's: manager.num_updates=1000."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print every cell; start nothing.")] = False,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", "--debug", help="One run after another in this process, where breakpoints work.")
    ] = False,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time, on a Ray started here. Default: CPUs of the machine.")
    ] = None,
    cpus_per_run: Annotated[
        float | None, typer.Option(min=0.0, help="Such as 0.5: two runs share a core. Default: the study's, or 1.")
    ] = None,
    gpus_per_run: Annotated[
        float | None, typer.Option(min=0.0, help="Such as 0.25: four runs share a GPU. Default: the study's, or 0.")
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="Times that a run which crashed is started again. Default: the study's, or 3.")
    ] = None,
    trial_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            help="A run whose process shows no sign of life for so long (stopped or frozen; not one that is slow, compiles or "
            "evaluates) is ended, as if it had crashed. 0: never. Default: the study's, or 600.",
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|errored|fresh",
            help="auto: go on with what is unfinished; errored: also with what failed; fresh: set the old sweep aside.",
        ),
    ] = "auto",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also a folder that a process on another host held, which is gone for sure.")
    ] = False,
    print_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a study's YAML, and stop.", is_eager=True)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines even on a terminal.")] = False,
) -> None:
    """Train every cell of a study: each Manager once for all its Workers, finished runs never again.

    Ctrl-C or SIGTERM stop it, with a checkpoint of every run at work; the same command goes on from there. Every evaluation is
    in OUT/results.parquet, except those of a population's abandoned generations: their folders stay.
    """
    if print_schema:
        from wmrl_ray.schema import study_schema

        print(json.dumps(study_schema(), indent=1, allow_nan=False))
        return
    check(bool(file_or_name), "name a study: a YAML file, or one of those that `wmrl sweep x` lists")
    check(resume in RESUMES, f"--resume {resume!r}; allowed: {', '.join(RESUMES)}")
    own = limits(cpus_per_run, gpus_per_run, max_failures, trial_timeout)
    given = {"num-cpus": num_cpus, **{key.removesuffix("_s").replace("_", "-"): value for key, value in own.items()}}
    for option, value in given.items():
        check(not no_ray or value is None, f"--{option} {value} has no effect with --no-ray: one run after another, here")
    plan = make_plan(file_or_name, own, stand_ins=stand_ins, seeds=seeds, overrides=overrides, only=only)
    if dry_run:
        show_plan(plan, as_json)
        return
    _require_something_to_run(plan)
    out = out or Path("runs") / (plan.paper + "-stand-ins" * stand_ins)
    display = make_sweep_display(plan, as_json)
    stop = StopRequest(lambda name: display.note(f"{name}: stopping after checkpoints; Ctrl-C again stops at once"))

    from wmrl_ray.sweep import in_process
    from wmrl_ray.sweep import sweep as run_sweep

    execute, run_search = (in_process, None) if no_ray else _on_ray(out, num_cpus, plan.tune)
    with display, stop:
        results = run_sweep(
            plan,
            out,
            execute,
            display,
            stop,
            resume=resume,  # type: ignore[arg-type]
            take_over=take_over,
            run_search=run_search,
        )
    display.summary(results)
    _conclude(results, plan, out, stop)


def limits(
    cpus_per_run: float | None, gpus_per_run: float | None, max_failures: int | None, trial_timeout: float | None
) -> dict[str, float | None]:
    """A run's share of the machine and its failures, by their names in the file's `tune`; None: not on the command line."""
    return {
        "cpus_per_run": cpus_per_run,
        "gpus_per_run": gpus_per_run,
        "max_failures": max_failures,
        "trial_timeout_s": trial_timeout,
    }


def make_plan(
    file_or_name: str,
    own: Mapping[str, float | None],
    *,
    stand_ins: bool = False,
    seeds: str | None = None,
    overrides: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Plan:
    """What the command line asks for, checked. Raises ConfigError."""
    source = read_study(file_or_name)
    values = overridden({}, overrides or [])

    from wmrl_ray.study import Study, expand

    study = _with_limits(from_dict(Study, source.values), own)
    return expand(study, stand_ins=stand_ins, seeds=_numbers(seeds), overrides=values).select(only or [])


def _with_limits(study: Study, own: Mapping[str, float | None]) -> Study:
    """What the command line says of them, in place of the file."""
    tune = dataclasses.replace(study.tune, **{name: value for name, value in own.items() if value is not None})
    return dataclasses.replace(study, tune=tune)


def _on_ray(out: Path, num_cpus: int | None, tune: TuneSpec) -> tuple[Execute, RunSearch]:
    from wmrl_ray.rllib import compat
    from wmrl_ray.rllib.search import run_search
    from wmrl_ray.sweep import on_ray

    set_by_job = compat.job_variables()  # Why not again: Ray refuses a variable that both name
    threads = {name: value for name, value in THREADS.items() if name not in set_by_job}
    # A Ray started here ends with the process
    compat.init(num_cpus=num_cpus, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": threads})
    execute = on_ray(
        out,
        cpus_per_run=tune.cpus_per_run,
        gpus_per_run=tune.gpus_per_run,
        max_failures=tune.max_failures,
        trial_timeout_s=tune.trial_timeout_s,
    )
    return execute, run_search


def _numbers(seeds: str | None) -> list[int] | None:
    if seeds is None:
        return None
    parts = [part.strip() for part in seeds.split(",")]
    check(all(part.isdigit() for part in parts), f"--seeds {seeds!r}; whole numbers are needed, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def _require_something_to_run(plan: Plan) -> None:
    """Raises ConfigError, one line for each reason, when every cell is blocked."""
    planned = [*plan.cells, *plan.searches]
    if all(one.blocked for one in planned):
        reasons = dict.fromkeys(one.blocked for one in planned)
        raise ConfigError(f"none of the {len(planned)} cells can run:\n" + "\n".join(f"  {reason}" for reason in reasons))


def _conclude(results: list[tuple[Cell, Outcome]], plan: Plan, out: Path, stop: StopRequest) -> None:
    """Says how it ended and what to do next; the exit code tells failure (1) and Ctrl-C (130) from success, or SIGTERM (0)."""
    from wmrl_ray.sweep_search import Record

    for search in plan.searches:
        if not search.blocked and (best := Record(search, out).best) is not None:
            mean = f"{search.tune.metric} = {best['mean']:.4g}, mean over {len(best['values'])} seeds"
            print(f"best of {search.prefix}: {best['name']} {json.dumps(best['point'])}, {mean}", file=sys.stderr)
    counts = Counter(outcome.state for _, outcome in results)
    words = [
        f"{counts[state]} {state}"
        for state in ("finished", "failed", "waiting", "stopped", "pruned", "blocked")
        if counts[state]
    ]
    print(f"{', '.join(words)} of {len(results)} cells\n{out}   (next: wmrl report {shlex.quote(str(out))})", file=sys.stderr)
    if stop.received is not None:
        print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED if stop.received.name == "SIGINT" else 0)
    if any(outcome.is_bad for _, outcome in results):
        print("what has failed is not tried again before you ask for it: --resume errored", file=sys.stderr)
        raise typer.Exit(EXIT_ERROR)
