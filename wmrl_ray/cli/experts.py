"""The expert behind `wmrl data make expert:TASK`: a TD-MPC2, trained where none is given."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from wmrl_ray.cli.configs import Source, read_available
from wmrl_ray.config import check, did_you_mean

ALGORITHM = "tdmpc2"
# Agent steps of TD-MPC2's published curves, one update each: half of 4 M and 14 M simulator steps, whose actions are repeated
# twice (DMControl, ManiSkill), and all of MyoSuite's 2 M
STEPS, LONG_STEPS = 2_000_000, 7_000_000
LONG = ("dog-", "humanoid-")
IMAGES = 250_000  # steps in the replay, 9 GB


def trained_expert(task: str, seed: int, *, no_ray: bool = False, pixels: bool = False) -> Path:
    """The run folder of a TD-MPC2 of this task, trained now as far as it is not; says on stderr how and where.

    Raises:
        ConfigError: nothing says how to train one, or its training was stopped before its end.
    """
    from wmrl_ray.cli.train import train_source
    from wmrl_ray.rollout import env_dims
    from wmrl_ray.run.folder import RunDir

    source = find_config(task, pixels)
    about = f"as configured by {source.label}" if source is not None else ""
    if source is None:
        source = default_config(task, pixels)
        about = (
            f"as in TD-MPC2's paper, for nothing in tune_configs trains {task}: 5 M parameters, "
            f"{source.values['num_updates']:,} updates, which take days without a GPU"
        )
    env_dims(task, source.values.get("env_config"))  # for its error, before days of training are announced
    run = RunDir(Path("runs") / source.label / f"{ALGORITHM}-seed{seed}")
    print(f"expert: {run.path}, trained {about}", file=sys.stderr)
    train_source(source, no_ray=no_ray, resume=run.exists(), run_dir=run.path, seed=seed)
    check(run.result() is not None, f"the expert's training has not finished; repeat the command to go on with {run.path}")
    return run.path


def find_config(task: str, pixels: bool) -> Source | None:
    """The first configuration in tune_configs of a TD-MPC2 in this task, from images or not; the user's own come first."""
    for source in read_available():
        values = source.values
        sees_pixels = (values.get("env_config") or {}).get("obs") == "pixels"
        if (values.get("algorithm"), values.get("env"), sees_pixels) == (ALGORITHM, task, pixels):
            return source
    return None


def default_config(task: str, pixels: bool) -> Source:
    """TD-MPC2's own settings, which the agent and the environment have as defaults, at the length of its published runs.

    Raises:
        ConfigError: no environment that `wmrl envs` knows, or one without images.
    """
    from wmrl_ray.envs.catalog import FAMILIES, known_ids

    family = next((family for family in FAMILIES if family.holds(task)), None)
    check(
        family is not None,
        f"no expert of {task}{did_you_mean(task, known_ids())}: give one with --checkpoint RUN, or add a configuration to "
        f"tune_configs with algorithm: {ALGORITHM}, env: {task}",
    )
    assert family is not None
    check(family.has_pixels or not pixels, f"--pixels: {family.name} has states only; drop it")
    values: dict[str, Any] = {
        "algorithm": ALGORITHM,
        "env": task,
        "num_updates": LONG_STEPS if task.rpartition("/")[2].startswith(LONG) else STEPS,
        "updates_per_call": 500,
        "eval_every": 50_000,
        "eval_episodes": 10,
        "checkpoint_every": 10_000,
        "log_every": 1_000,
    }
    if pixels:
        values |= {"env_config": {"obs": "pixels"}, "online": {"capacity": IMAGES}}
    return Source(f"{task.replace('/', '-')}{'-pixels' * pixels}-{ALGORITHM}", values)
