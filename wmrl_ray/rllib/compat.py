"""All that this project knows about Ray versions: 2.54.1 (the lock) to 2.60.0 (the newest tested)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from packaging.version import Version
from ray.rllib.utils.torch_utils import convert_to_torch_tensor

from wmrl_ray.config import ConfigError, check

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner_group import LearnerGroup
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    from wmrl_ray.rllib.algorithm import AgentAlgorithm
    from wmrl_ray.rllib.config import AgentAlgorithmConfig

RAY_VERSION = Version(ray.__version__)
HAS_LOCAL_MODE = (RAY_VERSION.major, RAY_VERSION.minor) < (2, 55)


def in_local_mode() -> bool:
    """Whether this process runs under `ray.init(local_mode=True)`: every task and actor inside it, one after another."""
    if not (HAS_LOCAL_MODE and ray.is_initialized()):
        return False
    from ray._private import worker  # Why: `ray.LOCAL_MODE` is gone in newer versions

    return worker._mode() == getattr(worker, "LOCAL_MODE", object())


def started_ray() -> bool:
    """Whether the Ray that runs was started by this process, on this machine: such a cluster never grows."""
    from ray._private import worker

    node = worker._global_node  # Why not a note in `init`: a user's own `ray.init()` counts too
    return node is not None and node.is_head()


def job_variables() -> dict[str, str]:
    """The environment variables in the runtime environment of the Ray job that this process is; none outside a job."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}")
    return dict((job.get("runtime_env") or {}).get("env_vars") or {})


def init(*, local_mode: bool = False, debug: bool = False, num_cpus: int | None = None, **kwargs: Any) -> None:
    """`ray.init` with the settings that behave the same on every supported version; nothing if Ray already runs.

    Args:
        local_mode: run every task and actor in this process. Only Ray up to 2.54 can.
        debug: local mode where it exists, otherwise one logical CPU; with `debug_config` all work stays in this process.
        num_cpus: logical CPUs of a cluster started here. None: as many as the machine has, or those of the cluster joined.

    Raises:
        ConfigError: local_mode on a Ray that refuses it; the folder for temporary files has too long a name for Ray; Ray did
            not start in time.
    """
    if ray.is_initialized():
        return
    if local_mode and not HAS_LOCAL_MODE:
        raise ConfigError(
            f"Ray {ray.__version__} has no local_mode (2.54 was the last that did); use debug=True (`wmrl train --debug`), "
            "which keeps environments, learner and evaluation in this process, or install ray==2.54.1"
        )
    # Why: without it Ray hides the GPUs from a driver that asked for none
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    joins_cluster = kwargs.setdefault("address", os.environ.get("RAY_ADDRESS", "local")) != "local"
    if not joins_cluster:  # Why "local": without an address Ray joins whatever cluster it finds on this machine
        # Why: newer versions turn token authentication on for a private local cluster, and then for every later head
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        kwargs.setdefault("include_dashboard", False)
        if debug and not HAS_LOCAL_MODE:
            num_cpus = 1
        if num_cpus is not None:
            kwargs["num_cpus"] = num_cpus
    if local_mode or (debug and HAS_LOCAL_MODE and not joins_cluster):
        kwargs["local_mode"] = True
    try:
        ray.init(**kwargs)
    except Exception as error:  # Why so wide: Ray has no class of its own for either
        if "timed out during startup" in str(error):
            raise ConfigError(
                "Ray's own processes did not come up in its 30 s: this machine is too busy; start again when it is less so, or "
                "without Ray (wmrl train --no-ray)"
            ) from error
        if "AF_UNIX path length" not in str(error):
            raise
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        raise ConfigError(
            f"TMPDIR = {folder!r} is too long: Ray's sockets below it would have names of more than 107 bytes; set a shorter "
            "TMPDIR, or RAY_TMPDIR=/tmp"
        ) from error


def debug_config(config: AlgorithmConfig) -> AlgorithmConfig:
    """Everything in the driver process, where a breakpoint works, on any version; an agent's own steps in turn with updates."""
    config.env_runners(num_env_runners=0)
    _take_turns(config)
    config.learners(num_learners=0)
    config.evaluation(evaluation_num_env_runners=0, evaluation_parallel_to_training=False)
    return config


def fit_to_mode(config: AlgorithmConfig) -> None:
    """Under local_mode, replaces learner actors by the local learner: two hang and one works once per process."""
    if in_local_mode() and config.num_learners > 0:
        warnings.warn(
            f"num_learners = {config.num_learners} becomes 0 under local_mode: one learner, in this process", stacklevel=2
        )
        config.num_learners = 0
    if in_local_mode() and getattr(config, "online", {}).get("num_runners", 0) > 0:
        runners = config.online["num_runners"]  # type: ignore[attr-defined]
        warnings.warn(f"online.num_runners = {runners} becomes 0 under local_mode: steps and updates in turn", stacklevel=2)
        config.num_env_runners = 0
        _take_turns(config)


def _take_turns(config: Any) -> None:
    if getattr(config, "online", None):
        config.online = {**config.online, "num_runners": 0, "schedule": "synchronous"}


def load_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], state: Mapping[str, Any], device: Any) -> None:
    """Restores RLlib's optimiser state with plain numbers in the parameter groups.

    Why: 2.54.1 turns lr, betas and flags into tensors, which fused Adam refuses.
    """
    for name, saved in state.items():
        if name in optimizers:
            moments = convert_to_torch_tensor(saved["state"]["state"], device=device)
            optimizers[name].load_state_dict({**saved["state"], "state": moments})


@contextlib.contextmanager
def learner_resources(custom: Mapping[str, float]) -> Iterator[None]:
    """Learner actors that are made inside ask for `custom` too. Why a patch: RLlib has such a setting for runners only.

    Raises:
        ConfigError: inside a Tune trial, whose placement group has nothing of them.
    """
    from ray.rllib.core.learner import learner_group

    original: Any = learner_group.RLlibBackendExecutor

    def executor(*, resources_per_worker: Mapping[str, float], **kwargs: Any) -> Any:
        check(
            # Why the first: without a Ray, the second would start one
            not ray.is_initialized() or ray.util.get_current_placement_group() is None,
            f"learner_resources = {dict(custom)} has no effect in a Tune trial; use it with `wmrl train`",
        )
        return original(resources_per_worker={**resources_per_worker, **custom}, **kwargs)

    if not custom:
        yield
        return
    learner_group.RLlibBackendExecutor = executor  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        learner_group.RLlibBackendExecutor = original  # type: ignore[misc]


@contextlib.contextmanager
def placed(learner: Callable[[int], Any], evaluation: Callable[[int], Any]) -> Iterator[None]:
    """Learner actors and evaluation runners that are made inside get the scheduling strategy that these give for their number,
    from 0. Why a patch: RLlib has no setting for it; Ray's `num_learners` all get the same, and runners none.
    """
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.train._internal import backend_executor

    numbers = itertools.count()
    original_group: Any = backend_executor.WorkerGroup
    make_worker: Any = EnvRunnerGroup._make_worker

    class Scheduled:
        """Of learner actors, which takes a strategy in place of Ray's one group for all."""

        def __init__(self, remote_class: Any) -> None:
            self._class = remote_class

        def options(self, **rays_own: Any) -> Any:
            return self._class.options(scheduling_strategy=learner(next(numbers)))

    class PlacedGroup(original_group):
        def add_workers(self, num_workers: int) -> None:
            self._remote_cls = Scheduled(self._remote_cls)
            super().add_workers(num_workers)

    def make(group: Any, *, worker_index: int, **kwargs: Any) -> Any:
        group._remote_args["scheduling_strategy"] = evaluation(worker_index - 1)
        return make_worker(group, worker_index=worker_index, **kwargs)

    backend_executor.WorkerGroup = PlacedGroup  # type: ignore[misc]
    EnvRunnerGroup._make_worker = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        backend_executor.WorkerGroup = original_group
        EnvRunnerGroup._make_worker = make_worker


def learner_actors(group: LearnerGroup) -> list[Any]:
    """By rank."""
    return list(group._workers or ())


def kill_learners(group: LearnerGroup) -> None:
    """Ends learner actors without the graceful shutdown that a rank with a broken process group would refuse."""
    if group.is_remote and not group._is_shut_down:
        group._backend_executor.shutdown(graceful_termination=False)
        # Why: `LearnerGroup.shutdown` would try the graceful way again
        group._backend_executor.shutdown = lambda **kwargs: None
        group._is_shut_down = True


def kill_runners(group: EnvRunnerGroup) -> None:
    """Ends runner actors without asking them to stop, which a hanging one would not do."""
    for actor in group._worker_manager.actors().values():
        ray.kill(actor)
    group._worker_manager.clear()


def build(config: AgentAlgorithmConfig, folder: Path) -> AgentAlgorithm:
    """The algorithm, without RLlib's own log files and without its folder for them in ~/ray_results."""
    if HAS_LOCAL_MODE:
        from ray.tune.logger import NoopLogger

        algorithm = config.build_algo(logger_creator=lambda settings: NoopLogger(settings, str(folder)))
    else:
        algorithm = config.build_algo()
        # Why: newer versions write nothing, but make the folder all the same and take no argument that says where
        with contextlib.suppress(OSError):  # not empty after all
            os.rmdir(algorithm.logdir)
    return typing.cast("AgentAlgorithm", algorithm)
