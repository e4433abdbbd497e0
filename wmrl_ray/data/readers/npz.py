"""`.npz` archives, in either of two layouts.

Ours: obs [N, O] (images [N, C, h, w] uint8), action [N, A], reward [N], terminated [N], one row per observation, and
episode_starts [E+1], as in `Dataset`.
D4RL's: observations, actions, rewards, terminals and so on, see `readers.d4rl`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.d4rl import REQUIRED, check_keys, from_transitions
from wmrl_ray.data.readers.images import observations_of
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import Progress, RawDataset
from wmrl_ray.data.readers.values import actions_of, column_of, reading, row_numbers_of, unread_note

KEYS = ("obs", "action", "reward", "terminated", "episode_starts")


def read_npz(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads an archive without unpickling anything.

    Raises:
        DataError: truncated or damaged, a key missing, pickled objects inside.
    """
    archive, arrays = np.load(path, allow_pickle=False), {}
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: is a single array, not an npz archive; write it with numpy.savez")
    with archive:
        for number, name in enumerate(archive.files, start=1):
            with reading(f"{path}: {name}"):
                arrays[name] = archive[name]
            if progress is not None:
                progress(number, len(archive.files))
    where = str(path)
    if "obs" not in arrays and "observations" not in arrays:
        raise DataError(f"{where}: has {', '.join(arrays) or 'nothing'}; needed: {', '.join(KEYS)}, or {', '.join(REQUIRED)}")
    text = arrays.pop("wmrl_origin", None)
    origin, sha256 = origin_from_json(None if text is None else text.item(), path)
    if "observations" in arrays:
        notes = check_keys(list(arrays), where)
        return from_transitions(arrays, dataclasses.replace(origin, notes=(*origin.notes, *notes)), sha256, where)
    for name in KEYS:
        if name not in arrays:
            raise DataError(f"{where}: has no {name!r}; needed: {', '.join(KEYS)}")
    notes = unread_note(arrays, KEYS, where)
    obs, more = observations_of(arrays["obs"], "obs", where, own=sha256 is not None)
    return RawDataset(
        obs=obs,
        action=actions_of(arrays["action"], "action", where),
        reward=column_of(arrays["reward"], "reward", where),
        terminated=column_of(arrays["terminated"], "terminated", where),
        episode_starts=row_numbers_of(arrays["episode_starts"], "episode_starts", where),
        origin=dataclasses.replace(origin, notes=(*origin.notes, *notes, *more)),
        sha256=sha256,
    )
