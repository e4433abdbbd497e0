"""Every setting of RLlib's AlgorithmConfig, on every supported Ray: honoured, with the test that shows it, or refused.

A refused one passes at its default only, where it means nothing. A test fails when Ray brings a key that no table knows.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils import force_list

from wmrl_ray.config import ConfigError, check, did_you_mean

if TYPE_CHECKING:
    from wmrl_ray.rllib.config import AgentAlgorithmConfig

# key: the test in tests/rllib. Keys of an older or a newer Ray stand beside the others.
HONOURED = {
    "algo_class": "test_config.py::test_every_agent_has_a_config_and_an_algorithm_that_know_each_other",
    "env": "test_config.py::test_a_good_configuration_validates_and_takes_its_environment_and_sizes",
    "env_config": "test_algorithm.py::test_env_config_reaches_the_environments_of_runners_and_the_checkpoint",
    "observation_space": "test_config.py::test_without_an_environment_the_spaces_come_from_the_dataset",
    "action_space": "test_config.py::test_without_an_environment_the_spaces_come_from_the_dataset",
    "seed": "test_tune.py::test_two_seeds_run_score_and_leave_loadable_checkpoints",
    "log_level": "test_callbacks.py::test_results_go_to_the_users_logger",
    "logger_creator": "test_callbacks.py::test_results_go_to_the_users_logger",
    # where it runs
    "num_env_runners": "test_config.py::test_rllibs_number_of_runners_is_another_name_of_ours",
    "env_runner_cls": "test_settings.py::test_a_class_that_is_not_derived_from_ours_is_refused",
    "num_envs_per_env_runner": "test_algorithm.py::test_episode_k_is_the_same_one_on_any_runners_and_without_ray",
    "num_cpus_per_env_runner": "test_settings.py::test_actors_and_trials_ask_for_what_was_set",
    "num_gpus_per_env_runner": "test_settings.py::test_actors_and_trials_ask_for_what_was_set",
    "custom_resources_per_env_runner": "test_nodes.py::test_every_learner_and_runner_takes_its_resource",
    "num_learners": "test_algorithm.py::test_two_learners_see_different_batches_and_keep_identical_parameters",
    "num_cpus_per_learner": "test_settings.py::test_actors_and_trials_ask_for_what_was_set",
    "num_gpus_per_learner": "test_placement.py::test_every_actor_is_asked_for_with_what_it_takes",
    "num_cpus_for_main_process": "test_settings.py::test_actors_and_trials_ask_for_what_was_set",
    "placement_strategy": "test_settings.py::test_actors_and_trials_ask_for_what_was_set",
    "_learner_class": "test_settings.py::test_a_class_that_is_not_derived_from_ours_is_refused",
    # evaluation
    "explore": "test_callbacks.py::test_evaluation_explores_only_where_it_is_told_to",
    "evaluation_config": "test_callbacks.py::test_evaluation_explores_only_where_it_is_told_to",
    "evaluation_interval": "test_algorithm.py::test_evaluation_runs_exactly_the_episodes_asked_for",
    "evaluation_duration": "test_algorithm.py::test_evaluation_runs_exactly_the_episodes_asked_for",
    "evaluation_num_env_runners": "test_algorithm.py::test_episode_k_is_the_same_one_on_any_runners_and_without_ray",
    "evaluation_parallel_to_training": "test_algorithm.py::test_rllibs_evaluation_parallel_to_training_works",
    # results
    "min_time_s_per_iteration": "test_callbacks.py::test_an_iteration_is_as_long_as_was_asked_for",
    "min_train_timesteps_per_iteration": "test_callbacks.py::test_an_iteration_is_as_long_as_was_asked_for",
    "min_sample_timesteps_per_iteration": "test_callbacks.py::test_an_iteration_is_as_long_as_was_asked_for",
    "metrics_num_episodes_for_smoothing": "test_callbacks.py::test_counts_and_means_have_rllibs_names_and_survive_a_restore",
    # callbacks
    "callbacks_class": "test_callbacks.py::test_callbacks_see_the_episodes_that_are_collected",
    "callbacks_on_algorithm_init": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_train_result": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_checkpoint_loaded": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_environment_created": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_episode_created": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_episode_start": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_episode_step": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_episode_end": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_evaluate_start": "test_callbacks.py::test_functions_are_called_as_methods_are",
    "callbacks_on_evaluate_end": "test_callbacks.py::test_functions_are_called_as_methods_are",
}

# RLlib sets these as it goes.
INTERNAL = frozenset({"_is_frozen", "_is_online", "in_evaluation", "simple_optimizer"})

# the way out: keys. Each is refused but at its default.
REFUSED = {
    "set it in training(agent={...}) or batch_size": (
        "lr gamma grad_clip grad_clip_by train_batch_size _train_batch_size_per_learner minibatch_size "
        " num_epochs shuffle_batch_per_epoch learner_config_dict optimizer _torch_grad_scaler_class "
        "_torch_lr_scheduler_classes"
    ),
    "the agent makes its own networks: set training(agent={'model': {...}})": (
        "model _model_config _rl_module_spec algorithm_config_overrides_per_module _per_module_overrides action_mask_key"
    ),
    "set training(agent={'compile': ...})": (
        "torch_compile_learner torch_compile_learner_what_to_compile torch_compile_learner_dynamo_backend "
        "torch_compile_learner_dynamo_mode torch_compile_worker torch_compile_worker_dynamo_backend "
        "torch_compile_worker_dynamo_mode"
    ),
    "learners average gradients themselves, and one that is not finite ends the run: lower agent.lr": (
        "torch_ddp_kwargs torch_skip_nan_gradients log_gradients"
    ),
    "agents are PyTorch's": (
        "framework_str eager_tracing eager_max_retraces tf_session_args local_tf_session_args enable_tf1_exec_eagerly "
        "_tf_policy_handles_more_than_one_loss"
    ),
    "the agent gets what the environment gives: wrap the environment, .environment('your_module:Id')": (
        "_env_to_module_connector add_default_connectors_to_env_to_module_pipeline _module_to_env_connector "
        "add_default_connectors_to_module_to_env_pipeline merge_env_runner_states broadcast_env_runner_states "
        "_dont_auto_sync_env_runner_states clip_rewards clip_actions normalize_actions _is_atari disable_env_checking "
        "preprocessor_pref observation_filter update_worker_filter_stats use_worker_filter_stats "
        "sync_filters_on_rollout_workers_timeout_s"
    ),
    "learners draw their batches from the dataset and the replay: change the dataset": (
        "_learner_connector add_default_connectors_to_learner_pipeline"
    ),
    "use more runners: online={'num_runners': N} and .evaluation(evaluation_num_env_runners=N)": (
        "gym_env_vectorize_mode remote_worker_envs remote_env_batch_wait_ms create_local_env_runner create_env_on_local_worker"
    ),
    "set what a runner does in training(online={...}): num_envs, steps_per_turn, max_steps_ahead, max_queued_episodes": (
        "rollout_fragment_length batch_mode episodes_to_numpy episode_lookback_horizon compress_observations sample_collector "
        "sampler_perf_stats_ema_coef max_requests_in_flight_per_env_runner max_requests_in_flight_per_learner "
        "num_aggregator_actors_per_learner max_requests_in_flight_per_aggregator_actor use_env_runner_state_server "
        "env_runner_state_server_max_concurrency"
    ),
    "set training(call_timeout_s=...), after which an actor that does not answer counts as dead": (
        "sample_timeout_s evaluation_sample_timeout_s env_runner_health_probe_timeout_s env_runner_restore_timeout_s "
        "evaluation_unhealthy_workers_timeout_s evaluation_error_after_n_consecutive_skips "
        "validate_env_runners_after_construction"
    ),
    "collecting runners that die are replaced in any case; for the others use `wmrl train` or Tune's FailureConfig": (
        "restart_failed_env_runners ignore_env_runner_failures max_num_env_runner_restarts delay_between_env_runner_restarts_s "
        "restart_failed_sub_environments num_consecutive_env_runner_failures_tolerance callbacks_on_env_runners_recreated"
    ),
    "set .learners(num_gpus_per_learner=N), or the resources of a run in `wmrl train`": (
        "num_gpus _fake_gpus local_gpu_idx custom_resources_for_main_process custom_resources_per_learner"
    ),
    "use ray.init(runtime_env={'env_vars': {...}})": "extra_python_environs_for_driver extra_python_environs_for_worker",
    "use `wmrl evaluate RUN --video FILE`": "render_env",
    "here is one agent with one policy": (
        "count_steps_by policies policy_map_capacity policy_mapping_fn policies_to_train policy_states_are_swappable "
        "observation_fn"
    ),
    "the agent explores in its own way: set training(agent={...})": "exploration_config _prior_exploration_config",
    "it reads through Ray Data, which is not used here; use .dataset(uri)": (
        "input_ offline_data_class input_read_method input_read_method_kwargs input_read_schema input_read_episodes "
        "input_read_sample_batches input_read_batch_size input_filesystem input_filesystem_kwargs input_compress_columns "
        "input_spaces_jsonable materialize_data materialize_mapped_data map_batches_kwargs iter_batches_kwargs "
        "ignore_final_observation prelearner_class prelearner_buffer_class prelearner_buffer_kwargs "
        "prelearner_module_synch_period prelearner_use_recorded_module_states dataset_num_iters_per_learner input_config "
        "actions_in_input_normalized postprocess_inputs shuffle_buffer_size offline_sampling"
    ),
    "use `wmrl evaluate --save` or callbacks": (
        "output output_config output_compress_columns output_max_file_size output_max_rows_per_file "
        "output_write_remaining_data output_write_method output_write_method_kwargs output_filesystem output_filesystem_kwargs "
        "output_write_episodes"
    ),
    "evaluations here run whole episodes from their own seeds: set evaluation_duration": (
        "evaluation_duration_unit evaluation_auto_duration_min_env_steps_per_sample "
        "evaluation_auto_duration_max_env_steps_per_sample evaluation_force_reset_envs_before_iteration "
        "custom_evaluation_function"
    ),
    "evaluate in an environment: .evaluation(evaluation_interval=N)": (
        "off_policy_estimation_methods ope_split_batch_by_episode offline_evaluation_interval num_offline_eval_runners "
        "offline_evaluation_type offline_eval_runner_class offline_loss_for_module_fn offline_evaluation_duration "
        "offline_evaluation_parallel_to_training offline_evaluation_timeout_s num_cpus_per_offline_eval_runner "
        "num_gpus_per_offline_eval_runner custom_resources_per_offline_eval_runner restart_failed_offline_eval_runners "
        "ignore_offline_eval_runner_failures max_num_offline_eval_runner_restarts offline_eval_runner_restore_timeout_s "
        "max_requests_in_flight_per_offline_eval_runner validate_offline_eval_runners_after_construction "
        "offline_eval_runner_health_probe_timeout_s offline_eval_rl_module_inference_only broadcast_offline_eval_runner_states "
        "offline_eval_batch_size_per_runner dataset_num_iters_per_eval_runner callbacks_on_evaluate_offline_start "
        "callbacks_on_evaluate_offline_end callbacks_on_offline_eval_runners_recreated"
    ),
    "use on_episode_end: runners send each episode as it ends": "callbacks_on_sample_end",
    "log in callbacks, with RLlib's reductions": (
        "keep_per_episode_custom_metrics metrics_episode_collection_timeout_s stats_cls_lookup"
    ),
    "give loggers to Tune: RunConfig(callbacks=[...])": "logger_config log_sys_usage fake_sampler",
    "a checkpoint holds all, and `policy/` in it needs neither pickle nor Ray": (
        "export_native_model_files checkpoint_trainable_policies_only _use_msgpack_checkpoints"
    ),
    "it is of RLlib's old API stack; leave it out": (
        "enable_rl_module_and_learner enable_env_runner_and_connector_v2 _disable_preprocessor_api _disable_action_flattening "
        "_disable_initialize_loss_from_dummy_batch env_task_fn enable_connectors monitor "
        "evaluation_num_episodes metrics_smoothing_episodes timesteps_per_iteration min_iter_time_s collect_metrics_timeout "
        "min_time_s_per_reporting min_train_timesteps_per_reporting min_sample_timesteps_per_reporting input_evaluation "
        "policy_map_cache worker_cls synchronize_filters enable_async_evaluation custom_async_evaluation_function "
        "_enable_rl_module_api auto_wrap_old_gym_envs always_attach_evaluation_results buffer_size prioritized_replay "
        "learning_starts replay_batch_size replay_sequence_length replay_mode prioritized_replay_alpha "
        "prioritized_replay_beta prioritized_replay_eps _disable_execution_plan_api"
    ),
    "every setting is checked here": "_validate_config",
}
WAY_OUT = {key: way_out for way_out, keys in REFUSED.items() for key in keys.split()}

# A checkpoint has these from its run.
OF_A_RUN = frozenset({"algo_class", "env", "env_config", "seed", "log_level", "num_env_runners", "num_envs_per_env_runner"})
OF_A_RUN |= {"num_learners", "num_gpus_per_learner", "num_gpus_per_env_runner"}  # GPUs need not be where it is read

# What `evaluation_config` may change.
OF_EVALUATION = ("explore", "env_config", "num_envs_per_env_runner")

PLAIN = (bool, int, float, str, list, tuple, enum.Enum)
NEVER_CALLED = tuple(key.removeprefix("callbacks_") for key in WAY_OUT if key.startswith("callbacks_on_"))


def check_settings(config: AgentAlgorithmConfig, defaults: Mapping[str, Any]) -> None:
    """Raises ConfigError, one line with the way out, for the first setting that nobody knows or nobody would obey.

    Args:
        defaults: of the class of `config`.
    """
    for key, value in vars(config).items():
        if key.startswith("__") and key.endswith("__"):  # Tune's own notes to its trials
            continue
        if key not in defaults:  # Why not `check`: looking for what was meant takes a second over all keys
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, defaults)} in {type(config).__name__}")
        # Why not of an evaluation's: RLlib sets some there, and what `evaluation_config` may change is checked in its parent
        if not config.in_evaluation:
            check_value(key, value, defaults)
    for callbacks in force_list(config.callbacks_class):
        _check_callbacks(callbacks)


def check_value(key: str, value: Any, defaults: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that is refused. RLlib keeps some under a name with a bar in front."""
    stored = key if key in defaults else f"_{key}"
    if stored not in WAY_OUT or _same(value, defaults[stored]):
        return
    if stored == "policies" and list(value) == list(defaults[stored]):  # Why the names alone: RLlib changes what they stand for
        return
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise ConfigError(f"{key.removeprefix('_')} = {shown} has no effect here; {WAY_OUT[stored]}")


def check_evaluation_config(given: Mapping[str, Any] | None, known: Mapping[str, Any]) -> None:
    """Raises ConfigError for what `evaluation_config` cannot change."""
    for key in given or {}:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, known)} in evaluation_config")
        check(
            key in OF_EVALUATION,
            f"evaluation_config[{key!r}] has no effect here; it may hold {', '.join(OF_EVALUATION)}",
        )


def recorded(config: AgentAlgorithmConfig) -> dict[str, Any]:
    """RLlib's settings for a checkpoint, where they differ from the defaults and JSON can hold them; classes and functions by
    their names.
    """
    kept, defaults = {}, vars(type(config)())
    for key in sorted(HONOURED.keys() & vars(config).keys() - OF_A_RUN):
        value = getattr(config, key)
        if value == defaults[key]:
            continue
        if _is_code(key):
            kept[key] = [f"{one.__module__}:{getattr(one, '__qualname__', one)}" for one in force_list(value)]
        elif _is_plain(value):
            kept[key] = value
    return kept


def found(saved: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `recorded` has kept, with the classes and functions themselves.

    Raises:
        ConfigError: some of which this process has not imported, and `changes` has no others.
    """
    values = {}
    for key, value in saved.items():
        if key in HONOURED and key not in changes:
            code = [_imported(key, name) for name in value] if _is_code(key) else []
            values[key] = (code if key.startswith("callbacks") else code[0]) if code else value
    return values


def _is_code(key: str) -> bool:
    return key.startswith("callbacks") or key in ("env_runner_cls", "_learner_class")


def _imported(key: str, name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = sys.modules.get(module)
    for part in path.split("."):
        value = getattr(value, part, None)
    # Why no other callable: a checkpoint may come from a stranger
    kinds = (RLlibCallback, SingleAgentEnvRunner, TorchLearner)
    is_one = isinstance(value, FunctionType) or (isinstance(value, type) and issubclass(value, kinds))
    check(
        is_one,
        f"the checkpoint's {key} {path} of {module} is not imported here; import {module} first, or give others: "
        f"from_checkpoint(path, changes={{{key!r}: ...}})",
    )
    return value


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_callbacks(callbacks: Any) -> None:
    for name in NEVER_CALLED:
        own, base = getattr(callbacks, name, None), getattr(RLlibCallback, name, None)
        check(
            base is None or own is base,
            f"{getattr(callbacks, '__name__', callbacks)}.{name} is never called here; {WAY_OUT['callbacks_' + name]}",
        )


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if isinstance(default, Mapping):
        return (
            isinstance(value, Mapping) and value.keys() == default.keys() and all(_same(value[k], default[k]) for k in default)
        )
    return isinstance(default, PLAIN) and isinstance(value, PLAIN) and value == default
