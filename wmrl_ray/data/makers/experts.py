"""Demonstrations for imitation: episodes of a trained expert's evaluation policy, as many as the IQ-MPC paper takes.

    make_demonstrations("dmc/walker-walk", "runs/dmc-walker-walk-tdmpc2/tdmpc2-seed0")   # -> "wmrl/expert/walker-walk-v0"

Scores are on a scale of their own: the random policy's mean return is 0, the demonstrations' is 100. The episodes are made in
parts, each from a seed of its own; a pass that is broken off goes on after its last part when it is started again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import check
from wmrl_ray.data.card import Origin
from wmrl_ray.data.datasets import dataset_from_episodes
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.files import atomic_path, check_free, explained_os_errors
from wmrl_ray.data.minari_writer import write_local_minari
from wmrl_ray.data.source import check_minari_id, minari_root

PREFIX = "expert:"
PART = 10  # episodes that are made in one go, side by side

Progress = Callable[[int, int], None]


def paper_episodes(task: str) -> int:
    """The number of demonstrations in the IQ-MPC paper (Section 5.1, Appendix E.1)."""
    name = task.rpartition("/")[2]
    if name == "dog-run":
        return 1000
    return 500 if name.startswith(("dog-", "humanoid-")) else 100


def expert_dataset_id(task: str, *, of_images: bool = False) -> str:
    """`dmc/walker-walk` -> `wmrl/expert/walker-walk-v0`, or `wmrl/expert/walker-walk-visual-v0`."""
    name = re.sub(r"[^a-z0-9-]+", "-", re.sub(r"-v\d+$", "", task.rpartition("/")[2]).lower())
    return f"wmrl/expert/{name}{'-visual' * of_images}-v0"


def make_demonstrations(
    task: str,
    checkpoint: str | Path,
    *,
    num_episodes: int | None = None,
    reference_episodes: int = 100,
    seed: int = 0,
    device: str = "auto",
    dataset_id: str | None = None,
    overwrite: bool = False,
    changes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> str:
    """Collects the expert's episodes into a Minari dataset and returns its id.

    Args:
        task: environment id; the expert was trained in it.
        checkpoint: run or checkpoint folder of the expert. It acts as in evaluations, without exploring.
        num_episodes: None: the paper's (`paper_episodes`).
        reference_episodes: of the random policy, for the score scale.
        seed: of the episodes, the planner's noise and the random policy.
        dataset_id: default `expert_dataset_id(task)`.
        overwrite: replace a dataset of that id.
        changes: settings of the agent to act with instead of the checkpoint's, such as {"precision": "bfloat16"}.
        progress: called with (episodes made, all episodes).

    Raises:
        CheckpointError: no expert there.
        DataError: another task's expert, an id that is none or exists (without `overwrite`), an expert that earns no more than
            the random policy, a full disk. Nothing half-written is left under the id.
    """
    from wmrl_ray.policy import Policy, find_checkpoint
    from wmrl_ray.rollout import action_repeat
    from wmrl_ray.train import resolve_device

    count = paper_episodes(task) if num_episodes is None else num_episodes
    check(count >= 1, f"{count} episodes; at least 1 is needed")
    check(reference_episodes >= 1, f"reference_episodes = {reference_episodes}; at least 1 is needed")
    policy = Policy.load(checkpoint, resolve_device(device), changes)
    dataset_id = dataset_id or expert_dataset_id(task, of_images=not isinstance(policy.agent.obs_dim, int))
    check_minari_id(dataset_id)
    check_free(minari_root() / dataset_id, overwrite)
    trained_for, env_config = policy.meta["env"], dict(policy.meta.get("env_config") or {})
    if trained_for != task:
        raise DataError(f"{checkpoint} was trained in {trained_for!r}, not in {task!r}; give an expert of {task}")

    of_expert = hashlib.sha256((find_checkpoint(Path(checkpoint)) / "manifest.json").read_bytes()).hexdigest()
    key = hashlib.sha256(
        json.dumps([task, of_expert, env_config, seed, reference_episodes, changes or {}]).encode()
    ).hexdigest()[:16]
    parts = minari_root() / ".parts" / f"{dataset_id.replace('/', '-')}-{key}"
    random = _random_returns(task, env_config, reference_episodes, seed, parts / "random.npz")
    episodes: list[Episode] = []
    while len(episodes) < count:
        size = min(PART, count - len(episodes))
        episodes += _part(policy.agent, task, env_config, seed, len(episodes), size, parts)
        if progress is not None:
            progress(len(episodes), count)

    returns = np.array([episode.episode_return for episode in episodes])
    if returns.mean() <= random.mean():
        raise DataError(
            f"the expert of {checkpoint} earns {returns.mean():.4g} over {count} episodes, the random policy "
            f"{random.mean():.4g}: it is no expert; train it further"
        )
    origin = Origin(
        env_id=task,
        description=(
            f"Demonstrations of {task} (env_config {json.dumps(env_config)}): {count} episodes of a {policy.meta['algorithm']} "
            f"agent's evaluation policy after {policy.meta['update']:,} updates (checkpoint sha256 {of_expert[:12]}"
            f"{f', acting with {json.dumps(changes)}' if changes else ''}), seed {seed}. "
            f"Reference scores: random policy {random.mean():.4g} over {len(random)} episodes (score 0), these demonstrations "
            f"{returns.mean():.4g}, standard deviation {returns.std():.4g} over episodes (score 100)."
        ),
        ref_min_score=float(random.mean()),
        ref_max_score=float(returns.mean()),
        action_repeat=action_repeat(task, env_config),
    )
    dataset = dataset_from_episodes(episodes, name=dataset_id, origin=origin)
    more = {
        "algorithm_name": policy.meta["algorithm"],
        "author": {"wmrl_ray"},
        "num_episodes_average_score": reference_episodes,
    }
    write_local_minari(dataset, dataset_id, overwrite=overwrite, more=more)
    shutil.rmtree(parts, ignore_errors=True)
    return dataset_id


def _part(agent: Any, task: str, env_config: dict[str, Any], seed: int, first: int, size: int, folder: Path) -> list[Episode]:
    """Episodes `first` to `first + size` - 1: made, or read where an earlier pass left them."""
    from wmrl_ray.rollout import episode_seed, evaluate

    file = folder / f"{first:06d}-{size}.npz"
    if not file.exists():
        evaluation = evaluate(
            agent, task, size, env_config=env_config, num_envs=size, seed=episode_seed(seed, first), record=True
        )
        arrays = {
            f"{i:04d}_{name}": np.asarray(getattr(episode, name))
            for i, episode in enumerate(evaluation.episodes)
            for name in ("obs", "action", "reward", "terminated")
        }
        _save(file, arrays)
    with np.load(file, allow_pickle=False) as found:
        return [
            Episode(
                found[f"{i:04d}_obs"], found[f"{i:04d}_action"], found[f"{i:04d}_reward"], bool(found[f"{i:04d}_terminated"])
            )
            for i in range(size)
        ]


def _random_returns(task: str, env_config: dict[str, Any], count: int, seed: int, file: Path) -> np.ndarray:
    """[count], one episode after the other: those that end first would be the short ones."""
    from wmrl_ray.collect import Collector

    if not file.exists():
        collector, returns = Collector(task, env_config, 1, seed=(seed, 1)), []
        try:
            while len(returns) < count:
                returns += [episode.episode_return for episode in collector.collect(None, 1)]
        finally:
            collector.close()
        _save(file, {"returns": np.array(returns)})
    with np.load(file, allow_pickle=False) as found:
        return found["returns"]


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with explained_os_errors(file), atomic_path(file) as unfinished, open(unfinished, "wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        f.flush()
        os.fsync(f.fileno())
