"""`wmrl data`: make, list, look at, check and convert datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmrl_ray.cli.configs import agent_overrides
from wmrl_ray.config import check, did_you_mean, to_dict

if TYPE_CHECKING:
    from wmrl_ray.data.card import DatasetCard
    from wmrl_ray.data.datasets import Dataset

app = typer.Typer(help="Make, list, look at, check and convert datasets.", no_args_is_help=True)
LINE_EVERY_S = 60.0  # of progress, where there is no terminal
PICTURES = (".png", ".svg", ".pdf")
FORMATS = {".npz": "npz", ".hdf5": "hdf5", ".h5": "hdf5", ".parquet": "parquet", ".arrow": "arrow"}

Uri = Annotated[
    str, typer.Argument(metavar="URI", help="Minari id or folder, *.hdf5 (D4RL style), *.parquet, *.arrow or *.npz.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@app.command()
def make(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="For example pointmaze-umaze (an unknown name lists them all), or expert:TASK for demonstrations.",
        ),
    ],
    steps: Annotated[int | None, typer.Option(help="Environment steps; default: 1,000,000.")] = None,
    seed: Annotated[int, typer.Option(help="The dataset depends on it, and not on the number of workers.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes (with --ray: actors); 0 works in this one.")] = 0,
    use_ray: Annotated[bool, typer.Option("--ray", help="Spread the work over Ray actors, on a cluster if one runs.")] = False,
    dataset_id: Annotated[str | None, typer.Option("--id", help="Minari id to write; default: the maker's own.")] = None,
    reference_episodes: Annotated[int, typer.Option(help="Episodes behind each reference score.")] = 100,
    overwrite: Overwrite = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="expert:TASK: run or checkpoint of the expert; default: a TD-MPC2 is trained, by the configuration of TASK in "
            "tune_configs, or else with the paper's settings."
        ),
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="expert:TASK: number of demonstrations; default: the paper's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="expert:TASK: the expert acts with another setting, e.g. agent.compile=default. Repeatable.",
        ),
    ] = None,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="expert:TASK: train the expert in this process.")] = False,
    pixels: Annotated[bool, typer.Option("--pixels", help="expert:TASK: train an expert that sees images.")] = False,
) -> None:
    """Make a stand-in for a D4RL dataset with the same recipe, or an expert's demonstrations; written as a Minari dataset."""
    check(workers >= 0, f"--workers {workers}; it must not be negative")
    check(seed >= 0, f"--seed {seed}; it must not be negative")
    check(reference_episodes >= 1, f"--reference-episodes {reference_episodes}; at least 1 is needed")
    if name.startswith("expert:"):
        check(workers == 0 and not use_ray, "demonstrations are made in one process; drop --workers and --ray")
        check(episodes is None or episodes >= 1, f"--episodes {episodes}; at least 1 is needed")
        check(steps is None, f"--steps {steps}: an expert's demonstrations are counted in episodes; give --episodes")
        check(
            checkpoint is None or not (no_ray or pixels),
            "--no-ray and --pixels are about training an expert, and --checkpoint gives a trained one: drop one or the other",
        )
        task, changes = name.removeprefix("expert:"), agent_overrides(overrides or [])
        training = {"no_ray": no_ray, "pixels": pixels}
        _make_demonstrations(task, checkpoint, episodes, seed, dataset_id, reference_episodes, overwrite, changes, training)
        return
    check(
        checkpoint is None and episodes is None and not overrides and not no_ray and not pixels,
        f"--checkpoint, --episodes, --set, --no-ray and --pixels are for expert:TASK, not for {name}",
    )
    from wmrl_ray.data.makers import MAKERS, STEPS, make_dataset

    check(name in MAKERS, f"no maker {name!r}{did_you_mean(name, MAKERS)}; there are: {', '.join(MAKERS)}")
    map_shards = _map_shards(workers, use_ray)
    with progress_bar(f"making {name}", "steps") as progress:
        made = make_dataset(
            name,
            steps=STEPS if steps is None else steps,
            seed=seed,
            workers=workers,
            dataset_id=dataset_id,
            overwrite=overwrite,
            reference_episodes=reference_episodes,
            map_shards=map_shards,
            progress=progress,
        )
    print(made)


def _make_demonstrations(
    task: str,
    checkpoint: Path | None,
    episodes: int | None,
    seed: int,
    dataset_id: str | None,
    reference_episodes: int,
    overwrite: bool,
    changes: dict[str, Any],
    training: dict[str, bool],
) -> None:
    """Prints the id, and on stderr what the expert earns. training: for `trained_expert`."""
    from wmrl_ray.cli.experts import ALGORITHM, trained_expert
    from wmrl_ray.core.agents import agent_config
    from wmrl_ray.data.datasets import open_dataset
    from wmrl_ray.data.files import check_free
    from wmrl_ray.data.makers.experts import expert_dataset_id, make_demonstrations
    from wmrl_ray.data.source import check_minari_id, minari_root

    check(bool(task), "expert: names no task; for example expert:dmc/walker-walk (`wmrl envs` lists them)")
    if checkpoint is None:
        agent_config(ALGORITHM, changes)  # for its errors: the expert may take a day to train
        dataset_id = dataset_id or expert_dataset_id(task, of_images=training["pixels"])
        check_minari_id(dataset_id)
        check_free(minari_root() / dataset_id, overwrite)
        checkpoint = trained_expert(task, seed, **training)
    with progress_bar(f"demonstrations of {task}", "episodes") as progress:
        made = make_demonstrations(
            task,
            checkpoint,
            num_episodes=episodes,
            reference_episodes=reference_episodes,
            seed=seed,
            dataset_id=dataset_id,
            overwrite=overwrite,
            changes=changes,
            progress=progress,
        )
    card = open_dataset(made).card
    low = f"random policy {card.ref_min_score:.4g}"
    print(f"expert: mean return {card.return_mean:.4g} over {card.num_episodes:,} episodes ({low})", file=sys.stderr)
    print(made)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the Minari datasets on this machine."""
    from wmrl_ray.data.catalog import list_datasets

    entries = list_datasets()
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1, allow_nan=False))
        return
    if not entries:
        print("no datasets on this machine; make one: wmrl data make pointmaze-umaze")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (
        ("dataset", "left"),
        ("steps", "right"),
        ("episodes", "right"),
        ("MB", "right"),
        ("environment", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("", overflow="fold")
    for entry in entries:
        remark = f"[red]{_escape(entry.problem)}[/]" if entry.problem else "[yellow]stand-in[/]" if entry.is_stand_in else ""
        numbers = (f"{entry.num_steps:,}", f"{entry.num_episodes:,}", f"{entry.size_mb:.1f}")
        table.add_row(_escape(entry.name), *numbers, _escape(entry.env_id or ""), remark)
    _console().print(table)


@app.command()
def info(
    uri: Uri,
    picture: Annotated[Path | None, typer.Option(help="Draw the visited states, e.g. states.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the card of a dataset: sizes, statistics, scores, origin."""
    if picture is not None:
        check(picture.suffix in PICTURES, f"--picture {picture} must end in one of {', '.join(PICTURES)}")
        check(picture.parent.is_dir(), f"no such folder for the picture: {picture.parent}; create it first")
    dataset = _open(uri)
    if picture is not None:
        draw_states(dataset, picture)
    if as_json:
        print(json.dumps(to_dict(dataset.card), indent=1, allow_nan=False))
    else:
        _print_card(dataset.card, picture)


@app.command()
def verify(uri: Uri, as_json: AsJson = False) -> None:
    """Hash a dataset and its cached copy in full, and compare them with what was recorded."""
    from wmrl_ray.data import catalog

    found = catalog.verify(uri)
    if as_json:
        print(json.dumps(to_dict(found.card) | {"files": found.files}, indent=1, allow_nan=False))
    else:
        card = found.card
        print(f"{card.name} is intact: {card.num_steps:,} steps in {card.num_episodes:,} episodes, sha256 {card.sha256}")


@app.command()
def prune() -> None:
    """Delete the cached copies that older versions of wmrl made; the datasets themselves stay."""
    from wmrl_ray.data.cache import Cache

    cache = Cache()
    pruned = cache.prune()
    freed = sum(size for _, size in pruned) / 1e6
    print(f"deleted {len(pruned)} copies of older versions ({freed:.1f} MB) from {cache.folder}")


@app.command("import")
def import_(
    source: Uri,
    dataset_id: Annotated[str, typer.Argument(metavar="ID", help="Minari id to write, e.g. group/name-v0.")],
    env: Annotated[str | None, typer.Option(help="Environment to evaluate in; 'module:id' imports the module first.")] = None,
    ref_min: Annotated[float | None, typer.Option(help="Return that scores 0, where the source does not say.")] = None,
    ref_max: Annotated[float | None, typer.Option(help="Return that scores 100.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a dataset of any readable format into Minari's folder, under an id."""
    check((ref_min is None) == (ref_max is None), "give both --ref-min and --ref-max, the returns that score 0 and 100")
    from wmrl_ray.data.catalog import import_dataset

    scores = None if ref_min is None or ref_max is None else (ref_min, ref_max)
    card = import_dataset(source, dataset_id, env=env, ref_scores=scores, overwrite=overwrite).card
    print(f"{card.uri}: {card.num_steps:,} steps in {card.num_episodes:,} episodes")


@app.command()
def export(
    uri: Uri,
    path: Annotated[Path, typer.Argument(help="A file, or for Minari a folder such as name-v0.")],
    format: Annotated[str | None, typer.Option(help="npz, hdf5, parquet, arrow or minari; default: by the ending.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a dataset in another format; reading it back gives the same arrays and the same sha256."""
    from wmrl_ray.data import exporting

    written = exporting.export(uri, path, format or FORMATS.get(path.suffix, "minari"), overwrite=overwrite)
    print(written)


def draw_states(dataset: Dataset, picture: Path) -> None:
    """Writes a picture of the visited states, in the maze where there is one; of images, some of them."""
    from wmrl_ray.data.card import plot_images, plot_states

    if not isinstance(dataset.card.obs_dim, int):
        return plot_images(dataset, picture)
    layout = None
    if dataset.card.env_id is not None:
        from wmrl_ray.envs import maze_layout

        layout = maze_layout(dataset.card.env_id)
    if layout is None:
        plot_states(dataset, picture)
    else:  # the map's first row is its top, the picture's is its bottom
        plot_states(dataset, picture, walls=layout.walls[::-1], extent=layout.bounds, goal=layout.goal)


@contextlib.contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere, as in a job's log, a line on stderr every `LINE_EVERY_S`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines(title, unit)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)


def _progress_lines(title: str, unit: str) -> Callable[[int, int], None]:
    said = time.monotonic()

    def progress(completed: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            print(f"{title}: {completed:,} of {total:,} {unit}".rstrip(), file=sys.stderr, flush=True)

    return progress


def _map_shards(workers: int, use_ray: bool) -> Any:
    """The Ray version of `map`; None: the maker's own."""
    if not use_ray:
        return None
    import functools

    from wmrl_ray.rllib import compat
    from wmrl_ray.rllib.parallel import ray_map_shards

    compat.init(num_cpus=workers or None, logging_level="ERROR")  # a Ray started here ends with the process
    return functools.partial(ray_map_shards, num_workers=workers or None)


def _open(uri: str) -> Dataset:
    from wmrl_ray.data.datasets import open_dataset

    with progress_bar("reading", "") as progress:
        return open_dataset(uri, progress=progress)


def _print_card(card: DatasetCard, picture: Path | None) -> None:
    from rich.table import Table

    from wmrl_ray.report.summary import has_comparable_episodes

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    span = f"{card.episode_length_min:,} to {card.episode_length_max:,} steps; {card.num_terminated:,} end in a terminal state"
    rows = {
        "dataset": f"[bold]{_escape(card.name)}[/]",
        "size": f"{card.num_steps:,} steps in {card.num_episodes:,} episodes of {span}",
        "spaces": f"{_sizes(card.obs_dim)}, {card.action_dim} actions",
        "environment": _escape(_environment(card)),
        "return": f"mean {card.return_mean:.4g}, largest {card.return_max:.4g}",
    }
    if card.ref_min_score is not None and card.ref_max_score is not None:
        rows["score"] = f"return {card.ref_min_score:.4g} is 0, {card.ref_max_score:.4g} is 100"
        if has_comparable_episodes(to_dict(card)):
            rows["score"] += f"; the dataset's own mean is {card.normalized_score(card.return_mean):.1f}"
    else:
        rows["score"] = "no reference scores: returns cannot be normalised"
    if card.action_repeat is not None:
        rows["actions"] = f"each taken {card.action_repeat} time{'s' * (card.action_repeat != 1)} (action_repeat)"
    if card.obs_mean:
        rows["observations"] = "mean " + _numbers(card.obs_mean) + "\nstd  " + _numbers(card.obs_std)
    if card.stand_in:
        rows["stand-in"] = f"[yellow]{_escape(card.stand_in)}[/]"
    if card.description:
        rows["description"] = _escape(card.description)
    rows |= {"note": "\n".join(map(_escape, card.notes))} if card.notes else {}
    rows |= {"sha256": card.sha256, "cache": _escape(card.cache_path)}
    rows |= {"picture": _escape(str(picture))} if picture else {}
    for name, text in rows.items():
        table.add_row(name, text)
    _console().print(table)


def _environment(card: DatasetCard) -> str:
    """Its id, and what its spec says beyond the id."""
    from wmrl_ray.envs.recorded import recorded_config

    config = recorded_config(card.env_id, card.env_spec)
    about = ", ".join(f"{name} = {value!r}" for name, value in config.items())
    return (card.env_id or "none named: set env to evaluate") + (f" ({about})" if about else "")


def _sizes(obs_dim: int | tuple[int, int, int]) -> str:
    return f"{obs_dim} observations" if isinstance(obs_dim, int) else f"images of {' x '.join(map(str, obs_dim))}"


def _numbers(values: tuple[float, ...], shown: int = 8) -> str:
    return "  ".join(f"{v:8.3f}" for v in values[:shown]) + (f"  ... {len(values)} in all" if len(values) > shown else "")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console() -> Any:
    """The terminal; elsewhere a width that breaks no line of a table."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)
