"""`wmrl evaluate`: a checkpoint in its environment, without a cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmrl_ray.cli.configs import agent_overrides
from wmrl_ray.config import check
from wmrl_ray.video import check_video_path, write_video

if TYPE_CHECKING:
    from wmrl_ray.rollout import Evaluation


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run folder (its newest complete checkpoint).")],
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 20,
    env: Annotated[str | None, typer.Option(help="Another environment than the one it was trained for.")] = None,
    seed: Annotated[int, typer.Option(help="Of the episodes and of the planner's noise.")] = 0,
    num_envs: Annotated[int, typer.Option(help="Environments side by side.")] = 10,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Act with another setting, e.g. agent.plan.horizon=5. Repeatable."),
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Film episode 0, e.g. out.mp4.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a trained agent and print its return, and its score on the dataset's own scale."""
    check(episodes >= 1, f"--episodes {episodes}; at least 1 is needed")
    check(num_envs >= 1, f"--num-envs {num_envs}; at least 1 is needed")
    check(seed >= 0, f"--seed {seed}; it must not be negative")
    changes = agent_overrides(overrides or [])
    if video is not None:
        check_video_path(video)
        if sys.platform == "linux":
            os.environ.setdefault("MUJOCO_GL", "egl")  # Why: without a display MuJoCo finds no OpenGL unless told which one

    import torch

    from wmrl_ray import rollout
    from wmrl_ray.data.datasets import plain_env_id
    from wmrl_ray.policy import Policy

    torch.set_num_threads(1)
    policy = Policy.load(checkpoint, changes=changes)
    check(
        policy.agent.acts, f"{checkpoint} holds a Manager, which is judged by its Workers: wmrl intents DATASET --manager RUN"
    )
    env_id = env or policy.meta["env"]
    check(
        env_id is not None,
        f"{checkpoint} names no environment (its dataset has none, or it was trained in a class); pass --env <gymnasium id>",
    )
    is_the_runs = policy.meta["env"] is not None and plain_env_id(env_id) == plain_env_id(policy.meta["env"])
    env_config = policy.meta.get("env_config", {}) if is_the_runs else {}
    obs_dim, action_dim = rollout.env_dims(env_id, env_config)
    check(
        (obs_dim, action_dim) == (policy.agent.obs_dim, policy.agent.action_dim),
        f"environment {env_id} has {obs_dim} observations and {action_dim} actions, the policy {policy.agent.obs_dim} and "
        f"{policy.agent.action_dim}; evaluate it in {policy.meta['env'] or 'the one it was trained for'}",
    )
    evaluation = rollout.evaluate(
        policy.agent,
        env_id,
        episodes,
        env_config=env_config,
        num_envs=num_envs,
        seed=seed,
        record=False,
        frames=video is not None,
    )
    numbers = summarize(evaluation, policy.meta, env_id, seed)
    numbers |= {"env_config": env_config, "set": list(overrides or [])}
    try:
        if video is not None and evaluation.frames is not None:
            write_video(video, evaluation.frames, frames_per_second(env_id, env_config))
            numbers["video"] = str(video)
    finally:  # Why: a video that fails does not take the numbers with it
        print(json.dumps(numbers, allow_nan=False) if as_json else describe(numbers))


def summarize(evaluation: Evaluation, meta: dict[str, Any], env_id: str, seed: int) -> dict[str, Any]:
    """Means and standard deviations over episodes; the score only in the environment whose dataset defines it."""
    import numpy as np

    from wmrl_ray.data.datasets import plain_env_id

    returns = np.asarray(evaluation.returns)
    dataset = meta["dataset"] or {}
    numbers: dict[str, Any] = {
        "algorithm": meta["algorithm"],
        "update": meta["update"],
        "env": env_id,
        "dataset": dataset.get("name"),
        "seed": seed,
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "length_mean": float(np.mean(evaluation.lengths)),
        "success_mean": float(np.mean(evaluation.successes)) if evaluation.reports_success else None,
        "score_mean": None,
        "score_std": None,
        "stand_in": dataset.get("stand_in"),
    }
    low, high = dataset.get("ref_min_score"), dataset.get("ref_max_score")
    if meta["env"] and plain_env_id(env_id) == plain_env_id(meta["env"]) and low is not None and high is not None:
        scores = 100.0 * (returns - low) / (high - low)
        numbers |= {
            "score_mean": float(scores.mean()),
            "score_std": float(scores.std()),
            "ref_min_score": low,
            "ref_max_score": high,
        }
    return numbers


def describe(numbers: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = [f"{numbers['algorithm']} at update {numbers['update']:,} in {numbers['env']}, {numbers['episodes']} episodes"]
    if numbers["score_mean"] is not None:
        lines.append(
            f"  score    {numbers['score_mean']:8.1f} ± {numbers['score_std']:.1f}   on the scale of {numbers['dataset']}: "
            f"return {numbers['ref_min_score']:.4g} is 0, {numbers['ref_max_score']:.4g} is 100"
        )
    lines.append(f"  return   {numbers['return_mean']:8.2f} ± {numbers['return_std']:.2f}   (standard deviation over episodes)")
    if numbers["success_mean"] is not None:
        lines.append(f"  success  {numbers['success_mean']:8.0%}")
    lines.append(f"  length   {numbers['length_mean']:8.1f} steps")
    if numbers["stand_in"] and numbers["score_mean"] is not None:
        lines.append(f"  stand-in: {numbers['stand_in'].split('. ')[0].rstrip('.')}.")
    if numbers.get("env_config"):
        lines.append("  env      " + ", ".join(f"{name} = {value!r}" for name, value in numbers["env_config"].items()))
    if numbers["set"]:
        lines.append(f"  set      {', '.join(numbers['set'])}")
    if "video" in numbers:
        lines.append(f"  video    {numbers['video']}")
    return "\n".join(lines)


def frames_per_second(env_id: str, env_config: dict[str, Any]) -> int:
    """The environment's own rate, or 30."""
    from wmrl_ray.envs import make_env

    env = make_env(env_id, **env_config)
    try:
        return int(env.metadata.get("render_fps") or 30)
    finally:
        env.close()
