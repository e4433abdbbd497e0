"""The Algorithm: the offline schedule of updates and evaluations around `Agent`, as a Tune trainable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import (
    COMPONENT_EVAL_ENV_RUNNER,
    COMPONENT_LEARNER_GROUP,
    DEFAULT_MODULE_ID,
)
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.core.agents import AGENTS, agent_config
from wmrl_ray.data.datasets import Dataset, open_dataset
from wmrl_ray.rllib import compat, settings
from wmrl_ray.rllib.evaluation import RunningEvaluation
from wmrl_ray.rllib.failures import RemoteError, gather, guarded
from wmrl_ray.rllib.learner import AgentLearner
from wmrl_ray.rllib.metrics import log_trained, plain_state
from wmrl_ray.rollout import Evaluation
from wmrl_ray.run.config import RunConfig
from wmrl_ray.run.settings import of_record
from wmrl_ray.train import checkpoint_meta, evaluation_metrics

if TYPE_CHECKING:
    from wmrl_ray.rllib.at_once import Kept

EVALUATION_NAMES = {"return_mean": "episode_return_mean", "length_mean": "episode_len_mean", "episodes": "num_episodes"}


def _update_many(learner: AgentLearner, num_updates: int) -> Any:
    return learner.update_many(num_updates)


def _weights(learner: AgentLearner) -> Any:
    return learner.inference_state()


def save(learner: AgentLearner, folder: Path | None) -> dict[str, Any]:
    return learner.save(folder)


def _load(learner: AgentLearner, agent_state: dict[str, Any], streams: list[dict[str, Any]]) -> None:
    learner.load(agent_state, streams)


class AgentAlgorithm(Algorithm):
    """Each iteration is `updates_per_call` updates on every learner; evaluation is RLlib's, on our runners.

    num_updates: done so far. score: of the last evaluation, the normalised score if the dataset has one, else the mean return;
    NaN before the first. Both are in every result.
    """

    num_updates: int = 0
    score: float = math.nan
    _learners_failed: bool = False
    last_evaluation: Evaluation | None = None
    last_evaluation_metrics: dict[str, float] = {}  # noqa: RUF012 - replaced, never changed

    @classmethod
    def get_default_config(cls) -> Any:
        from wmrl_ray.rllib.config import CONFIGS

        return next(config() for config in CONFIGS.values() if issubclass(cls, config.default_algo_class))

    def setup(self, config: Any) -> None:
        self._running: RunningEvaluation | None = None
        uri = self.config.dataset_uri
        self.dataset: Dataset | None = None if uri is None else open_dataset(uri)
        super().setup(config)

    def __repr__(self) -> str:
        """Why: RLlib's own fails before the config is there, and Ray then reports that instead of the config's error."""
        return type(self).__name__

    def training_step(self) -> None:
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.on_learners(_update_many, num_updates=self.config.updates_per_call)
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.num_updates += self.config.updates_per_call
        self.log_trained()

    def log_trained(self) -> None:
        """Of one call, under RLlib's names."""
        window = agent_config(self.config.agent_name, self.config.agent).window
        rows = self.config.updates_per_call * self.config.batch_size * max(1, self.config.num_learners)
        log_trained(self.metrics, rows * window)

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> Any:
        """A copy of the module, for `forward_inference` and `forward_exploration`, with the weights of now; None for an id
        that there is not. Why a copy: there may be no runner in this process, and a learner's module is at work.
        """
        if module_id != DEFAULT_MODULE_ID:
            return None
        if self.spaces is not None:
            spaces = self.spaces
        else:
            both = (self.config.observation_space, self.config.action_space)
            spaces = {INPUT_ENV_SPACES: both, DEFAULT_MODULE_ID: both}
        spec: Any = self.config.get_multi_rl_module_spec(spaces=spaces, inference_only=True)
        module = spec.rl_module_specs[module_id].build()
        module.set_state(self.on_learners(_weights)[0])
        module.eval()
        return module

    def step(self) -> dict[str, Any]:
        return {**super().step(), "num_updates": self.num_updates, "score": self.score}

    def on_learners(self, function: Any, **kwargs: Any) -> list[Any]:
        """`function(learner, **kwargs)` on every rank. Raises its error, or RemoteError with the learner's traceback; or
        ActorLostError when one died, or did not answer within `call_timeout_s`.

        Why not `foreach_learner`: it waits for all of them, and those whose peer is gone wait in a collective call.
        """
        if not self.learner_group.is_remote:
            return [result.get() for result in self.learner_group.foreach_learner(function, **kwargs)]
        asked = [actor.apply.remote(guarded(function), **kwargs) for actor in compat.learner_actors(self.learner_group)]
        try:
            return gather(asked, "learner", self.config.call_timeout_s)
        except RemoteError:
            self._learners_failed = True
            raise

    def abandon(self) -> None:
        """An actor is lost: ends the others without waiting for answers, which it may be that does not give them."""
        self._learners_failed = True
        if self.eval_env_runner_group is not None:
            compat.kill_runners(self.eval_env_runner_group)

    def cleanup(self) -> None:
        if self.is_evaluating and self.eval_env_runner_group is not None:
            compat.kill_runners(self.eval_env_runner_group)  # Why: asked to stop, they would end the evaluation first
        if self._learners_failed:
            compat.kill_learners(self.learner_group)
        super().cleanup()

    # -- evaluation ---------------------------------------------------------------------------------------------------------

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        """Why: RLlib makes none without an evaluation_interval, and then cannot `evaluate()` an offline algorithm."""
        return eval_config.env is not None

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        self._require_env()
        return super().evaluate(parallel_train_future)

    def start_evaluation(self) -> None:
        """Sends the current weights to the runners and lets them run `evaluation_duration` episodes."""
        self._require_env()
        # Why not LearnerGroup.get_state: it answers a dead learner with an IndexError
        weights = self.on_learners(_weights)[0]
        self._running = RunningEvaluation(
            self.eval_env_runner_group,
            weights,
            self.config.evaluation_duration,
            self.config.seed,
            self.num_updates,
            self.config.call_timeout_s,
        )

    @property
    def is_evaluating(self) -> bool:
        return self._running is not None

    def finish_evaluation(self, timeout_s: float | None = None) -> int | None:
        """Collects the evaluation into `last_evaluation`, `last_evaluation_metrics` and `score`.

        Returns:
            the update whose weights were evaluated; None if the runners need longer than `timeout_s` (None: waits for them).

        Raises:
            RemoteError: a runner failed, with its traceback.
            ActorLostError: one died, or the evaluation took longer than `call_timeout_s`.
        """
        running = self._running
        if running is None:
            raise RuntimeError("finish_evaluation() without start_evaluation()")
        try:
            evaluation = running.poll(timeout_s)
        except Exception:
            self._running = None
            raise
        if evaluation is None:
            return None
        self._running = None
        self.last_evaluation = evaluation
        self.last_evaluation_metrics = evaluation_metrics(evaluation, self.dataset)
        self.score = self.last_evaluation_metrics.get("eval/score_mean", self.last_evaluation_metrics["eval/return_mean"])
        logger = MetricsLogger()
        for path, value in self.last_evaluation_metrics.items():
            name = path.removeprefix("eval/")
            logger.log_value(EVALUATION_NAMES.get(name, name), value, window=1)
        self.metrics.aggregate([logger.reduce(), *running.logged], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        return running.num_updates

    def _require_env(self) -> None:
        if not AGENTS[self.config.agent_name].acts:
            raise ConfigError(f"a {type(self).__name__} does not act in an environment; evaluate its Workers (wmrl intents)")
        if self.eval_env_runner_group is None:
            uri = self.config.dataset_uri
            raise ConfigError(f"dataset {uri!r} names no environment; set .environment('<gymnasium id>') to evaluate")

    # -- what an algorithm that learns online adds ----------------------------------------------------------------------------

    def take_metrics(self) -> dict[str, float]:
        """What a run's log gets beside the learners' metrics; means are since the last call of this."""
        return {}

    def hand_over(self) -> Kept | None:
        """After an actor was lost: runners with which another session of the run can go on."""
        return None

    def totals(self) -> dict[str, int]:
        """What a run's result gets beside the updates."""
        return {}

    # -- checkpoints --------------------------------------------------------------------------------------------------------

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        """None: the learners' state goes into `policy/`, where errors are seen and no pickle is needed."""
        return []

    def save_to_path(self, path: Any = None, *, state: Any = None, filesystem: Any = None, use_msgpack: bool = False) -> str:
        """Writes RLlib's files, `policy/` (for `Policy.load` and `wmrl_ray.checkpoint`) and the manifest; complete or absent.

        Raises:
            ConfigError: `path` is missing or not local. (Tune uploads local folders itself.)
        """
        if path is None or filesystem is not None or "://" in str(path):
            given = f"path={path!r}, filesystem={filesystem!r}"
            raise ConfigError(f"save_to_path({given}): give a local folder; Tune uploads it to its storage")
        target = Path(path).absolute()
        with checkpoint.writing(target) as partial:
            # Why not all of the state: RLlib's own files keep iteration and metrics, `policy/` keeps what the learners hold
            state = self.get_state(not_components=[COMPONENT_LEARNER_GROUP, COMPONENT_EVAL_ENV_RUNNER])
            super().save_to_path(partial, state=state, use_msgpack=use_msgpack)
            run = self.config.run_config()
            meta = checkpoint_meta(run, self.dataset, run.env, self.num_updates) | {"rllib": settings.recorded(self.config)}
            own = {"score": self.score, "iteration": self.training_iteration, "metrics": plain_state(self.metrics)}
            policy = partial / "policy"
            policy.mkdir()
            checkpoint.seal(policy, checkpoint.fill(policy, {**self.policy_tree(policy), "algorithm": own}, meta))
            checkpoint.seal(partial, {f"policy/{name}": sha256 for name, sha256 in checkpoint.digests(policy).items()})
            checkpoint.replace(partial, target)
        return str(target)

    def policy_tree(self, folder: Path | None = None) -> dict[str, Any]:
        """What `policy/` holds beside its meta: `agent` (rank 0's) and what differs between ranks.

        Args:
            folder: where learners put what is large, as parts of the checkpoint; None: nowhere.
        """
        ranks = self.on_learners(save, folder=folder)
        streams = [rank["streams"] for rank in ranks]
        return {"agent": ranks[0]["agent"], "replay": streams[0]["replay"], "streams": streams}

    def load_policy_tree(self, tree: dict[str, Any]) -> None:
        """The inverse, on every rank."""
        self.on_learners(_load, agent_state=tree["agent"], streams=tree["streams"])

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "num_updates": self.num_updates, "score": self.score}

    def set_state(self, state: dict[str, Any]) -> None:
        # Why: RLlib's own version needs training runners for these two
        state = {key: value for key, value in state.items() if key != COMPONENT_EVAL_ENV_RUNNER}
        if (learners := state.pop(COMPONENT_LEARNER_GROUP, None)) is not None:
            self.learner_group.set_state(learners)
        super().set_state(state)
        self.num_updates, self.score = state["num_updates"], state["score"]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Raises CheckpointError if the checkpoint is incomplete or corrupt; nothing is restored then.

        Reads `policy/` alone. Why: RLlib's own files are pickles, which run whatever their author put into them.
        """
        _verify(Path(path))
        tree, meta = checkpoint.load(Path(path) / "policy", parts=False, verified=True)
        update = int(meta["update"])
        older = {"score": math.nan, "iteration": update // self.config.updates_per_call}  # of checkpoints without it
        own = tree.pop("algorithm", older)
        self.num_updates, self.score, self._iteration = update, float(own["score"]), int(own["iteration"])
        if "metrics" in own:
            self.metrics.set_state(own["metrics"])
        self.load_policy_tree(tree)

    @classmethod
    def from_checkpoint(
        cls,
        path: Any,
        filesystem: Any = None,
        *,
        changes: Mapping[str, Any] | None = None,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> Self:
        """A new algorithm with the settings of the one that was saved, restored. Its callbacks are found by their names, where
        this process has imported their modules: a checkpoint imports none.

        Args:
            changes: settings to use instead, such as {"callbacks_class": Mine} or {"env": MyEnv}.
            trust_pickle: RLlib's way. It runs whatever code the folder's files hold.

        Raises:
            ConfigError: callbacks or an environment that must be given, in one line.
            CheckpointError: RLlib's own falls back to a fresh algorithm when it cannot read the file of arguments.
        """
        _verify(Path(path))
        if trust_pickle:
            return super().from_checkpoint(path, filesystem=filesystem, **kwargs)  # type: ignore[return-value]
        from wmrl_ray.rllib.config import CONFIGS

        meta = checkpoint.read_meta(Path(path) / "policy")
        run, changes = from_dict(RunConfig, of_record({**meta["run"], "agent": meta["agent"]})), dict(changes or {})
        config = CONFIGS[run.algorithm].from_run(run)
        algorithm = cls(config=config.update_from_dict({**settings.found(meta.get("rllib", {}), changes), **changes}))
        try:
            algorithm.restore_from_path(path)
        except Exception:
            algorithm.stop()
            raise
        return algorithm


def _verify(path: Path) -> None:
    checkpoint.verify(path)
    if not (path / "policy").is_dir():
        raise checkpoint.CheckpointError(
            f"{path} has no policy folder: the loop without Ray wrote it (--no-ray); resume it there"
        )


class BC(AgentAlgorithm):
    """Behaviour cloning."""


class IQL(AgentAlgorithm):
    """Implicit Q-learning."""


class TD3BC(AgentAlgorithm):
    """TD3+BC."""


class AWAC(AgentAlgorithm):
    """Advantage-weighted actor-critic on a fixed dataset."""


class CQL(AgentAlgorithm):
    """Conservative Q-learning."""


class DT(AgentAlgorithm):
    """Decision Transformer."""


class TDMPC(AgentAlgorithm):
    """TD-MPC on a fixed dataset."""


class IQLTDMPC(AgentAlgorithm):
    """IQL-TD-MPC."""


class Manager(AgentAlgorithm):
    """The Manager of IQL-TD-MPC: trained here, evaluated through its Workers."""
