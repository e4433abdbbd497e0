"""The folder that records a run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError, check, flatten, from_dict, read_json, to_dict
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.data.files import (
    as_json,
    despite_full_disk,
    is_full,
    recover_all,
    remove_partials,
    replacing,
    write_json,
    write_text,
)
from wmrl_ray.data.source import is_local
from wmrl_ray.run.config import FROM_ENVIRONMENT, RunConfig
from wmrl_ray.run.log import FILE as LOG
from wmrl_ray.run.log import as_log, read_log
from wmrl_ray.run.provenance import Provenance, describe_environment, with_session
from wmrl_ray.run.settings import MAY_CHANGE, is_among, of_record

if TYPE_CHECKING:
    import numpy as np

    from wmrl_ray.data.datasets import Dataset
    from wmrl_ray.rollout import Evaluation

SESSIONS = "sessions.json"


class RunDir:
    """The folder of a run.

    It holds config.json, dataset.json (where there is a dataset), environment.json, sessions.json (of a resumed run),
    metrics.jsonl, trajectories.npz (of vector observations), checkpoints/, result.json, and tensorboard/ unless `track` leaves
    it out.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._waiting: list[str] = []  # lines of the log that found no room on the disk
        self._time_before, self._started = 0.0, time.monotonic()

    # -- writing ------------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: RunConfig, dataset: Dataset | None) -> RunDir:
        """A new run folder. Raises ConfigError if it already holds a run."""
        run = cls(path)
        if run.exists():
            raise ConfigError(f"{run.path} already holds a run; resume it (--resume) or choose another folder (--run-dir)")
        run.path.mkdir(parents=True, exist_ok=True)
        if dataset is not None:
            write_json(run.path / "dataset.json", to_dict(dataset.card))
        write_json(run.path / "environment.json", describe_environment())
        run.write_config(config)
        return run

    def write_config(self, config: RunConfig) -> None:
        """Written last at creation (it makes the folder a run), and again when a resumed run trains further."""
        values = to_dict(config.resolved())
        before = to_dict(self.config()) if self.exists() else {}
        for key in FROM_ENVIRONMENT:  # what the run has found out stays
            if values["agent"].get(key, 0) is None:
                values["agent"][key] = before.get("agent", {}).get(key)
        if values["device"] == "auto":
            values["device"] = before.get("device", "auto")
        if not config.learns_online:
            del values["online"]
        write_json(self.path / "config.json", values)

    def open_metrics(self, start_update: int) -> None:
        """Begins a session and its log; lines after `start_update` (of a run that died after its checkpoint) are dropped."""
        remove_partials(self.path)
        before = self.sessions()
        if (sessions := with_session(before, start_update)) != before:
            write_json(self.path / SESSIONS, {"sessions": sessions})
        if damaged := read_log(self.path / LOG).damaged:
            where = ", ".join(map(str, damaged))
            warnings.warn(f"{self.path / LOG} is damaged in line {where}: dropped, the others stay", stacklevel=2)
        kept = [line for line in self.read_metrics() if line["update"] <= start_update]
        self._time_before = kept[-1]["time_s"] if kept else 0.0
        write_text(self.path / LOG, as_log(kept))
        self._waiting.clear()
        self._started = time.monotonic()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """On a full disk the line waits, with a warning, until a later one is written.

        Raises OSError when it cannot be written for another reason: then no part of the line is there.
        """
        self._require()
        line = {"update": update, "time_s": round(self.seconds(), 3), **metrics}
        file, waited = self.path / LOG, len(self._waiting)
        self._waiting.append(as_json(line, str(file)) + "\n")
        before = file.stat().st_size if file.exists() else 0
        try:
            with open(file, "a") as f:
                f.write("".join(self._waiting))
        except OSError as error:
            os.truncate(file, before)
            if not is_full(error):
                raise OSError(error.errno, error.strerror, str(file)) from None
            if not waited:
                warnings.warn(f"{error.strerror}: lines of {file} wait until there is room", stacklevel=2)
        else:
            self._waiting.clear()

    def seconds(self) -> float:
        """Training time of this run, earlier sessions included."""
        return self._time_before + time.monotonic() - self._started

    def checkpoint_path(self, update: int) -> Path:
        return self.path / "checkpoints" / f"{update:08d}"

    def save_trajectories(self, evaluation: Evaluation, intended: Sequence[np.ndarray] | None = None) -> None:
        """The evaluated episodes, for pictures: obs [sum(T+1), O], offsets [E+1], returns [E], lengths [E].

        Args:
            intended: [T+1, O] of each episode, the states that its Manager's intents point to; saved beside obs.
        """
        import numpy as np

        episodes = evaluation.episodes
        arrays: dict[str, Any] = {
            "obs": np.concatenate([e.obs for e in episodes]).astype(np.float32),
            "offsets": np.cumsum([0, *(len(e.obs) for e in episodes)]),
            "returns": np.array([e.episode_return for e in episodes]),
            "lengths": np.array([len(e) for e in episodes]),
        }
        if intended is not None:
            arrays["intended"] = np.concatenate(intended).astype(np.float32)
        file = self.path / "trajectories.npz"
        with despite_full_disk(f"{file} is not that of the last evaluation"), replacing(file) as partial:
            np.savez_compressed(partial, **arrays)

    def finish(self, result: Mapping[str, Any]) -> None:
        self._require()
        write_json(self.path / "result.json", dict(result))

    def extend(self, num_updates: int) -> None:
        """A finished run that is to train up to `num_updates` has no result until it has finished again."""
        if (result := self.result()) is not None and num_updates > result["updates"]:
            (self.path / "result.json").unlink()

    def _require(self) -> None:
        """Why: what is written below a folder that somebody has removed would be a run without its beginning."""
        check(
            self.exists(), f"{self.path} was removed while the run was at work: it has ended, and nothing more is written there"
        )

    # -- reading ------------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return (self.path / "config.json").exists()

    def config(self) -> RunConfig:
        if not self.exists():
            raise ConfigError(f"{self.path} holds no run (no config.json); give the folder that `wmrl train` wrote")
        values = read_json(self.path / "config.json", "restore it, or start the run over with --overwrite")
        return from_dict(RunConfig, of_record(values))

    def sessions(self) -> list[Provenance]:
        """Where each session comes from, oldest first; of a run that was never resumed, environment.json alone has it."""
        if (file := self.path / SESSIONS).exists():
            return read_json(file, "delete it: environment.json has the first session")["sessions"]
        first = self.path / "environment.json"
        return (
            [{"update": 0, **read_json(first, "delete it, and where the run comes from is unknown")}] if first.exists() else []
        )

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl, and those that wait for room; see `log.read_log`."""
        return read_log(self.path / LOG).lines + [json.loads(line) for line in self._waiting]

    def difference(self, config: RunConfig) -> str | None:
        """In what `config` would learn something else than the run did so far: "lr = 0.1: it was started with 0.2", or None."""
        before, now = (dict(flatten(to_dict(c.resolved()))) for c in (self.config(), config))
        if before["dataset"] != now["dataset"] and self._has_content_of(now["dataset"]):
            now["dataset"] = before["dataset"]
        for key in dict.fromkeys([*before, *now]):
            old, new = before.get(key), now.get(key)  # an algorithm may have keys that another lacks
            if key.removeprefix("agent.") in FROM_ENVIRONMENT and new is None:
                continue  # Why: it follows from env and env_config, which are compared themselves
            if key.startswith("env_config.") and None in (old, new) and self._is_the_datasets(key, new if old is None else old):
                continue  # Why: a run that does not say takes it from its dataset
            if not is_among(key, MAY_CHANGE) and old != new:
                return f"{key} = {new}: it was started with {old}"
        return None

    def _is_the_datasets(self, key: str, value: Any) -> bool:
        """Whether the environment of the run's dataset has this value for `key` (env_config.x)."""
        from wmrl_ray.envs.recorded import recorded_config  # here, because most settings do not need it

        file = self.path / "dataset.json"
        card = read_json(file, "restore it") if file.exists() else {}
        recorded = recorded_config(card.get("env_id"), card.get("env_spec"), self.config().env_config)
        return dict(flatten({"env_config": recorded})).get(key) == value

    def _has_content_of(self, dataset: str | None) -> bool | None:
        """Whether the run learns from what this dataset holds, under whatever name; None: that is not known."""
        card = self.path / "dataset.json"
        if dataset is None or not is_local(dataset) or not card.exists():
            return None
        return open_dataset(dataset).card.sha256 == read_json(card, "restore it")["sha256"]

    def check_same(self, config: RunConfig) -> None:
        """Raises ConfigError when `config` would learn something else than the run did so far, or from something else."""
        check(
            self._has_content_of(config.dataset) is not False,
            f"cannot resume {self.path} with dataset = {config.dataset}: it learned from other content than there is now "
            f"({self.path / 'dataset.json'} has its sha256); --set dataset=PATH of that, or choose another --run-dir",
        )
        if difference := self.difference(config):
            raise ConfigError(
                f"cannot resume {self.path} with {difference}; "
                f"resume with `wmrl train {shlex.quote(str(self.path))} --resume`, or choose another --run-dir"
            )

    def result(self) -> dict[str, Any] | None:
        """What `finish` recorded; None for a run that has not finished."""
        file = self.path / "result.json"
        return read_json(file, "delete it, and resume the run: it writes it again") if file.exists() else None

    def last_evaluation(self) -> dict[str, float]:
        """The `eval/` metrics of the last evaluation, or nothing."""
        lines = [line for line in self.read_metrics() if "eval/return_mean" in line]
        return {name: value for name, value in lines[-1].items() if name.startswith("eval/")} if lines else {}

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; None if there is no checkpoint at all.

        A damaged one is passed over with a warning. Raises CheckpointError if all are damaged.
        """
        recover_all(self.path / "checkpoints")
        candidates = self._checkpoints()
        for path in reversed(candidates):
            try:
                checkpoint.verify(path)
            except CheckpointError as error:
                warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
            else:
                return path
        if candidates:
            raise CheckpointError(f"all {len(candidates)} checkpoints of {self.path} are damaged; start over with --overwrite")
        return None

    def save_checkpoint(self, update: int, write: Callable[[Path], object], *, must: bool) -> str | None:
        """A checkpoint at `update` by `write(path)`; older ones are pruned.

        Args:
            must: a full disk is an error. Otherwise the run may go on without this one.

        Returns: one line when the disk is full.
        """
        self._require()
        try:
            write(self.checkpoint_path(update))
        except OSError as error:
            if must or not is_full(error):
                raise
            return f"no checkpoint at update {update:,}: {error.strerror}: {error.filename}; training goes on"
        self.prune_checkpoints(update, self.config().num_to_keep)
        return None

    def prune_checkpoints(self, update: int, keep: int) -> None:
        """Deletes all but the newest `keep` checkpoints up to `update`, and what killed processes left half-written.

        `update` is that of a checkpoint just written. Later ones are of a history that is no more: damaged, and passed over.
        """
        ours = [path for path in self._checkpoints() if int(path.name) <= update]
        leftovers = [p for p in (self.path / "checkpoints").iterdir() if p.name.startswith(".")]
        for path in [*set(self._checkpoints()) - set(ours[-keep:]), *leftovers]:
            path.unlink() if path.is_symlink() else shutil.rmtree(path)

    def _checkpoints(self) -> list[Path]:
        """Oldest first."""
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
