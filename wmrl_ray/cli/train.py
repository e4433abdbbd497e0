"""`wmrl train`: a configuration -> a run folder, shown live, stopped and resumed without loss."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmrl_ray.cli.configs import Source, overridden, read_source
from wmrl_ray.cli.display import JsonLines, make_display
from wmrl_ray.cli.errors import EXIT_INTERRUPTED
from wmrl_ray.cli.overwrite import ReplacedRun
from wmrl_ray.cli.signals import GRACE_S, StopRequest
from wmrl_ray.config import ConfigError, check, from_dict

if TYPE_CHECKING:
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.run.events import Event
    from wmrl_ray.run.folder import RunDir


def train(
    file_or_name: Annotated[
        str, typer.Argument(metavar="FILE_OR_NAME", help="YAML file, name in tune_configs, or run folder.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. agent.plan.horizon=3. Repeatable."),
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="wandb or mlflow, beside TensorBoard. Repeatable.")
    ] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="Train in this process, without Ray.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Keep every Ray actor in this process, so that breakpoints work.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's newest complete checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the run folder and start over.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also a folder that a process on another host held, which is gone for sure.")
    ] = False,
    run_dir: Annotated[Path | None, typer.Option(help="Where to write. Default: runs/NAME/ALGORITHM-seedN.")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=N.")] = None,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="From SIGTERM to the end, with or without a checkpoint.")
    ] = GRACE_S,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines even on a terminal.")] = False,
) -> None:
    """Train an agent, on a dataset or from its own steps as its algorithm does, evaluating it on the way.

    Ctrl-C or SIGTERM finish the current call, write a checkpoint and exit; --resume goes on from there. A second one exits at
    once.
    """
    if no_ray and debug:
        raise ConfigError("--debug is for Ray; with --no-ray everything is in this process already: drop one of the two")
    if resume and overwrite:
        raise ConfigError("--resume continues the run and --overwrite deletes it: choose one")
    source = read_source(file_or_name)
    source = replace(source, values=overridden(source.values, overrides or []))
    train_source(source, track, no_ray, debug, resume, overwrite, take_over, run_dir, seed, grace, as_json)


def train_source(
    source: Source,
    track: list[str] | None = None,
    no_ray: bool = False,
    debug: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    take_over: bool = False,
    run_dir: Path | None = None,
    seed: int | None = None,
    grace: float = GRACE_S,
    as_json: bool = False,
) -> None:
    """`train` of a configuration that has been read; arguments as there."""
    values: dict[str, Any] = {**source.values, **({} if seed is None else {"seed": seed})}
    if track:
        values["track"] = list(dict.fromkeys([*values.get("track", ["tensorboard"]), *track]))

    from wmrl_ray.run.folder import RunDir
    from wmrl_ray.run.lock import only_writer

    config = run_config(values)
    run = RunDir(run_dir or source.run_dir or Path("runs") / source.label / f"{config.algorithm}-seed{config.seed}")
    check(not run.path.exists() or run.path.is_dir(), f"run folder {run.path} is a file; choose another --run-dir")
    with only_writer(run.path, take_over=take_over):
        _train(config, run, no_ray, debug, resume, overwrite, grace, as_json)


def _train(
    config: RunConfig, run: RunDir, no_ray: bool, debug: bool, resume: bool, overwrite: bool, grace: float, as_json: bool
) -> None:
    from wmrl_ray.trackers import Trackers

    check_dataset(config, run, resume)
    if not prepare_folder(run, config, resume=resume, overwrite=overwrite, no_ray=no_ray):
        print(f"{run.path} has finished its {config.num_updates:,} updates already; --set num_updates=N trains it further")
        return

    display = make_display(config, run.path, as_json)
    stop = StopRequest(
        lambda name: display.note(f"{name}: stopping after this call, then a checkpoint; Ctrl-C again stops at once"),
        grace_s=grace,
        on_overdue=lambda: display.note(f"no checkpoint within --grace {grace:g} s: stopping at the last one"),
    )

    replaced = ReplacedRun(run.path, overwrite and run.exists())

    def on_event(event: Event) -> None:
        replaced.delete()  # Why now: the new run has passed every check, and has begun
        stop.install()
        display.on_event(event)
        trackers.on_event(event)

    with display, stop, replaced, Trackers.open(config, run.path) as trackers:
        result = _loop(config, no_ray, debug)(config, run.path, resume=resume, on_event=on_event, should_stop=stop)
    _conclude(run, result, no_ray, debug, stop, display)


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Raises ConfigError, for a misspelt setting of the agent too: before any dataset is read."""
    from wmrl_ray.core.agents import agent_config
    from wmrl_ray.run.config import RunConfig

    config = from_dict(RunConfig, values)
    agent_config(config.algorithm, config.agent)
    return config


def check_dataset(config: RunConfig, run: RunDir, resume: bool) -> None:
    """Raises ConfigError, with what to do, for a dataset that is not on this machine and that nobody hosts."""
    from wmrl_ray.data.source import MINARI_ID, is_local
    from wmrl_ray.rows import make_command

    if config.dataset is None or is_local(config.dataset):
        return
    absent = f"dataset {config.dataset!r} is not on this machine"
    if command := make_command(config.dataset, config.env, config.env_config):
        raise ConfigError(f"{absent}; make it: {command}")
    is_path = not MINARI_ID.fullmatch(config.dataset.removeprefix("minari://"))
    check(
        not (is_path and resume and run.exists()),
        f"{absent} any more; if it has another place or name now: "
        f"wmrl train {shlex.quote(str(run.path))} --resume --set dataset=PATH",
    )


def prepare_folder(run: RunDir, config: RunConfig, *, resume: bool, overwrite: bool, no_ray: bool) -> bool:
    """Makes the run folder ready for the loop; False when a resumed run has nothing left to do.

    Raises:
        ConfigError: it holds a run that is neither resumed nor overwritten, or one with other settings.
    """
    if not run.exists():
        return True
    newest = run.newest_checkpoint()
    reached = 0 if newest is None else int(newest.name)
    if overwrite:
        return True
    if not resume:
        state = f"{reached:,} of {run.config().num_updates:,} updates"
        ways = "continue it with --resume, start over with --overwrite, or choose another --run-dir"
        raise ConfigError(f"{run.path} already holds a run ({state}); {ways}")
    run.check_same(config)
    _check_same_loop(run, newest, no_ray)
    if reached >= config.num_updates and run.result() is not None:
        return False
    run.write_config(config)  # what a resumed run changes, e.g. a larger num_updates
    return True


def resume_command(run: RunDir, no_ray: bool, debug: bool) -> str:
    """The command that continues this run; the run folder holds its configuration."""
    flags = ["--no-ray"] * no_ray + ["--debug"] * debug
    return " ".join(["wmrl train", shlex.quote(str(run.path)), *flags, "--resume"])


def _loop(config: RunConfig, no_ray: bool, debug: bool) -> Any:
    """The training loop, with Ray or without, offline or online: same contract."""
    if no_ray and config.learns_online:
        from wmrl_ray.online import train_online

        return train_online
    if no_ray:
        from wmrl_ray.train import train as loop

        return loop
    import functools

    from wmrl_ray.rllib.train import train_on_ray

    return functools.partial(train_on_ray, debug=debug)


def _conclude(run: RunDir, result: dict[str, Any], no_ray: bool, debug: bool, stop: StopRequest, display: Any) -> None:
    """Says how the run ended and what to do next; exits with 130 after Ctrl-C."""
    finished = bool(result.get("finished", True))
    if isinstance(display, JsonLines):
        display.write({"event": "result", **result, "run_dir": str(run.path)})
    if finished:
        from wmrl_ray.report.words import duration

        speed = result["updates"] / result["seconds"] if result["seconds"] > 0 else 0.0
        summary = f"finished: {result['updates']:,} updates in {duration(result['seconds'])} ({speed:,.0f}/s)"
        if "steps" in result:
            summary += f", {result['steps']:,} steps of its own in {result['episodes']:,} episodes"
        for key, name in (("eval/score_mean", "score"), ("eval/return_mean", "return")):
            if key in result:
                summary += f", {name} {result[key]:.1f} over {result['eval/episodes']:.0f} episodes"
                break
        print(f"{summary}\n{run.path}   (next: wmrl report {shlex.quote(str(run.path))})", file=sys.stderr)
        return
    kept = "checkpoint written" if result["updates"] else "before the first checkpoint"
    print(
        f"stopped at update {result['updates']:,}, {kept}; resume with: {resume_command(run, no_ray, debug)}",
        file=sys.stderr,
    )
    if stop.received is not None and stop.received.name == "SIGINT":
        raise typer.Exit(EXIT_INTERRUPTED)


def _check_same_loop(run: RunDir, newest: Path | None, no_ray: bool) -> None:
    """Raises ConfigError when the checkpoint is of the other loop: RLlib's hold more, in another layout."""
    if newest is not None and (newest / "policy").is_dir() == no_ray:
        with_ray, fix = ("with", "resume it without --no-ray") if no_ray else ("without", "resume it with --no-ray")
        raise ConfigError(f"{run.path} was trained {with_ray} Ray, and its checkpoints continue only there; {fix}")
