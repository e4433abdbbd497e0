"""`wmrl intents`: a dataset with a Manager's intents behind its observations, for its Workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wmrl_ray.cli.data import Overwrite, Uri, progress_bar
from wmrl_ray.config import check


def intents(
    uri: Uri,
    manager: Annotated[Path | None, typer.Option(help="Run or checkpoint folder of a Manager of this dataset.")] = None,
    random: Annotated[int | None, typer.Option(help="Instead: random vectors of this size, redrawn at every step.")] = None,
    dataset_id: Annotated[str | None, typer.Option("--id", help="Minari id to write; default: made of both names.")] = None,
    env: Annotated[str | None, typer.Option(help="Environment to evaluate Workers in; default: the dataset's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random vectors; default 0.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a dataset with a Manager's intents (or random vectors, the ablation) behind its observations.

    The result is a dataset like any other: `wmrl train` a Worker on it. In evaluations the Manager plans at every step.
    """
    check((manager is None) != (random is None), "give either --manager RUN or --random DIM")
    check(manager is None or seed is None, f"--seed {seed} has no effect with --manager; it is of random vectors")
    from wmrl_ray.intents import augment

    with progress_bar("intents", "rows") as progress:
        print(
            augment(
                uri,
                random if random is not None else str(manager),
                dataset_id,
                env=env,
                seed=seed or 0,
                overwrite=overwrite,
                progress=progress,
            )
        )
