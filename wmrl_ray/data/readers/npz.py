"""`.npz` archives, in either of two layouts.

Ours: obs [N, O] (images [N, C, h, w] uint8), action [N, A], reward [N], terminated [N], one row per observation, and
episode_starts [E+1], as in `Dataset`.
D4RL's: observations, actions, rewards, terminals and so on, see `readers.d4rl`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmrl_ray.data.episode import DataError
from wmrl_ray.data.readers.d4rl import REQUIRED, check_keys, from_transitions
from wmrl_ray.data.readers.origin import origin_from_json
from wmrl_ray.data.readers.raw import Progress, RawDataset, damaged_as_data_error, rows_of

KEYS = ("obs", "action", "reward", "terminated", "episode_starts")


def read_npz(path: Path, progress: Progress | None = None) -> RawDataset:
    """Reads an archive without unpickling anything.

    Raises:
        DataError: truncated or damaged, a key missing, pickled objects inside.
    """
    with damaged_as_data_error(path, "npz"):
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is a single array, not an npz archive; write it with numpy.savez")
            names = archive.files
            if "obs" not in names and "observations" not in names:
                raise DataError(
                    f"{path}: has {', '.join(names) or 'nothing'}; needed: {', '.join(KEYS)}, or {', '.join(REQUIRED)}"
                )
            arrays = {}
            for number, name in enumerate(names, start=1):
                arrays[name] = archive[name]
                if progress is not None:
                    progress(number, len(names))
    origin, sha256 = origin_from_json(arrays.pop("wmrl_origin", np.array(None, object)).item(), path)
    if "observations" in arrays:
        check_keys(names, path)
        return from_transitions(arrays, origin, sha256, str(path))
    for name in KEYS:
        if name not in arrays:
            raise DataError(f"{path}: has no {name!r}; needed: {', '.join(KEYS)}")
    return RawDataset(
        obs=arrays["obs"] if arrays["obs"].dtype == np.uint8 and arrays["obs"].ndim == 4 else rows_of(arrays["obs"]),
        action=rows_of(arrays["action"]),
        reward=np.asarray(arrays["reward"], np.float32).reshape(-1),
        terminated=np.asarray(arrays["terminated"]).reshape(-1),
        episode_starts=np.asarray(arrays["episode_starts"], np.int64).reshape(-1),
        origin=origin,
        sha256=sha256,
    )
