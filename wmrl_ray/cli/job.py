"""`wmrl job`: any other command as a job on a Ray cluster; its log, its state, its end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmrl_ray.cli.errors import EXIT_INTERRUPTED
from wmrl_ray.config import ConfigError, check

if TYPE_CHECKING:
    from wmrl_ray.rllib.jobs import Job, JobPlan

app = typer.Typer(help="Run a command on a Ray cluster, follow it, stop it.", no_args_is_help=True)
COMMANDS = ("train", "sweep", "evaluate", "intents", "data", "doctor", "envs")  # what makes sense far from the user

Address = Annotated[
    str | None,
    typer.Option(
        help="Of the cluster's dashboard, e.g. http://127.0.0.1:8265. Default: RAY_ADDRESS, or this machine's cluster."
    ),
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="The submission id.")]


@app.callback()
def _commands() -> None:
    """Run a command on a Ray cluster, follow it, stop it."""


# Why not interspersed: the options of the command itself may follow without `--` too
@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Any wmrl command: train quick --seed 1")],
    address: Address = None,
    working_dir: Annotated[Path, typer.Option(help="Uploaded; the command runs in its copy on the cluster.")] = Path(),
    no_upload: Annotated[bool, typer.Option("--no-upload", help="Run what the nodes have installed.")] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Not uploaded, beside .gitignore's and .rayignore's. Repeatable."),
    ] = None,
    runtime_env: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of a Ray runtime environment.")] = None,
    submission_id: Annotated[str | None, typer.Option(help="Name of the job. Default: Ray makes one.")] = None,
    num_cpus: Annotated[float | None, typer.Option(min=0, help="Reserved for the command itself, on one node.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0, help="As --num-cpus; a local learner needs 1.")] = None,
    resources: Annotated[
        str | None, typer.Option(metavar="JSON", help="Custom ones of its node, e.g. '{\"learner\": 1}'.")
    ] = None,
    python: Annotated[str, typer.Option(help="Of the nodes.")] = "python",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print what would be sent; no cluster needed.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
) -> None:
    """Submit a command and follow its log to the end; the exit code is the command's.

    Ctrl-C stops following, not the job. Tokens are Ray's: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.
    """
    check_command(command, Path() if no_upload else working_dir)
    from wmrl_ray.rllib.jobs import Job, Resources, plan_job, without_users

    plan = plan_job(
        command,
        working_dir=None if no_upload else working_dir,
        runtime_env=_read_env(runtime_env),
        excludes=exclude or [],
        python=python,
        resources=Resources(num_cpus, num_gpus, _read_resources(resources)),
        submission_id=submission_id,
    )
    _show_upload(plan)
    if dry_run:
        _show_plan(plan, address, no_wait)
        return
    job = Job.submit(plan, address)
    _note(f"submitted {job.submission_id}: {without_users(plan.entrypoint)}")
    if no_wait:
        _note(_what_next(job))
        print(job.submission_id)
        return
    _follow(job)


@app.command()
def logs(
    name: Name,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="To the end; then exit with the command's code.")] = False,
) -> None:
    """Print a job's log."""
    job = _job(name, address)
    if follow:
        _follow(job)
    else:
        print(job.logs(), end="")


@app.command()
def status(name: Name, address: Address = None) -> None:
    """Print PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; on stderr what Ray says about it."""
    job = _job(name, address)
    print(job.status().value)
    _note(job.message())


@app.command()
def stop(name: Name, address: Address = None) -> None:
    """Stop a job: a training run has a minute to write a checkpoint, from which the same command with --resume goes on."""
    job = _job(name, address)
    _note(f"{name}: asked to stop" if job.stop() else f"{name} has ended already: {job.status().value}")


def check_command(command: Sequence[str], folder: Path) -> None:
    """Reads `wmrl COMMAND` as the cluster will, without running it: a misspelt option shows before anything is uploaded.

    Raises:
        ConfigError: no command to submit, an unknown configuration, or results that would be lost with the job's folder.
        click.UsageError: as the command itself.
    """
    import typer.main

    from wmrl_ray.cli.app import app as wmrl

    given = command[0]
    nearest = "" if given in COMMANDS else f"; there are: {', '.join(COMMANDS)}"
    check(not nearest, f"cannot submit `wmrl {given}`{nearest}")
    group: Any = typer.main.get_command(wmrl)
    context = group.make_context("wmrl", list(command), resilient_parsing=False)
    _, subcommand, rest = group.resolve_command(context, list(command))
    parsed = subcommand.make_context(given, list(rest), parent=context)
    if given in ("train", "sweep"):
        _check_configuration(given, parsed.params, folder)


def _check_configuration(given: str, values: dict[str, Any], folder: Path) -> None:
    """That it exists in what is uploaded, has no setting that would be refused, and that the run folder outlives the job."""
    import contextlib

    from wmrl_ray.cli.configs import overridden, read_source
    from wmrl_ray.cli.sweep import limits, make_plan
    from wmrl_ray.cli.train import run_config

    source = Path(values["file_or_name"])
    option, kept = ("--run-dir", values.get("run_dir")) if given == "train" else ("--out", values.get("out"))
    if not source.is_absolute():  # an absolute one is on the cluster
        with contextlib.chdir(folder):
            if given == "train":
                found = read_source(str(source))
                check(found.run_dir is None, f"run folders are not uploaded; name {source} by its absolute path on the cluster")
                run_config(overridden(found.values, values.get("overrides") or []))
            else:
                own = {name: values[name] for name in ("cpus_per_run", "gpus_per_run", "max_failures", "trial_timeout")}
                about = {name: values[name] for name in ("stand_ins", "seeds", "overrides", "only")}
                make_plan(str(source), limits(**own), **about)
    if values.get("dry_run") or (kept is None and source.is_absolute() and given == "train"):
        return
    where = f"{option} {kept}" if kept is not None else f"no {option}"
    check(
        kept is not None and kept.is_absolute(),
        f"{where}: a job's own folder goes when the job ends; add {option} /an/absolute/path on storage that all nodes share",
    )


def _job(name: str, address: str | None) -> Job:
    from wmrl_ray.rllib.jobs import Job

    return Job(name, address)


def _follow(job: Job) -> None:
    """Exits with the command's code, or 130 after Ctrl-C, which leaves the job alone."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        state = job.follow(write)
    except KeyboardInterrupt:
        _note(f"\nstopped following; {job.submission_id} goes on\n{_what_next(job)}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    code = job.exit_code()
    _note(f"{job.submission_id} {state.value}" + (f": {job.message()}" if code else ""))
    raise typer.Exit(code)


def _what_next(job: Job) -> str:
    where = f" --address {shlex.quote(job.address)}" if job.address else ""
    return "\n".join(f"  wmrl job {verb} {job.submission_id}{where}" for verb in ("logs --follow", "status", "stop"))


def _show_upload(plan: JobPlan) -> None:
    from wmrl_ray.rllib.jobs import UPLOAD_LIMIT, megabytes

    for folder, files in plan.uploads.items():
        size = megabytes(sum(files.values()))
        _note(f"upload: {size} in {len(files):,} files of {folder.resolve()} (Ray takes {megabytes(UPLOAD_LIMIT)})")


def _show_plan(plan: JobPlan, address: str | None, no_wait: bool) -> None:
    """The command line alone on stdout."""
    import yaml

    from wmrl_ray.rllib.jobs import HIDDEN, without_users

    shown = yaml.safe_dump(plan.shown_env(), default_flow_style=None, sort_keys=False, width=10_000)
    entry = without_users(plan.entrypoint)
    _note(f"entry point: {entry}\nruntime environment:\n" + "".join(f"  {line}\n" for line in shown.splitlines()))
    if HIDDEN in shown + entry:
        _note(f"values shown as {HIDDEN} are sent as they are; whoever pastes the command must put them in first")
    if (line := plan.ray_command(address, no_wait=no_wait)) is None:
        _note("Ray's own command line cannot carry the quotes of this entry point; wmrl job submit can")
    else:
        print(line)


def _read_env(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    check(path.is_file(), f"--runtime-env {path}: no such file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"--runtime-env {path}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    check(isinstance(values, dict), f"--runtime-env {path}: expected a mapping such as 'env_vars: {{MUJOCO_GL: egl}}'")
    return values


def _read_resources(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values()):
        raise ConfigError(f'--resources {text}: expected JSON such as {{"learner": 1}}')
    return values


def _note(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)
