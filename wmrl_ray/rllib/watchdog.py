"""Trials whose process hangs: each shows that it lives, and the driver ends those that have ceased to.

A thread of the trial touches a file beside Tune's folder, which all nodes share. It does so too while the trial compiles,
evaluates or waits: what stops it is a process that does not run (SIGSTOP, a machine that is gone or swaps) or that never lets
Python go on, not one that is slow. Why no limit on progress instead: none suits every cell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

MOST_EVERY_S = 10.0  # between two signs, and between two looks


@dataclass(frozen=True)
class Life:
    """Where trials show that they live. limit_s: how long one may be silent; 0: for ever."""

    folder: Path
    limit_s: float

    @property
    def every_s(self) -> float:
        return min(MOST_EVERY_S, self.limit_s / 5)

    def file(self, trial_id: str) -> Path:
        return self.folder / trial_id

    def who(self, trial_id: str) -> tuple[str, int] | None:
        """(node, pid) of the trial's process, as far as it has shown itself."""
        try:
            node, pid = self.file(trial_id).read_text().split()
            return node, int(pid)
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """In a trial: shows that this process lives, until the end of the block."""
        if self.limit_s == 0:
            yield
            return
        ended, file = threading.Event(), self.file(str(tune.get_context().get_trial_id()))
        who = f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

        def show() -> None:
            while True:
                with contextlib.suppress(OSError):  # Why: a storage that fails for a while is not this trial's death
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(who)
                if ended.wait(self.every_s):
                    return

        threading.Thread(target=show, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


class Watchdog(tune.Callback):
    """Ends the process of a trial that has shown no life for `life.limit_s`, which Tune takes for a failure.

    A trial is watched from its first sign on. Why: how long a process may need to start is not known, nor whether a node can
    write where it should.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._seen: dict[str, tuple[int, float]] = {}  # trial -> (when its file was touched, ns; how long it is silent, s)
        self._looked = time.monotonic()
        self._ended: set[str] = set()

    def cause(self, trial: Any) -> str | None:
        """One line, if it was this that ended the trial's last attempt."""
        if trial.trial_id not in self._ended:
            return None
        limit = f"trial_timeout_s = {self._life.limit_s:g} s"
        return f"its process showed no sign of life for {limit} (stopped, or hanging) and was ended"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended.discard(trial.trial_id)
        self._forget(trial.trial_id)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        passed = time.monotonic() - self._looked
        if self._life.limit_s == 0 or passed < self._life.every_s:
            return
        self._looked += passed
        for trial in trials:
            if trial.status != Trial.RUNNING:
                self._seen.pop(trial.trial_id, None)
            # Why at most twice: while this process was stopped itself, it saw nothing
            elif self._silent_s(trial.trial_id, min(passed, 2 * self._life.every_s)) > self._life.limit_s:
                self._end(trial)

    def _silent_s(self, trial_id: str, passed: float) -> float:
        try:
            stamp = self._life.file(trial_id).stat().st_mtime_ns
        except OSError:
            return 0.0
        before, silent = self._seen.get(trial_id, (0, 0.0))
        silent = silent + passed if stamp == before else 0.0
        self._seen[trial_id] = stamp, silent
        return silent

    def _end(self, trial: Any) -> None:
        who = self._life.who(trial.trial_id)
        self._forget(trial.trial_id)
        self._ended.add(trial.trial_id)
        warnings.warn(f"{trial}: {self.cause(trial)}; it is started again while max_failures allow", stacklevel=2)
        ray.kill(trial.temporary_state.ray_actor)
        # Why besides: Ray's own kill takes a while where a process is stopped, and a Ray that ends meanwhile leaves it behind
        if who is not None and who[0] == ray.get_runtime_context().get_node_id():
            with contextlib.suppress(ProcessLookupError):
                os.kill(who[1], signal.SIGKILL)

    def _forget(self, trial_id: str) -> None:
        self._seen.pop(trial_id, None)
        self._life.file(trial_id).unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Why: Tune writes it to disk for a restore, which is not done here
