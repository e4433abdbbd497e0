"""D4RL's layout, in HDF5 or npz: one row per transition, all episodes end to end.

Keys: observations [N, O] (or images, see `readers.images`), actions [N, A], rewards [N], terminals [N], and optionally timeouts
[N] (or truncations), next_observations, and OGBench's masks [N]. With masks, a row where they are 0 terminates and `terminals`
are the ends of trajectories; without, `terminals` terminate. Other keys that may say where episodes end are refused; what is
neither is noted as not read, D4RL's `infos` and `metadata` silently.

An episode ends at its terminal or timeout row, and where next_observations is not the following row's observation. The
following row is the next episode's start and says nothing about the last transition's result, so the last observation of an
episode comes from next_observations. Without those, the last transition of a truncated episode is dropped; that of a terminated
one is kept, for its reward, with its observation standing in for the unknown next one: never bootstrapped from, and, by
`Origin.terminal_obs_known`, no transition that a world model learns from. The card's notes count both.

A trajectory may go on after a terminal (antmaze's goal stays reached until the time limit). Every transition stays, each piece
is an episode, and the card's returns are those of the first pieces (`Origin.trajectories`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.data.card import Origin
from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.images import observations_of
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import Progress, RawDataset, starts_from_lengths
from wmrl_ray.data.readers.values import actions_of, column_of, flags_of, reading, same_rows, unread_note

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "truncations", "next_observations", "masks")
ASIDE = ("infos", "metadata")  # D4RL's groups of what nothing learns from
GAP = 1e-6  # a longer way from next_observations to the following row starts another episode, as in IQL's reference code


@dataclasses.dataclass(frozen=True)
class _Ends:
    """Where episodes end, row by row [N] bool. known: the file says so itself, beside its terminals."""

    terminated: np.ndarray
    trajectory: np.ndarray  # the trajectory ends here for certain: a timeout, or OGBench's terminals
    known: bool
    has_masks: bool


def read_d4rl_hdf5(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads a D4RL-style HDF5 file. Attributes that `export` wrote (environment, reference scores) are taken along.

    Raises:
        DataError: truncated or damaged, a key missing, or rows that do not fit together.
    """
    import h5py

    from wmrl_ray.data.readers.hdf5 import read_array

    with h5py.File(path, "r") as file:
        notes, arrays = check_keys(list(file), str(path)), {}
        names = [name for name in (*REQUIRED, *OPTIONAL) if name in file]
        for number, name in enumerate(names, start=1):
            arrays[name] = read_array(file, name, str(path))
            if progress is not None:
                progress(number, len(names))
        origin, sha256 = origin_from_json(file.attrs.get("wmrl_origin"), path)
    return from_transitions(arrays, dataclasses.replace(origin, notes=(*origin.notes, *notes)), sha256, str(path))


def check_keys(keys: list[str], where: str) -> list[str]:
    """Notes about keys that are not read. Raises DataError for a required one that is missing, and as `unread_note`."""
    for name in REQUIRED:
        if name not in keys:
            raise DataError(
                f"{where}: has no {name!r} (it has {', '.join(sorted(keys)[:8]) or 'nothing'}); needed: {', '.join(REQUIRED)}"
            )
    if {"timeouts", "truncations"} <= set(keys):
        raise DataError(f"{where}: has both 'timeouts' and 'truncations', which mean the same; keep one of them")
    return unread_note((key for key in keys if key.partition("/")[0] not in ASIDE), (*REQUIRED, *OPTIONAL), where)


def from_transitions(arrays: Mapping[str, Any], origin: Origin, sha256: str | None, where: str) -> RawDataset:
    """Cuts transition rows into episodes of T+1 observations.

    Raises:
        DataError: arrays of different lengths, a terminal or timeout other than 0 and 1, or nothing left.
    """
    with reading(f"{where}: observations"):
        obs, notes = observations_of(arrays["observations"], "observations", where, own=sha256 is not None)
    with reading(f"{where}: actions"):
        action = actions_of(arrays["actions"], "actions", where)
    with reading(f"{where}: rewards"):
        reward = column_of(arrays["rewards"], "rewards", where)
    flags = _flags(arrays, where)
    rows = same_rows(where, observations=obs, actions=action, rewards=reward, **flags)
    ends_at = _ends(flags, rows)
    next_obs = _next_observations(arrays, obs, where, own=sha256 is not None)
    is_end, gap = ends_at.terminated | ends_at.trajectory, np.zeros(rows, np.bool_)
    if next_obs is not None:
        gap[:-1] = differ(next_obs[:-1], obs[1:], arrays["next_observations"], arrays["observations"])
        if unmarked := int((gap & ~is_end).sum()):
            notes.append(f"{unmarked} episodes end where next_observations is not the following observation, without a timeout")
        is_end |= gap
    elif not ends_at.known:
        notes.append("no timeouts in the file: an episode that was cut by a time limit runs on into the next one")
    elif flags.get("timeouts", flags["terminals"])[0] and not is_end[-1] and is_end.sum() > 1 and rows > 1:
        raise DataError(
            f"{where}: row 0 is the end of an episode and the last row is not: the flags are one row late; shift them, or "
            "write next_observations into the file"
        )
    ends = np.flatnonzero(is_end)
    if len(ends) == 0 or ends[-1] != rows - 1:
        ends = np.append(ends, rows - 1)  # the file stops inside an episode: truncated there
    goes_on = _goes_on(ends_at, gap, next_obs is not None)[ends]
    last_obs, keep, last_notes = _last_observations(obs, next_obs, ends_at, goes_on, ends)
    if (keep == 2).any():
        origin = dataclasses.replace(origin, terminal_obs_known=False)
    cut = _Cut(np.append(0, ends[:-1] + 1), ends, last_obs, keep > 0, np.append(False, goes_on[:-1]))
    cut, cut_notes = cut.without_empty()
    if len(cut.ends) == 0:
        raise DataError(f"{where}: no episode has a known next observation; write next_observations into the file")
    trajectories, more = cut.trajectories(reward)
    notes = (*origin.notes, *notes, *last_notes, *cut_notes, *more)
    origin = dataclasses.replace(origin, notes=notes, trajectories=origin.trajectories or trajectories)
    return _assemble(obs, action, reward, ends_at.terminated, cut, origin, sha256)


def differ(next_obs: np.ndarray, following: np.ndarray, *sources: Any) -> np.ndarray:
    """[N] bool: the observation after a row is not that of the following row. sources: the arrays before any conversion."""
    if next_obs.dtype == np.uint8:
        return (next_obs != following).reshape(len(next_obs), -1).any(axis=1)
    if any(np.asarray(source).dtype == np.float16 for source in sources):  # Why: one of them may have been rounded to it
        with np.errstate(over="ignore"):
            next_obs, following = (values.astype(np.float16).astype(np.float32) for values in (next_obs, following))
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: what is not finite is found later, with its place
        return np.linalg.norm(next_obs - following, axis=1) > GAP


def _flags(arrays: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Those that the file has, [N] bool: terminals, timeouts (or truncations), masks."""
    found = {}
    for name in ("terminals", "timeouts", "truncations", "masks"):
        if name in arrays:
            with reading(f"{where}: {name}"):
                found["timeouts" if name == "truncations" else name] = flags_of(arrays[name], name, where)
    return found


def _ends(flags: Mapping[str, np.ndarray], rows: int) -> _Ends:
    timeout = flags.get("timeouts", np.zeros(rows, np.bool_))
    if "masks" in flags:
        return _Ends(~flags["masks"], flags["terminals"] | timeout, True, True)
    return _Ends(flags["terminals"], timeout, "timeouts" in flags, False)


def _next_observations(arrays: Mapping[str, Any], obs: np.ndarray, where: str, own: bool) -> np.ndarray | None:
    if "next_observations" not in arrays:
        return None
    with reading(f"{where}: next_observations"):
        next_obs, _ = observations_of(arrays["next_observations"], "next_observations", where, own)
    if next_obs.shape != obs.shape or next_obs.dtype != obs.dtype:
        raise DataError(f"{where}: next_observations {next_obs.shape} and observations {obs.shape} differ; rewrite the file")
    return next_obs


def _goes_on(ends: _Ends, gap: np.ndarray, has_next: bool) -> np.ndarray:
    """[N] bool: this row terminates, and the following one is of the same trajectory."""
    inside = ends.terminated & ~ends.trajectory & ~gap
    inside[-1] = False
    if ends.has_masks or has_next:
        return inside
    # A run of terminals up to a timeout, as antmaze's; runs end at a timeout, so only their last row can have one.
    terminal, before = ends.terminated, np.append(False, (ends.terminated & ~ends.trajectory)[:-1])
    run = np.cumsum(terminal & ~before)
    to_a_timeout = np.bincount(run, weights=terminal & ends.trajectory, minlength=1) > 0
    return inside & to_a_timeout[run]


def _last_observations(
    obs: np.ndarray, next_obs: np.ndarray | None, flags: _Ends, goes_on: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The last observation of each episode [E, O]; what becomes of its last transition [E] (0: dropped, 1: kept, 2: kept with
    an observation that only stands in); and notes.
    """
    terminated = flags.terminated[ends]
    if next_obs is not None:
        return next_obs[ends], np.ones(len(ends), np.int64), []
    known = goes_on if flags.has_masks else np.zeros(len(ends), np.bool_)
    notes = []
    if dropped := int((~terminated).sum()):
        notes.append(f"no next_observations in the file: the last transition of {dropped} truncated episodes is dropped")
    if kept := int((terminated & ~known).sum()):
        notes.append(
            f"no next_observations in the file: the last observation of {kept} terminated episodes repeats the one before it, "
            "and world models do not learn from that transition"
        )
    return obs[ends + known], np.where(terminated, 2 - known, 0), notes


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Episodes as rows of the file, each [E]: the first, the last, the observation after it, whether the last transition is
    kept, and whether the episode goes on in the trajectory of the one before it.
    """

    firsts: np.ndarray
    ends: np.ndarray
    last_obs: np.ndarray
    keep: np.ndarray
    continues: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.firsts + self.keep

    def without_empty(self) -> tuple[_Cut, list[str]]:
        empty = self.lengths == 0
        if not empty.any():
            return self, []
        kept = _Cut(*(getattr(self, field.name)[~empty] for field in dataclasses.fields(self)))
        return kept, [f"{int(empty.sum())} episodes of one transition dropped with it"]

    def trajectories(self, reward: np.ndarray) -> tuple[tuple[float, ...], list[str]]:
        """`Origin.trajectories` and a note, where trajectories go on after a terminal."""
        if not self.continues.any():
            return (), []
        total = np.append(0.0, np.cumsum(reward, dtype=np.float64))
        returns = (total[self.firsts + self.lengths] - total[self.firsts])[~self.continues]
        note = (
            f"{int(self.continues.sum())} episodes go on in a trajectory after its terminal; the card's returns are those of "
            f"{len(returns)} trajectories up to their first one"
        )
        return (float(len(returns)), float(returns.mean()), float(returns.max())), [note]


def _assemble(
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    cut: _Cut,
    origin: Origin,
    sha256: str | None,
) -> RawDataset:
    starts = starts_from_lengths(cut.lengths)
    # Row by row: the transition that each of the new rows comes from; last rows are overwritten below.
    step_of_row = np.arange(starts[-1]) - np.repeat(starts[:-1], cut.lengths + 1)
    source = np.minimum(np.repeat(cut.firsts, cut.lengths + 1) + step_of_row, len(obs) - 1)
    last_rows = starts[1:] - 1
    flat = RawDataset(
        obs=obs[source],
        action=action[source],
        reward=reward[source],
        terminated=np.zeros(len(source), np.uint8),
        episode_starts=starts,
        origin=origin,
        sha256=sha256,
    )
    flat.obs[last_rows], flat.action[last_rows], flat.reward[last_rows] = cut.last_obs, 0.0, 0.0
    flat.terminated[last_rows - 1] = terminated[cut.ends] & cut.keep
    return flat
