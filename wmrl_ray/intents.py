"""A dataset whose observations carry a Manager's intents: what its Workers train on (Section V of the IQL-TD-MPC paper).

    augment("wmrl/pointmaze/large-v0", "runs/manager")   # -> the id of a Minari dataset; its environment plans with it

The result is a dataset like any other. It keeps a copy of its Manager, named by content: training the Manager further, or
another one in its place, changes neither the dataset nor the environment that its Workers are evaluated in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmrl_ray.checkpoint import verify
from wmrl_ray.config import check
from wmrl_ray.data.card import Origin, make_card
from wmrl_ray.data.datasets import Dataset, open_dataset, plain_env_id
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.files import atomic_folder, check_free, explained_os_errors, write_json
from wmrl_ray.data.minari_writer import write_local_minari
from wmrl_ray.data.source import check_minari_id, is_local, minari_root
from wmrl_ray.envs.intents import intent_env_id, load_manager, split_intent_env_id
from wmrl_ray.policy import find_checkpoint

if TYPE_CHECKING:
    from wmrl_ray.core.agents.manager import Manager

ROWS = 32_768  # of one step of the pass
Progress = Callable[[int, int], None]


def augment(
    uri: str,
    source: str | Path | int,
    dataset_id: str | None = None,
    *,
    env: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> str:
    """Writes the dataset at `uri` with intents behind its observations [O] -> [O + D], and returns its Minari id.

    A pass that is broken off goes on where it was when it is started again.

    Args:
        source: a Manager's run or checkpoint, or a number D: random vectors of U(0, 1)^D, redrawn per step (Table III).
        dataset_id: of the result; default: the dataset's with `-intents-<run>` or `-random<D>` before the version.
        env: environment to evaluate in; None: the dataset's own.
        seed: of the random vectors.
        progress: called with (rows done, all rows).

    Raises:
        DataError: an id that is none or is taken, no space, or a dataset that the Manager does not fit.
        ConfigError, CheckpointError: no Manager there.
    """
    dataset = open_dataset(uri)
    card = dataset.card
    if not isinstance(card.obs_dim, int):
        raise DataError(f"the observations of {card.name!r} are images; intents are vectors behind vectors")
    if isinstance(source, int):
        check(source >= 1, f"random = {source}; a vector needs at least 1 number")
        manager, about, default = None, {"random_dim": source, "seed": seed}, f"random{source}"
    else:
        checkpoint = find_checkpoint(Path(source)).resolve()
        manager = load_manager(checkpoint)
        sha256 = _content(checkpoint)
        keep = minari_root().resolve() / ".managers" / sha256[:24]
        if manager.obs_dim != card.obs_dim:
            raise DataError(
                f"the Manager {source} reads observations of size {manager.obs_dim}, dataset {card.name!r} has {card.obs_dim}; "
                "use the Manager of this dataset"
            )
        name = _run_name(checkpoint)
        about = {"manager": str(checkpoint), "sha256": sha256, "skip": manager.config.skip}
        source, default = str(keep), f"intents-{name}"
    dataset_id = dataset_id or _default_id(card.name, default)
    check_minari_id(dataset_id)
    check_free(minari_root() / dataset_id, overwrite)

    env = env or card.env_id
    env_id = intent_env_id(source, env) if env else None
    if manager is None:
        vectors = _random_vectors(len(dataset.obs), int(source), seed, progress)
    else:
        if not keep.is_dir():
            with atomic_folder(keep) as folder:
                shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        vectors = _Pass(dataset, manager, about, minari_root() / dataset_id).run(progress)
    says = (
        f"the intents of the Manager {about['manager']} (k = {about['skip']})"
        if manager is not None
        else f"random vectors of U(0, 1)^{source}"
    )
    origin = Origin(
        env_id=env_id,
        env_spec=card.env_spec if env and card.env_id and plain_env_id(env) == plain_env_id(card.env_id) else None,
        ref_min_score=card.ref_min_score,
        ref_max_score=card.ref_max_score,
        action_repeat=card.action_repeat,
        description=f"{card.description} Behind the {card.obs_dim} numbers of each observation: {says}.",
        notes=card.notes,
        terminal_obs_known=card.terminal_obs_known,
        trajectories=card.trajectories,
        base_name=card.name,
        base_sha256=card.sha256,
    )
    arrays = {name: getattr(dataset, name) for name in ("action", "reward", "terminated", "episode_starts")}
    arrays["obs"] = np.concatenate([dataset.obs, vectors], 1)
    made = Dataset(card=make_card(arrays, origin, uri=f"minari://{dataset_id}", name=dataset_id), **arrays)
    more: dict[str, Any] = {"wmrl_intents": json.dumps({**about, "dataset": card.name, "dataset_sha256": card.sha256})}
    write_local_minari(made, dataset_id, overwrite=overwrite, more=more)
    _Pass.forget(minari_root() / dataset_id)
    return dataset_id


def augmented(
    uri: str, source: str | Path | int, *, env: str | None = None, seed: int = 0, progress: Progress | None = None
) -> str:
    """The Minari id of the dataset with these intents, which is made unless it is there. Arguments and errors: see `augment`.

    The id ends in a hash of what goes in (data and its reference scores, Manager or size and seed, environment): the same from
    any folder, another one once the Manager has been trained further.
    """
    dataset_id = augmented_id(uri, source, env=env, seed=seed)
    if is_local(f"minari://{dataset_id}"):
        return dataset_id
    return augment(uri, source, dataset_id, env=env, seed=seed, progress=progress)


def augmented_id(uri: str, source: str | Path | int, *, env: str | None = None, seed: int = 0) -> str:
    """What `augmented` returns for these arguments, without making it."""
    card = open_dataset(uri).card
    if isinstance(source, int):
        kind, content = f"random{source}", f"seed {seed}"
    else:
        kind, content = "intents", _content(find_checkpoint(Path(source)))
    parts = [card.sha256, card.ref_min_score, card.ref_max_score, kind, content, env or card.env_id]
    return _default_id(card.name, f"{kind}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]}")


def intended_states(episodes: Sequence[Episode], env_id: str) -> list[np.ndarray] | None:
    """What the intents in the observations of `episodes` point to, decoded: [T+1, O] each. None without a Manager."""
    source, _ = split_intent_env_id(env_id)
    if not isinstance(source, str):
        return None
    manager = load_manager(source)
    obs = (torch.from_numpy(episode.obs).split([manager.obs_dim, manager.intent_dim], 1) for episode in episodes)
    return [manager.decode_intent(states, intents).numpy() for states, intents in obs]


def _random_vectors(rows: int, dim: int, seed: int, progress: Progress | None) -> np.ndarray:
    """[N, D] of U(0, 1), the same whatever the pieces."""
    rng, vectors = np.random.default_rng(seed), np.empty((rows, dim), np.float32)
    for start in range(0, rows, ROWS):
        piece = vectors[start : start + ROWS]
        piece[:] = rng.uniform(size=piece.shape)
        if progress is not None:
            progress(start + len(piece), rows)
    return vectors


class _Pass:
    """The Manager's inverse dynamics over all rows, in pieces that are kept on disk until the dataset is written."""

    def __init__(self, dataset: Dataset, manager: Manager, about: dict[str, Any], target: Path):
        self.dataset, self.manager = dataset, manager
        self.key = hashlib.sha256(json.dumps([dataset.card.sha256, about]).encode()).hexdigest()
        self.vectors_file, self.done_file = self._files(target)

    @staticmethod
    def _files(target: Path) -> tuple[Path, Path]:
        return target.with_name(f".{target.name}.intents.f32"), target.with_name(f".{target.name}.intents.json")

    @classmethod
    def forget(cls, target: Path) -> None:
        for file in cls._files(target):
            file.unlink(missing_ok=True)

    def run(self, progress: Progress | None) -> np.ndarray:
        """[N, D], one row per observation."""
        rows, dim = len(self.dataset.obs), self.manager.intent_dim
        with explained_os_errors(self.vectors_file):
            self.vectors_file.parent.mkdir(parents=True, exist_ok=True)
            done = self._done(rows * dim * 4)
            mode = "r+" if done else "w+"
            vectors = np.memmap(self.vectors_file, np.float32, mode=mode, shape=(rows, dim))
            last = np.repeat(self.dataset.episode_starts[1:] - 1, np.diff(self.dataset.episode_starts))  # of each row's episode
            while done < rows:
                end = min(done + ROWS, rows)
                # The last k steps look at the episode's last state
                later = np.minimum(np.arange(done, end) + self.manager.config.skip, last[done:end])
                obs = (torch.from_numpy(self.dataset.obs[done:end].copy()), torch.from_numpy(self.dataset.obs[later]))
                vectors[done:end] = self.manager.intent(*obs).numpy()
                done = end
                vectors.flush()
                write_json(self.done_file, {"key": self.key, "rows": done})
                if progress is not None:
                    progress(done, rows)
        return vectors

    def _done(self, size: int) -> int:
        """Rows of an earlier pass of the same Manager over the same dataset."""
        try:
            kept = json.loads(self.done_file.read_text())
            complete = kept["key"] == self.key and os.path.getsize(self.vectors_file) == size
            return int(kept["rows"]) if complete else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def _run_name(checkpoint: Path) -> str:
    """`manager` for runs/manager/checkpoints/000300000."""
    folder = checkpoint.parent if checkpoint.name == "policy" else checkpoint
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return "".join(c if c.isalnum() or c == "_" else "-" for c in run.name).strip("-")


def _default_id(name: str, middle: str) -> str:
    stem, _, version = name.rpartition("-v")
    return f"{stem}-{middle}-v{version}" if version.isdigit() else f"{name}-{middle}-v0"


def _content(checkpoint: Path) -> str:
    """sha256 of a checkpoint's manifest, which holds those of its files. Raises CheckpointError."""
    verify(checkpoint)
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
