"""One training run: its configuration, and the folder that records it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import ConfigError, check, flatten, from_dict, to_dict
from wmrl_ray.core.agents import AGENTS, agent_config

if TYPE_CHECKING:
    import numpy as np

    from wmrl_ray.core.agents import Agent
    from wmrl_ray.data.datasets import Dataset
    from wmrl_ray.rollout import Evaluation


@dataclass(frozen=True)
class OnlineConfig:
    """How an agent takes its own steps. A step is one action of the agent in one environment, whatever its action repeat."""

    num_runners: int = 0  # actors that plan and step while learners train; 0: in the learner's process, in turn
    num_envs: int = 1  # W, environments of each runner, planned for in one call
    schedule: Literal["synchronous", "asynchronous"] = "synchronous"
    steps_per_turn: int = 1  # of every environment between two turns of the learner (1: the papers' loop), or in one request
    seed_steps: int | None = None  # random ones at first; None: see `online.Clock`
    updates_per_step: float = 1.0  # U
    capacity: int = 1_000_000  # steps in the replay; the oldest whole episodes leave
    num_demonstrations: int | None = None  # the first episodes of `dataset`; None: all
    replay_unfinished: bool = True  # when resumed; False drops the unfinished episodes of simulators that cannot repeat them
    # asynchronous: how far runners and learners may get away from each other
    max_steps_ahead: int = 1_000  # steps taken beyond what the updates so far are due for
    max_updates_ahead: int = 100  # updates made beyond what the steps so far are due for
    max_queued_episodes: int = 64  # ended, not yet in a learner's replay

    def __post_init__(self) -> None:
        counts = ("num_envs", "steps_per_turn", "capacity", "max_steps_ahead", "max_updates_ahead", "max_queued_episodes")
        for name in counts:
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        check(self.num_runners >= 0, f"num_runners = {self.num_runners}; it must not be negative")
        check(self.updates_per_step > 0, f"updates_per_step = {self.updates_per_step}; it must be positive")
        for name in ("seed_steps", "num_demonstrations"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} = {value}; it must be at least 1, or None")
        check(
            self.schedule == "synchronous" or self.num_runners >= 1,
            "schedule = 'asynchronous' with num_runners = 0; it needs at least 1 runner of its own",
        )

    @property
    def total_envs(self) -> int:
        """Of all runners."""
        return max(1, self.num_runners) * self.num_envs

    @property
    def updates_per_turn(self) -> float:
        return self.updates_per_step * self.steps_per_turn * self.total_envs


@dataclass(frozen=True)
class RunConfig:
    """What a training YAML holds. Times are counted in updates."""

    algorithm: str
    dataset: str | None = None  # URI: a Minari id, a file or a folder; None: the agent learns from its own steps alone
    env: str | None = None  # evaluation environment, and where an online agent steps; None: the dataset's own
    env_config: dict[str, Any] = field(default_factory=dict)  # its arguments, such as max_episode_steps
    seed: int = 0
    num_updates: int = 100_000
    batch_size: int = 256
    updates_per_call: int = 100  # K, gradient steps per call of a learner
    eval_every: int = 10_000  # 0: only at the end
    eval_episodes: int = 20
    checkpoint_every: int = 5_000
    num_to_keep: int = 2  # the newest checkpoints
    log_every: int = 500
    device: str = "auto"  # "auto": cuda if there is one, else cpu
    learner_resources: dict[str, float] = field(default_factory=dict)  # custom ones of Ray, for each learner actor: its nodes
    runner_resources: dict[str, float] = field(default_factory=dict)  # the same for each runner actor, of evaluations too
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # beside the run folder's own records
    num_learners: int = 0  # 0: in the driver process; 2 or more: data parallel
    num_eval_runners: int = 1  # actors that plan and step environments; 0: in the driver process
    envs_per_runner: int = 10
    max_failures: int = 3  # learners and runners lost without a new checkpoint in between; one more stops the run
    call_timeout_s: float = 3600.0  # seconds; an actor that has not answered a call or an evaluation by then is taken for dead
    placement_timeout_s: float = 600.0  # seconds; of waiting for room for the actors, when they are made or made again
    online: OnlineConfig = field(default_factory=OnlineConfig)  # of agents that learn online
    agent: dict[str, Any] = field(default_factory=dict)  # the agent's Config

    def __post_init__(self) -> None:
        periods = ("num_updates", "checkpoint_every", "log_every")
        for name in (*periods, "num_to_keep", "batch_size", "updates_per_call", "eval_episodes", "envs_per_runner"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("call_timeout_s", "placement_timeout_s"):
            check(getattr(self, name) > 0, f"{name} = {getattr(self, name)}; it must be positive")
        for name in ("eval_every", "num_learners", "num_eval_runners", "seed", "max_failures"):
            check(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}; it must not be negative")
        for name in (*periods, "eval_every"):
            value = getattr(self, name)
            check(
                value % self.updates_per_call == 0,
                f"{name} = {value} is not a multiple of updates_per_call = {self.updates_per_call}; loops stop between calls",
            )
        try:
            json.dumps(self.env_config)
        except TypeError as error:
            raise ConfigError(f"env_config = {self.env_config} cannot be recorded ({error}); use what JSON can hold") from None
        if self.algorithm in AGENTS:  # Why: an unknown one has an error of its own
            self._check_data(AGENTS[self.algorithm])

    @property
    def learns_online(self) -> bool:
        return AGENTS[self.algorithm].learns_online

    def _check_data(self, agent: type[Agent]) -> None:
        """What an agent learns from is there, and fits it."""
        name = f"algorithm = {self.algorithm!r}"
        if not agent.learns_online:
            check(self.dataset is not None, f"{name} learns from a dataset; set dataset = <Minari id, file or folder>")
            changed = [key for key in to_dict(self.online) if getattr(self.online, key) != getattr(OnlineConfig(), key)]
            check(not changed, f"{name} takes no steps of its own; drop online.{', online.'.join(changed)}")
            return
        if self.dataset is None:
            check(
                not agent.needs_demonstrations,
                f"{name} imitates; set dataset = <demonstrations>, such as those of `wmrl data make expert:TASK`",
            )
            check(self.env is not None, f"{name} steps in an environment; set env = <gymnasium id>")
            check(self.online.num_demonstrations is None, "online.num_demonstrations, but no dataset; set dataset")
        if self.online.schedule == "synchronous":
            turn = self.online.updates_per_turn
            check(
                # Why not equal: 1/3 x 3 in floating point
                abs(turn - round(turn)) < 1e-9 and round(turn) >= 1 and self.updates_per_call % round(turn) == 0,
                f"updates_per_call = {self.updates_per_call} is not a multiple of the {turn:g} updates of a turn "
                "(online: updates_per_step x steps_per_turn x num_envs x runners); loops stop between calls",
            )

    def resolved(self) -> RunConfig:
        """The same run with every default of the agent written out: what config.json keeps."""
        return replace(self, agent=to_dict(agent_config(self.algorithm, self.agent)))


@dataclass(frozen=True)
class Event:
    """What a loop tells its display.

    recovery: an actor was lost, and the run goes back to its newest checkpoint, at `update`; told before it is built again.
    warning: something else that is to be known. Both have a message, of one line.
    """

    kind: Literal["start", "update", "eval", "checkpoint", "recovery", "warning", "end"]
    update: int
    total: int
    metrics: dict[str, float]
    message: str = ""


# What a resumed run may change: how long and where it runs and what it records, not what it learns.
MAY_CHANGE = frozenset(
    [
        "num_updates",
        "eval_every",
        "eval_episodes",
        "checkpoint_every",
        "num_to_keep",
        "log_every",
        "track",
        "learner_resources",
        "runner_resources",
        "device",
        "num_eval_runners",
        "envs_per_runner",
        "max_failures",
        "call_timeout_s",
        "placement_timeout_s",
        "online.replay_unfinished",
    ]
)

# Settings of the agent that a run takes from its environment where they are None.
FROM_ENVIRONMENT = frozenset(["episode_len"])

OnEvent = Callable[[Event], None]


class RunDir:
    """The folder of a run.

    It holds config.json, dataset.json (where there is a dataset), environment.json, metrics.jsonl, trajectories.npz (of vector
    observations), checkpoints/, result.json, and tensorboard/ unless `track` leaves it out.
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
            _write_json(run.path / "dataset.json", to_dict(dataset.card))
        _write_json(run.path / "environment.json", describe_environment())
        run.write_config(config)
        return run

    def write_config(self, config: RunConfig) -> None:
        """Written last at creation (it makes the folder a run), and again when a resumed run trains further."""
        values = to_dict(config.resolved())
        before = to_dict(self.config()) if self.exists() else {}
        for key in FROM_ENVIRONMENT:  # what the run has found out stays
            if values["agent"].get(key, 0) is None:
                values["agent"][key] = before.get("agent", {}).get(key)
        if not config.learns_online:
            del values["online"]
        _write_json(self.path / "config.json", values)

    def open_metrics(self, start_update: int) -> None:
        """Begins logging; lines after `start_update` (of a run that died later than its checkpoint) are dropped."""
        kept = [line for line in self.read_metrics() if line["update"] <= start_update]
        self._time_before = kept[-1]["time_s"] if kept else 0.0
        _write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._waiting.clear()
        self._started = time.monotonic()

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """On a full disk the line waits, with a warning, until a later one is written.

        Raises OSError when it cannot be written for another reason: then no part of the line is there.
        """
        line = {"update": update, "time_s": round(self.seconds(), 3), **metrics}
        file, waited = self.path / "metrics.jsonl", len(self._waiting)
        self._waiting.append(json.dumps(line) + "\n")
        before = file.stat().st_size if file.exists() else 0
        try:
            with open(file, "a") as f:
                f.write("".join(self._waiting))
        except OSError as error:
            os.truncate(file, before)
            if not checkpoint.is_full(error):
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

        partial = self.path / f".trajectories.{os.getpid()}.npz"
        episodes = evaluation.episodes
        arrays: dict[str, Any] = {
            "obs": np.concatenate([e.obs for e in episodes]).astype(np.float32),
            "offsets": np.cumsum([0, *(len(e.obs) for e in episodes)]),
            "returns": np.array([e.episode_return for e in episodes]),
            "lengths": np.array([len(e) for e in episodes]),
        }
        if intended is not None:
            arrays["intended"] = np.concatenate(intended).astype(np.float32)
        try:
            np.savez_compressed(partial, **arrays)
            os.replace(partial, self.path / "trajectories.npz")
        except OSError as error:
            partial.unlink(missing_ok=True)
            if not checkpoint.is_full(error):
                raise
            warnings.warn(
                f"{error.strerror}: {self.path / 'trajectories.npz'} is not that of the last evaluation", stacklevel=2
            )

    def finish(self, result: Mapping[str, Any]) -> None:
        _write_json(self.path / "result.json", dict(result))

    def extend(self, num_updates: int) -> None:
        """A finished run that is to train up to `num_updates` has no result until it has finished again."""
        if (result := self.result()) is not None and num_updates > result["updates"]:
            (self.path / "result.json").unlink()

    # -- reading ------------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return (self.path / "config.json").exists()

    def config(self) -> RunConfig:
        if not self.exists():
            raise ConfigError(f"{self.path} holds no run (no config.json)")
        return from_dict(RunConfig, json.loads((self.path / "config.json").read_text()))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl, and those that wait for room; a half-written last line (kill -9) is skipped."""
        file = self.path / "metrics.jsonl"
        written = list(_complete_lines(file)) if file.exists() else []
        return written + [json.loads(line) for line in self._waiting]

    def difference(self, config: RunConfig) -> str | None:
        """In what `config` would learn something else than the run did so far: "lr = 0.1: it was started with 0.2", or None."""
        before, now = (dict(flatten(to_dict(c.resolved()))) for c in (self.config(), config))
        for key in dict.fromkeys([*before, *now]):
            old, new = before.get(key), now.get(key)  # an algorithm may have keys that another lacks
            if key.removeprefix("agent.") in FROM_ENVIRONMENT and new is None:
                continue  # Why: it follows from env and env_config, which are compared themselves
            # The second: of resources, which are mappings
            if not {key, key.partition(".")[0]} & MAY_CHANGE and old != new:
                return f"{key} = {new}: it was started with {old}"
        return None

    def check_same(self, config: RunConfig) -> None:
        """Raises ConfigError when `config` would learn something else than the run did so far."""
        if difference := self.difference(config):
            raise ConfigError(
                f"cannot resume {self.path} with {difference}; "
                f"resume with `wmrl train {self.path} --resume`, or choose another --run-dir"
            )

    def result(self) -> dict[str, Any] | None:
        """What `finish` recorded; None for a run that has not finished."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def last_evaluation(self) -> dict[str, float]:
        """The `eval/` metrics of the last evaluation, or nothing."""
        lines = [line for line in self.read_metrics() if "eval/return_mean" in line]
        return {name: value for name, value in lines[-1].items() if name.startswith("eval/")} if lines else {}

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; None if there is no checkpoint at all.

        A damaged one is passed over with a warning. Raises CheckpointError if all are damaged.
        """
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
        try:
            write(self.checkpoint_path(update))
        except OSError as error:
            if must or not checkpoint.is_full(error):
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


def describe_environment() -> dict[str, Any]:
    """Versions, revision and hardware: what someone needs to reproduce a run."""
    ours = ("wmrl-ray", "torch", "ray", "numpy", "minari", "pyarrow")
    simulators = ("gymnasium", "mujoco", "gymnasium-robotics", "dm-control", "myosuite", "mani-skill", "sapien")
    packages = (*ours, *simulators)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "git_revision": _git_revision(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Of the source tree this package runs from, with `+changes` if it differs; None outside a checkout."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=5)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _complete_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _write_json(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=1))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
