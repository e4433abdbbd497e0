"""Run directories, read back: only files, nothing else is needed (no torch, no Ray, no simulator)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wmrl_ray.config import ConfigError, read_json
from wmrl_ray.run.log import Line, read_log
from wmrl_ray.run.provenance import changed


@dataclass(frozen=True)
class Run:
    """One run directory. `warnings` says, in sentences, what is missing or damaged."""

    path: Path
    config: dict[str, Any]
    dataset: dict[str, Any]  # the dataset's card
    environment: dict[str, Any]
    lines: list[Line]
    result: dict[str, Any] | None
    warnings: list[str] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)  # environments, each from `update` on; one if never resumed

    @property
    def name(self) -> str:
        return "/".join(self.path.parts[-2:])

    @property
    def algorithm(self) -> str:
        return str(self.config["algorithm"])

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    @property
    def env_id(self) -> str | None:
        return self.config.get("env") or self.dataset.get("env_id")

    @property
    def base(self) -> tuple[str, str | None]:
        """(name, sha256) of the dataset without the vectors behind its observations; the run's own where there are none.

        sha256 is None where the dataset's card does not say: then its name is that of `wmrl intents` without the vectors'.
        """
        card = self.dataset
        if card.get("base_sha256"):
            return str(card.get("base_name")), str(card["base_sha256"])
        name = str(card.get("name"))
        if str(self.env_id).startswith(("intents:", "random-intents:")):
            return re.sub(r"-(intents-[\w-]+?|random\d+(-[0-9a-f]+)?)(?=(-v\d+)?$)", "", name), None
        return name, card.get("sha256")

    @property
    def num_updates(self) -> int:
        """Updates done, by the last line."""
        return int(self.lines[-1]["update"]) if self.lines else 0

    @property
    def is_complete(self) -> bool:
        return self.result is not None and self.num_updates >= int(self.config.get("num_updates", 0))

    @cached_property
    def evaluations(self) -> list[Line]:
        return [line for line in self.lines if "eval/return_mean" in line]

    @property
    def seconds(self) -> float:
        """Training time: the result's, or the last line's when the run has not finished."""
        known = (self.result or {}).get("seconds")
        return float(known if known is not None else (self.lines[-1].get("time_s", 0.0) if self.lines else 0.0))

    @property
    def updates_per_s(self) -> float | None:
        """Median speed of training, without evaluations where the run logged it so."""
        speeds = self.curve("time/updates_per_s")[1]
        if len(speeds):
            return float(np.median(speeds))
        return self.num_updates / self.seconds if self.seconds > 0 else None

    def final(self, key: str) -> float | None:
        """`key` of the last evaluation (never the best one: choosing it would use the test twice)."""
        value = self.evaluations[-1].get(key) if self.evaluations else None
        return None if value is None or not math.isfinite(value) else float(value)

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(update [N], value [N]) of every finite value logged under `key`."""
        points = {
            int(line["update"]): float(line[key])
            for line in self.lines
            if isinstance(line.get(key), int | float) and math.isfinite(line[key])
        }
        return np.fromiter(points.keys(), np.int64), np.fromiter(points.values(), np.float64)

    def curve_over_steps(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(agent steps [N] increasing, value [N]) of `key`; empty for a run that took no steps of its own.

        While updates catch up with the random steps at first, no step is taken: their last value counts.
        """
        (updates, values), (logged, steps) = self.curve(key), self.curve("online/steps")
        if not len(steps):
            return logged, steps
        points = dict(zip(np.interp(updates, logged, steps).round().astype(np.int64).tolist(), values.tolist(), strict=True))
        return np.fromiter(points.keys(), np.int64), np.fromiter(points.values(), np.float64)

    def metric_names(self, prefix: str) -> list[str]:
        return sorted({key for line in self.lines for key in line if key.startswith(prefix)})

    def trajectories(self) -> list[np.ndarray]:
        """Observations [T+1, O] of each episode of the last evaluation; empty when none were saved.

        Raises:
            ConfigError: the file is damaged.
        """
        return self._episodes("obs")

    def intended(self) -> list[np.ndarray]:
        """The states [T+1, O] that a Manager's intents pointed to, for each of `trajectories`; empty without a Manager."""
        return self._episodes("intended")

    def _episodes(self, name: str) -> list[np.ndarray]:
        path = self.path / "trajectories.npz"
        if not path.exists():
            return []
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if name not in arrays and name != "obs":
                    return []
                obs, offsets = arrays[name], arrays["offsets"]
            if obs.ndim != 2 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not _cuts(offsets, len(obs)):
                raise ValueError(f"obs {obs.shape} and offsets {offsets.shape} do not fit together")
            return np.split(obs, offsets[1:-1])
        except Exception as error:  # Why all: of the file's bytes zipfile, zlib and NumPy's header parser each raise their own
            raise ConfigError(
                f"{path}: not a readable trajectories file ({error}); delete it or repeat the evaluation"
            ) from error


def _cuts(offsets: np.ndarray, length: int) -> bool:
    """Whether offsets [E+1] cut 0..length into pieces, none of them empty."""
    return len(offsets) > 1 and offsets[0] == 0 and offsets[-1] == length and bool((np.diff(offsets) > 0).all())


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The run directories among `paths` and below them, in order, each once.

    Raises:
        ConfigError: a path that is missing, or holds no run.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if not given.exists():
            raise ConfigError(f"no such run directory: {given}")
        here = [given] if (given / "config.json").exists() else sorted(p.parent for p in given.rglob("config.json"))
        here = [p for p in here if "checkpoints" not in p.parts[len(given.parts) :]]
        if not here:
            raise ConfigError(f"{given} holds no run (no config.json in it or below); give the folder that `wmrl train` wrote")
        found += [p for p in here if p.resolve() not in {q.resolve() for q in found}]
    return found


def read_run(path: Path) -> Run:
    """Reads one run directory.

    Raises:
        ConfigError: config.json is missing or unreadable.
    """
    warnings: list[str] = []
    config = _read_json(path / "config.json")
    if config is None or "algorithm" not in config:
        raise ConfigError(f"{path}: config.json is missing or names no algorithm, so this is not a run directory")
    dataset = _read_json(path / "dataset.json")
    if dataset is None and config.get("dataset") is None and config.get("env"):
        dataset = {"name": str(config["env"]), "env_id": config["env"]}  # it learned from its own steps alone
    if dataset is None:
        warnings.append("dataset.json is missing: scores cannot be tied to a dataset or its reference scores")
    lines = _read_lines(path / "metrics.jsonl", warnings)
    result = _read_json(path / "result.json")
    environment = _read_json(path / "environment.json")
    if environment is None:
        warnings.append("environment.json is missing: versions and hardware are unknown")
    recorded = _read_json(path / "sessions.json")
    sessions = [{"update": 0, **(environment or {})}] if recorded is None else recorded["sessions"]
    warnings += _changes(sessions)
    card = dataset or {"name": str(config.get("dataset"))}
    run = Run(path, config, card, environment or {}, lines, result, warnings, sessions)
    planned = int(config.get("num_updates", 0))
    if not run.is_complete:
        warnings.append(f"incomplete: {run.num_updates} of {planned} updates; its last evaluation is what the tables show")
    if run.algorithm == "manager":
        pass  # its actions are not the environment's: it is judged by its Workers
    elif not run.evaluations:
        warnings.append("no evaluation yet: it is left out of the tables")
    elif run.is_complete and run.evaluations[-1]["update"] < planned:
        warnings.append(f"the last evaluation is at update {run.evaluations[-1]['update']}, not at {planned}")
    return run


def _changes(sessions: Sequence[dict[str, Any]]) -> list[str]:
    """Of what was done by other code or elsewhere than what came before it."""
    return [
        f"from update {now['update']:,} on it is the work of another session, which differs in {', '.join(keys)}"
        for before, now in pairwise(sessions)
        if (keys := changed(before, now))
    ]


def _read_json(path: Path) -> dict[str, Any] | None:
    way_out = "delete it, and resume the run: it writes it again" if path.name == "result.json" else "restore it"
    return read_json(path, way_out) if path.exists() else None


def _read_lines(path: Path, warnings: list[str]) -> list[Line]:
    """The whole lines of metrics.jsonl in the order of updates. A run that was killed may end in half a line."""
    if not path.exists():
        warnings.append("metrics.jsonl is missing: nothing was logged")
        return []
    log = read_log(path)
    warnings += [f"line {number} of metrics.jsonl is damaged; it is ignored" for number in log.damaged]
    if log.is_cut:
        warnings.append("the last line of metrics.jsonl is cut off (the run was killed while writing); it is ignored")
    lines: list[Line] = []
    for line in log.lines:
        if lines and line["update"] < lines[-1]["update"]:  # resumed from an older checkpoint: it replaces what it repeats
            lines = [old for old in lines if old["update"] < line["update"]]
        lines.append(line)
    return lines


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every run under `paths`."""
    return [read_run(path) for path in find_runs(paths)]
