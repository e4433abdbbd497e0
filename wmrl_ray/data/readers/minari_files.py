"""Minari datasets, read from their files: 1e6 steps take seconds, where Minari's own episode objects take minutes.

Observations that are one image, a Box [C, h, w] of uint8, stay so. Those of a Dict space are joined in the order of the space,
recursively, as gymnasium's `FlattenObservation` does. Actions of a Box other than [-1, 1] are rescaled to [-1, 1];
`envs.make_env` rescales the environment alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.images import channel_axis, channels_first, image_notes
from wmrl_ray.data.readers.raw import ACTION_TOLERANCE, Progress, RawDataset, starts_from_lengths
from wmrl_ray.data.readers.values import flags_of, reading

# Packages whose ids are registered without a module in the id: by Gymnasium, or by the family that makes them.
_REGISTERED = ("gymnasium", "gymnasium_robotics", "wmrl_ray", "myosuite", "mani_skill")
EPISODE_KEYS = ("observations", "actions", "rewards", "terminations", "truncations", "infos", "episode_id")


@dataclass(frozen=True)
class Leaf:
    """One Box inside the observation space: its path of keys, its shape, flat size and first column in the joined observation.

    channels: the axis of an image's channels (`images.channel_axis`), None: it is no image.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    column: int
    channels: int | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def read_minari(folder: Path, progress: Progress | None = None) -> RawDataset:
    """Reads `folder`/data in the hdf5, arrow or parquet layout.

    Raises:
        DataError: damaged, not Minari, or spaces that cannot become flat float32 arrays.
    """
    metadata = read_metadata(folder)
    where = str(metadata.get("dataset_id", folder))
    own = metadata.get("wmrl_sha256") is not None
    leaves = _leaves(_space(metadata, "observation_space", where), where, own)
    bounds = _action_bounds(_space(metadata, "action_space", where), where)
    layout = metadata.get("data_format", "hdf5")
    num_episodes = int(metadata.get("total_episodes", 0))
    if num_episodes == 0:
        raise DataError(f"{where}: the dataset is empty; it needs at least one episode")
    if layout == "hdf5":
        from wmrl_ray.data.readers.minari_hdf5 import read_episodes
    elif layout in ("arrow", "parquet"):
        from wmrl_ray.data.readers.minari_arrow import read_episodes
    else:
        raise DataError(f"{where}: data_format = {layout!r} is not known; allowed: 'hdf5', 'arrow', 'parquet'")
    raw = read_episodes(folder / "data", metadata, leaves, len(bounds[0]), progress)
    found, said = len(raw.obs) - num_episodes, metadata.get("total_steps")
    if said is not None and int(said) != found:
        raise DataError(f"{where}: its metadata say total_steps = {said}, its episodes have {found}; restore what is missing")
    origin = _origin(metadata, leaves)
    raw.sha256 = metadata.get("wmrl_sha256")
    image = leaves[0]
    if image.channels is not None:
        raw.obs = channels_first(raw.obs.reshape(-1, *image.shape), image.channels)
        origin = dataclasses.replace(origin, notes=(*origin.notes, *image_notes(image.shape, image.channels)))
    raw.origin = dataclasses.replace(origin, notes=(*origin.notes, *raw.origin.notes))
    _rescale(raw, bounds, where)
    return raw


def read_metadata(folder: Path) -> dict[str, Any]:
    """`data/metadata.json` of a Minari dataset folder."""
    path = folder / "data" / "metadata.json"
    with reading(f"{path} as Minari metadata"):
        metadata = json.loads(path.read_text())
        if not isinstance(metadata, dict):
            raise TypeError(f"it holds a {type(metadata).__name__}, not an object")
        return metadata


def environment_of(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(id, EnvSpec as JSON) of the environment to evaluate in: `eval_env_spec`, or the one that the data were recorded in.

    A spec has no module that registers its id: the id is written 'module:id', as `wmrl data import --env` keeps it, or else by
    the package of the spec's entry point. Raises what a spec that is none gives, for `reading` around it.
    """
    spec = metadata.get("eval_env_spec") or metadata.get("env_spec") or metadata.get("wmrl_env_spec")
    ours = metadata.get("wmrl_env_id")
    if not spec:
        return ours, None
    values = json.loads(spec)
    env_id, limit = str(values["id"]), values.get("max_episode_steps")
    if not isinstance(limit, int | None) or not isinstance(values.get("kwargs") or {}, dict):
        raise ValueError(f"its environment {env_id!r} has max_episode_steps = {limit!r} and kwargs = {values.get('kwargs')!r}")
    if ours is not None and f":{ours}".endswith(f":{env_id}"):
        return ours, spec
    package = str(values.get("entry_point") or "").partition(":")[0].partition(".")[0]
    return env_id if package in _REGISTERED or not package.isidentifier() else f"{package}:{env_id}", spec


def allocate(lengths: np.ndarray, leaves: list[Leaf], action_dim: int) -> RawDataset:
    """Empty arrays for episodes of these lengths, to be filled by `episode_slices`."""
    starts = starts_from_lengths(lengths)
    rows, obs_dim = int(starts[-1]), leaves[-1].column + leaves[-1].size
    return RawDataset(
        obs=np.empty((rows, obs_dim), np.float32 if leaves[0].channels is None else np.uint8),
        action=np.zeros((rows, action_dim), np.float32),
        reward=np.zeros(rows, np.float32),
        terminated=np.zeros(rows, np.uint8),
        episode_starts=starts,
        origin=Origin(),
    )


def check_episodes(where: str, found: int, said: int) -> None:
    """Raises DataError unless the files hold as many episodes as the metadata say."""
    if found != said:
        raise DataError(
            f"{where}: its metadata say total_episodes = {said}, its files hold {found}; restore what is missing, or write the "
            "dataset again"
        )


def check_lengths(where: str, number: int, obs: int, action: int, reward: int) -> None:
    if obs != action + 1 or reward != action or action < 1:
        raise DataError(
            f"{where}: episode {number} has {obs} observations, {action} actions and {reward} rewards; an episode of T >= 1 "
            "steps needs T+1 observations, T actions and T rewards, so repair or drop it"
        )


def ends_terminated(where: str, number: int, terminations: Any, truncations: Any, steps: int) -> bool:
    """Whether the episode terminated; only its last step may end it. truncations: None where the source has none.

    Raises:
        DataError: a flag other than 0 and 1, an end before the last step, or other than one flag for each step.
    """
    ended = False
    for name, verb, flags in (("truncations", "was truncated", truncations), ("terminations", "terminated", terminations)):
        if flags is None:
            continue
        values = flags_of(flags, name, f"{where}: episode {number}")
        if len(values) != steps:
            raise DataError(f"{where}: episode {number} has {len(values)} {name} for {steps} steps; repair or drop it")
        if values[:-1].any():
            step = int(np.argmax(values))
            raise DataError(f"{where}: episode {number} {verb} at step {step} but goes on; split the episode there")
        ended = bool(values[-1])
    return ended


def _space(metadata: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    if name not in metadata:
        raise DataError(f"{where}: its metadata has no {name}; create it with observation_space and action_space given")
    space = metadata[name]
    return json.loads(space) if isinstance(space, str) else space


def _leaves(space: dict[str, Any], where: str, own: bool) -> list[Leaf]:
    found: list[Leaf] = []
    for keys, box in _walk(space, (), where):
        column, shape = found[-1].column + found[-1].size if found else 0, tuple(int(size) for size in box["shape"])
        if 0 in shape:
            raise DataError(f"{where}: the space of {'.'.join(keys) or 'observations'} is {list(shape)}, which holds nothing")
        name = ".".join(("observations", *keys))
        is_own_image = own and box["dtype"] == "uint8" and len(shape) == 3
        axis = 0 if is_own_image else channel_axis(shape, box["dtype"], name, where)
        found.append(Leaf(keys, shape, column, axis))
    if not found:
        raise DataError(f"{where}: its observation space has nothing in it; at least one Box is needed")
    if len(found) > 1 and (images := [leaf for leaf in found if leaf.channels is not None]):
        raise DataError(
            f"{where}: {'.'.join(images[0].keys)} is an image {list(images[0].shape)} beside other observations; only an "
            "observation that is one image, or vectors, can be read"
        )
    return found


def _walk(space: dict[str, Any], keys: tuple[str, ...], where: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    name = ".".join(keys) or "observation"
    if space["type"] == "Dict":
        for key in space["subspaces"]:
            yield from _walk(space["subspaces"][key], (*keys, key), where)
    elif space["type"] != "Box":
        raise DataError(
            f"{where}: {name} is a {space['type']} space; only Box and Dict of Box can be read, convert the dataset"
        )
    else:
        yield keys, space


def _action_bounds(space: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    if space["type"] != "Box":
        raise DataError(f"{where}: the action space is {space['type']}; only a Box can be used, convert the dataset")
    shape = tuple(space["shape"])
    low, high = (np.broadcast_to(np.asarray(space[k], np.float64), shape).reshape(-1) for k in ("low", "high"))
    if 0 in shape:
        raise DataError(f"{where}: the action space is {list(shape)}, which holds nothing; at least 1 number is needed")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise DataError(
            f"{where}: the action space {low.tolist()} to {high.tolist()} has no finite bounds; give the Box finite ones"
        )
    return low, high


def _rescale(raw: RawDataset, bounds: tuple[np.ndarray, np.ndarray], where: str) -> None:
    low, high = bounds
    is_step = np.ones(len(raw.action), np.bool_)
    is_step[raw.episode_starts[1:] - 1] = False
    fixed = low == high
    span = np.where(fixed, 1.0, high - low)
    slack = ACTION_TOLERANCE * np.where(fixed, np.maximum(np.abs(low), 1.0), span)
    outside = ((raw.action < low - slack) | (raw.action > high + slack)).any(1)
    if (outside & is_step).any():
        row = int(np.argmax(outside & is_step))
        raise DataError(
            f"{where}: action {raw.action[row].tolist()} in {raw.place(row)} is outside the action space "
            f"{low.tolist()} to {high.tolist()}; repair this episode or the space"
        )
    if (low != -1).any() or (high != 1).any():
        raw.action[:] = np.where(is_step[:, None] & ~fixed, 2 * (raw.action - low) / span - 1, 0)
        notes = [f"actions rescaled to [-1, 1] from {low.tolist()} to {high.tolist()}"]
        if fixed.any():
            notes.append(f"actions {np.flatnonzero(fixed).tolist()} can have one value only, which is 0 here")
        raw.origin = dataclasses.replace(raw.origin, notes=(*raw.origin.notes, *notes))


def _origin(metadata: Mapping[str, Any], leaves: list[Leaf]) -> Origin:
    env_id, spec = environment_of(metadata)
    notes = tuple(metadata.get("wmrl_notes", ()))
    if spec and (wrappers := json.loads(spec).get("additional_wrappers")):
        names = ", ".join(str(wrapper.get("name")) for wrapper in wrappers)
        notes += (f"its environment was wrapped in {names}, which is not done here",)
    if len(leaves) > 1:
        notes += ("Dict observation joined as " + ", ".join(f"{'.'.join(leaf.keys)}[{leaf.size}]" for leaf in leaves),)
    vectors = json.loads(metadata.get("wmrl_intents") or "{}")
    return Origin(
        env_id=env_id,
        env_spec=spec,
        ref_min_score=metadata.get("ref_min_score"),
        ref_max_score=metadata.get("ref_max_score"),
        action_repeat=metadata.get("wmrl_action_repeat"),
        description=metadata.get("description") or "",
        notes=notes,
        terminal_obs_known=metadata.get("wmrl_terminal_obs_known", True),
        trajectories=tuple(metadata.get("wmrl_trajectories", ())),
        base_name=vectors.get("dataset"),
        base_sha256=vectors.get("dataset_sha256"),
    )
