"""`wmrl envs`: which environments there are, and whether this machine can make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wmrl_ray.envs.catalog import Family

STYLES = {
    "ok": "green",
    "extra missing": "dim",
    "library missing": "yellow",
    "renderer missing": "yellow",
    "broken": "bold red",
}
CHECK_TIMEOUT_S = 300
MARK = "wmrl-envs:"  # before a line of ours among what a simulator prints
HINT = (
    "Also: every other task of DMControl (dmc/DOMAIN-TASK) and of MyoSuite, and any Gymnasium id with Box spaces.\n"
    "env_config takes action_repeat, p_tremble and fixed_length for all of them."
)


def envs(
    check: Annotated[bool, typer.Option("--check", help="Really make and step each one, which takes a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the environments with their sizes, and what is missing for them; with --check, exit with 1 if one fails."""
    from wmrl_ray.envs.catalog import FAMILIES

    rows = [row for family in FAMILIES for row in describe(family)]
    if check:
        for family in FAMILIES:
            own = [row for row in rows if row["family"] == family.name]
            if own[0]["status"] == "ok":
                add_findings(own, run_check(family))
    if as_json:
        print(json.dumps(rows, indent=1, allow_nan=False))
    else:
        show(rows)
    if any("broken" in (row["status"], row["pixels"]) for row in rows):
        raise typer.Exit(1)


def describe(family: Family) -> list[dict[str, Any]]:
    """One row per environment. pixels: the status of obs="pixels", "" where the family has none."""
    status, fix = family.status()
    pixels, pixels_fix = family.status(pixels=True) if family.has_pixels else ("", "")
    about = {"status": status, "fix": fix, "pixels": pixels, "pixels_fix": pixels_fix}
    return [{"id": env_id, "family": family.name, **vars(sizes), **about} for env_id, sizes in family.environments.items()]


def show(rows: list[dict[str, Any]]) -> None:
    """The table, and below it each thing to do once."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("environment")
    for column in ("observations", "actions", "steps"):
        table.add_column(column, justify="right")
    table.add_column("status")
    table.add_column("pixels")
    family = ""
    for row in rows:
        if family and row["family"] != family:
            table.add_section()
        numbers = (str(row["obs_dim"]), str(row["action_dim"]), str(row["max_steps"]))
        words = (f"[{STYLES[row[key]]}]{row[key]}[/]" if row[key] else "" for key in ("status", "pixels"))
        head = "" if row["family"] == family else f"[bold]{row['family']}[/]"
        table.add_row(head, escape(row["id"]), *numbers, *words)
        family = row["family"]
    console.print(table)
    for name, fix in to_do(rows):
        console.print(f"[bold]{escape(name)}[/]: {escape(fix)}", soft_wrap=True)
    console.print(HINT, style="dim", highlight=False, soft_wrap=True)


def to_do(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(whose, what) for everything that is missing or broken, each once."""
    found = {}
    for row in rows:
        if row["fix"]:
            name = row["id"] if row["status"] == "broken" else row["family"]
            found[f"{name}, {row['status']}"] = row["fix"]
        if row["pixels_fix"] and row["pixels_fix"] != row["fix"]:
            found[f"{row['family']} with pixels, {row['pixels']}"] = row["pixels_fix"]
    return list(found.items())


def run_check(family: Family) -> dict[str, str]:
    """{id, or "pixels": "" or the error} of each environment, tried in a process of its own: a simulator can take it down."""
    code = f"from wmrl_ray.cli.envs import try_family; try_family({family.name!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        tried = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S)
        output, end = tried.stdout, f"its process ended with exit code {tried.returncode}"
    except subprocess.TimeoutExpired as error:
        output, end = (error.stdout or b"").decode(), f"no answer in {CHECK_TIMEOUT_S} s"
    lines = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    found = dict(json.loads(line) for line in lines)
    tries = [*family.environments, *(["pixels"] if family.has_pixels else [])]
    return {name: found.get(name, end) for name in tries}


def add_findings(rows: list[dict[str, Any]], found: dict[str, str]) -> None:
    """What the tries of one family showed."""
    for row in rows:
        if error := found[row["id"]]:
            row |= {"status": "broken", "fix": error}
        if row["pixels"] == "ok" and (error := found["pixels"]):
            row |= {"pixels": "broken", "pixels_fix": error}


def try_family(name: str) -> None:
    """Makes and steps each environment of a family; prints [id, error] for each, an empty error if it works."""
    from wmrl_ray.envs.catalog import FAMILIES

    family = next(family for family in FAMILIES if family.name == name)
    for env_id in family.environments:
        print(MARK + json.dumps([env_id, try_environment(env_id, family)]), flush=True)
    if family.has_pixels and family.status(pixels=True)[0] == "ok":
        print(MARK + json.dumps(["pixels", try_environment(next(iter(family.environments)), family, obs="pixels")]), flush=True)


def try_environment(env_id: str, family: Family, **kwargs: Any) -> str:
    """What is wrong with it, "" if nothing is."""
    import numpy as np

    from wmrl_ray.envs import make_env

    try:
        env = make_env(env_id, **kwargs)
        env.reset(seed=0)
        assert env.action_space.shape is not None
        obs, reward, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
        env.close()
    except Exception as error:  # Why all: a simulator may raise anything, and this is a report about it
        return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    if not np.isfinite(obs).all() or not np.isfinite(float(reward)):
        return "what it returns is not finite"
    sizes = family.environments[env_id]
    expected = sizes.action_dim if kwargs else (sizes.obs_dim, sizes.action_dim)
    found = env.action_space.shape[0] if kwargs else (obs.shape[0], env.action_space.shape[0])
    return "" if found == expected else f"sizes {found} instead of {expected}: another version of the simulator?"
