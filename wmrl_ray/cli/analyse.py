"""`wmrl analyse`: looks into a trained agent."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wmrl_ray.config import check

app = typer.Typer(help="Look into a trained agent.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Look into a trained agent."""


@app.command()
def reward(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or run folder of an agent that imitates.")],
    episodes: Annotated[int, typer.Option(help="Number of episodes; the paper takes 5.")] = 5,
    random_episodes: Annotated[
        int, typer.Option(help="Of the random policy, added to them: behaviour that earns something else.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the episodes and of the planner's noise.")] = 0,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 5,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture; its numbers go into the .json beside it.")] = Path(
        "reward.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the rewards that an imitator's critics imply with the environment's own, which it never saw."""
    check(episodes >= 1, f"--episodes {episodes}; at least 1 is needed")
    check(random_episodes >= 0, f"--random-episodes {random_episodes}; it must not be negative")
    check(num_envs >= 1, f"--num-envs {num_envs}; at least 1 is needed")
    check(seed >= 0, f"--seed {seed}; it must not be negative")
    check(out.suffix in (".png", ".svg", ".pdf"), f"-o {out} must end in .png, .svg or .pdf")
    check(out.parent.is_dir(), f"no such folder for the picture: {out.parent}; create it first")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # pixels without a display

    import torch

    from wmrl_ray.data.files import write_json
    from wmrl_ray.policy import Policy
    from wmrl_ray.report.rewards import draw_rewards
    from wmrl_ray.rewards import recover_rewards

    torch.set_num_threads(1)
    policy = Policy.load(checkpoint)
    env_id = policy.meta["env"]
    check(env_id is not None, f"{checkpoint} names no environment to act in")
    env_config = policy.meta.get("env_config") or {}
    found = recover_rewards(
        policy.agent, env_id, episodes, env_config=env_config, num_envs=num_envs, seed=seed, num_random=random_episodes
    )
    numbers: dict[str, Any] = {
        "algorithm": policy.meta["algorithm"],
        "update": policy.meta["update"],
        "env": env_id,
        "seed": seed,
        "episodes": episodes,
        "random_episodes": random_episodes,
        "steps": len(found.true),
        "pearson": found.pearson,
        "pearson_of_episodes": found.pearson_of_episodes,
        "returns": found.returns,
        "picture": str(out),
    }
    title = f"{numbers['algorithm']} at update {numbers['update']:,} in {env_id}"
    draw_rewards(found.true, found.decoded, out, title, found.pearson)
    arrays = {"lengths": found.lengths, "true": found.true.tolist(), "decoded": found.decoded.tolist()}
    write_json(out.with_suffix(".json"), numbers | arrays, indent=None)
    if as_json:
        print(json.dumps(numbers, allow_nan=False))
        return
    known = "undefined: one of the two never changes" if found.pearson is None else f"{found.pearson:.3f}"
    beside = f" and {random_episodes} of the random policy" if random_episodes else ""
    steps = f"{len(found.true):,} steps of {episodes} episodes{beside}"
    print(f"{title}\n  Pearson correlation of decoded and true rewards: {known}   ({steps})\n  {out}")
