"""D4RL's layout, in HDF5 or npz: one row per transition, all episodes end to end.

Keys: observations [N, O], actions [N, A], rewards [N], terminals [N], and optionally timeouts [N] and next_observations [N, O].
An episode ends at its terminal or timeout row, and where next_observations is not the following row's observation. The
following row is the next episode's start and says nothing about the last transition's result, so the last observation of an
episode comes from next_observations. Without those, the last transition of a truncated episode is dropped; that of a terminated
one is kept, for its reward, with its observation standing in for the unknown next one: never bootstrapped from, and, by
`Origin.terminal_obs_known`, no transition that a world model learns from. The card's notes count both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import (
    Progress,
    RawDataset,
    damaged_as_data_error,
    flags_of,
    rows_of,
    starts_from_lengths,
)

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
GAP = 1e-6  # a longer way from next_observations to the following row starts another episode, as in IQL's reference code


def read_d4rl_hdf5(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads a D4RL-style HDF5 file. Attributes that `export` wrote (environment, reference scores) are taken along.

    Raises:
        DataError: truncated or damaged, a key missing, or rows that do not fit together.
    """
    import h5py

    from wmrl_ray.data.readers.hdf5 import check_own_content

    with damaged_as_data_error(path, "D4RL-style HDF5"), h5py.File(path, "r") as file:
        check_keys(list(file), path)
        arrays = {}
        names = [name for name in (*REQUIRED, *OPTIONAL) if name in file]
        for number, name in enumerate(names, start=1):
            check_own_content(file[name].id, file.id, str(path))
            arrays[name] = file[name][()]  # type: ignore[index]
            if progress is not None:
                progress(number, len(names))
        origin, sha256 = origin_from_json(file.attrs.get("wmrl_origin"), path)
    return from_transitions(arrays, origin, sha256, str(path))


def check_keys(keys: list[str], path: Path) -> None:
    """Raises DataError for the first required key that is missing."""
    for name in REQUIRED:
        if name not in keys:
            raise DataError(
                f"{path}: has no {name!r} (it has {', '.join(sorted(keys)[:8]) or 'nothing'}); needed: {', '.join(REQUIRED)}"
            )


def from_transitions(arrays: Mapping[str, Any], origin: Origin, sha256: str | None, where: str) -> RawDataset:
    """Cuts transition rows into episodes of T+1 observations.

    Raises:
        DataError: arrays of different lengths, a terminal or timeout other than 0 and 1, or nothing left.
    """
    obs, action = rows_of(arrays["observations"]), rows_of(arrays["actions"])
    reward = np.asarray(arrays["rewards"], np.float32).reshape(-1)
    terminal = flags_of(arrays["terminals"], "terminals", where)
    timeout = flags_of(arrays.get("timeouts", np.zeros_like(terminal)), "timeouts", where)
    rows = len(obs)
    for name, values in (("actions", action), ("rewards", reward), ("terminals", terminal), ("timeouts", timeout)):
        if len(values) != rows:
            raise DataError(f"{where}: {rows} observations but {len(values)} {name}; one row per transition is needed")
    if rows == 0:
        raise DataError(f"{where}: the dataset is empty; it needs at least one episode")
    next_obs = arrays.get("next_observations")
    if next_obs is not None:
        next_obs = rows_of(next_obs)
        if next_obs.shape != obs.shape:
            raise DataError(
                f"{where}: next_observations {next_obs.shape} and observations {obs.shape} differ; rewrite the file"
            )
    is_end, notes = terminal | timeout, []
    if next_obs is not None:
        with np.errstate(invalid="ignore"):  # inf - inf: that an observation is not finite is found later, with its place
            gap = np.append(np.linalg.norm(next_obs[:-1] - obs[1:], axis=1) > GAP, False)
        if unmarked := int((gap & ~is_end).sum()):
            notes.append(f"{unmarked} episodes end where next_observations is not the following observation, without a timeout")
        is_end |= gap
    elif "timeouts" not in arrays:
        notes.append("no timeouts in the file: an episode that was cut by a time limit runs on into the next one")
    ends = np.flatnonzero(is_end)
    if len(ends) == 0 or ends[-1] != rows - 1:
        ends = np.append(ends, rows - 1)  # the file stops inside an episode: truncated there
    firsts = np.append(0, ends[:-1] + 1)
    last_obs, keep, last_notes = _last_observations(obs, next_obs, terminal[ends], ends)
    notes += last_notes
    if next_obs is None and terminal[ends].any():
        origin = dataclasses.replace(origin, terminal_obs_known=False)
    lengths = ends - firsts + keep  # keep: 1 where the last transition stays, 0 where it is dropped
    if (empty := lengths == 0).any():
        notes.append(f"{int(empty.sum())} episodes of one transition dropped with it")
        firsts, ends, last_obs, lengths = firsts[~empty], ends[~empty], last_obs[~empty], lengths[~empty]
    if len(lengths) == 0:
        raise DataError(f"{where}: no episode has a known next observation; write next_observations into the file")
    return _assemble(obs, action, reward, terminal, (firsts, ends, last_obs, lengths), origin, notes, sha256)


def _last_observations(
    obs: np.ndarray, next_obs: np.ndarray | None, terminated: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The last observation of each episode [E, O], whether its last transition is kept [E], and notes."""
    if next_obs is not None:
        return next_obs[ends], np.ones(len(ends), np.int64), []
    notes = []
    if dropped := int((~terminated).sum()):
        notes.append(f"no next_observations in the file: the last transition of {dropped} truncated episodes is dropped")
    if kept := int(terminated.sum()):
        notes.append(
            f"no next_observations in the file: the last observation of {kept} terminated episodes repeats the one before it, "
            "and world models do not learn from that transition"
        )
    return obs[ends], terminated.astype(np.int64), notes


def _assemble(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    episodes: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    origin: Origin,
    notes: list[str],
    sha256: str | None,
) -> RawDataset:
    firsts, ends, last_obs, lengths = episodes
    starts = starts_from_lengths(lengths)
    # Row by row: the transition that each of the new rows comes from; last rows are overwritten below.
    step_of_row = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths + 1)
    source = np.minimum(np.repeat(firsts, lengths + 1) + step_of_row, len(obs) - 1)
    last_rows = starts[1:] - 1
    flat = RawDataset(
        obs=obs[source],
        action=action[source],
        reward=reward[source],
        terminated=np.zeros(len(source), np.uint8),
        episode_starts=starts,
        origin=dataclasses.replace(origin, notes=(*origin.notes, *notes)),
        sha256=sha256,
    )
    flat.obs[last_rows], flat.action[last_rows], flat.reward[last_rows] = last_obs, 0.0, 0.0
    ends_kept = firsts + lengths - 1 == ends
    flat.terminated[last_rows - 1] = terminal[ends] & ends_kept
    return flat
