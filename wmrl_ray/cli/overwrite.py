"""What `--overwrite` replaces: put aside while the new run starts, and back if it does not."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

RUN_FILES = (
    "dataset.json",
    "environment.json",
    "sessions.json",
    "metrics.jsonl",
    "trajectories.npz",
    "result.json",
    "checkpoints",
    "config.json",  # last: it makes a folder a run
)


class ReplacedRun:
    """Context manager: moves the files of the run in `folder`, and nothing else that lies there, into a folder inside it.

    On exit they are moved back over whatever the new run has written, unless `delete` was called. A process that is killed
    before that leaves them in `.replaced.*`.

    active: False does nothing at all.
    """

    def __init__(self, folder: Path, active: bool):
        self._folder = folder
        self._aside = folder / f".replaced.{uuid.uuid4().hex[:12]}"
        self._active = active

    def __enter__(self) -> ReplacedRun:
        if self._active:
            self._aside.mkdir()
            try:
                _move(self._folder, self._aside)
            except BaseException:
                _move(self._aside, self._folder)
                self._aside.rmdir()
                raise
        return self

    def delete(self) -> None:
        """Deletes the replaced run."""
        if self._active:
            self._active = False
            shutil.rmtree(self._aside)

    def __exit__(self, *exc: object) -> None:
        if self._active:
            for name in RUN_FILES:
                _remove(self._folder / name)
            _move(self._aside, self._folder)
            self._aside.rmdir()


def _move(source: Path, target: Path) -> None:
    for name in RUN_FILES:
        if (source / name).exists():
            os.replace(source / name, target / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
