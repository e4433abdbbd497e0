"""Every setting of RLlib: known, and honoured or refused."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from tests.rllib.online_fakes import OwnTDMPC, small_online
from wmrl_ray.config import ConfigError
from wmrl_ray.rllib.settings import HONOURED, INTERNAL, WAY_OUT

RLLIBS = vars(AlgorithmConfig())


# -- the table. No cluster --------------------------------------------------------------------------------------------------


def test_every_setting_of_this_ray_is_honoured_or_refused_and_none_both() -> None:
    known = [*HONOURED, *INTERNAL, *WAY_OUT]
    assert sorted(known) == sorted(set(known))
    assert not set(RLLIBS) - set(known), "Ray has brought settings: say in rllib/settings.py what becomes of each"


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parent / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("key", HONOURED)
def test_what_is_honoured_has_a_test(key: str) -> None:
    file, name = HONOURED[key].split("::")
    assert name in names_in(file)


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 3
    if isinstance(value, dict):
        return {**value, "x": 1}
    if isinstance(value, list):
        return [*value, "x"]
    return "other" if value is None or isinstance(value, str) else lambda *args: None


@pytest.mark.parametrize("key", sorted(set(WAY_OUT) & set(RLLIBS)))
def test_what_is_refused_passes_at_its_default_only(bc: Any, key: str) -> None:
    setattr(bc, key, other(vars(bc)[key]))
    with pytest.raises(ConfigError) as caught:
        bc.validate()
    message = str(caught.value)
    assert message.startswith(f"{key.removeprefix('_')} = ") and message.endswith(f" has no effect here; {WAY_OUT[key]}")
    assert "\n" not in message and len(message) < 300


def test_the_defaults_pass_as_objects_as_mappings_and_twice(bc: Any) -> None:
    """Mappings are how Tune hands them to its trials."""
    for config in (bc, small_online(num_runners=1)):
        config.validate()
        again = type(config)().update_from_dict(config.to_dict())
        again.validate()
        type(config).from_state(again.get_state()).validate()


class Listens(RLlibCallback):
    def on_sample_end(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.env_runners(explore=False), r"explore = False has no effect here: .*evaluation_config=\{'explore': True"),
        (lambda c: c.evaluation(evaluation_config={"lr": 1.0}), r"evaluation_config\['lr'\] has no effect .* explore, env_con"),
        (lambda c: c.evaluation(evaluation_duration=0), r"evaluation_duration = 0; .* at least 1"),
        (lambda c: c.reporting(min_sample_timesteps_per_iteration=9), r"BCConfig takes no steps; set min_train_timesteps_per"),
        (lambda c: c.callbacks(Listens), r"Listens.on_sample_end is never called here; use on_episode_end"),
        (lambda c: c.callbacks([RLlibCallback, Listens]), r"Listens.on_sample_end is never called here"),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [8]}), r"model_config = .*; the agent makes its own networks"),
        (
            lambda c: c.env_runners(env_to_module_connector=lambda env: None),
            r"env_to_module_connector = .*wrap the env",
        ),
        (lambda c: c.fault_tolerance(restart_failed_env_runners=True), r"restart_failed_env_runners = True .*FailureConfig"),
    ],
)
def test_a_setting_that_nobody_would_obey_is_one_line(bc: Any, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        change(bc)
        bc.validate()
    assert "\n" not in str(caught.value)


def test_a_class_that_is_not_derived_from_ours_is_refused(bc: Any) -> None:
    from ray.rllib.core.learner.torch.torch_learner import TorchLearner
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from wmrl_ray.rllib.env_runner import PlannerEnvRunner

    class Own(PlannerEnvRunner): ...

    bc.env_runners(env_runner_cls=Own).validate()
    with pytest.raises(ConfigError, match=r"learner_class = .*TorchLearner'>; derive it from .*learner\.AgentLearner"):
        bc.copy(copy_frozen=False).learners(learner_class=TorchLearner).validate()
    with pytest.raises(ConfigError, match=r"env_runner_cls = .*; derive it from .*env_runner\.PlannerEnvRunner"):
        bc.env_runners(env_runner_cls=SingleAgentEnvRunner).validate()


def test_actors_and_trials_ask_for_what_was_set() -> None:
    from wmrl_ray.rllib.placement import needs

    config = small_online(num_runners=2).resources(num_cpus_for_main_process=3, placement_strategy="SPREAD")
    config.env_runners(num_cpus_per_env_runner=2, num_gpus_per_env_runner=0.5)
    config.learners(num_learners=2, num_cpus_per_learner=4)
    runner = {"CPU": 2.0, "GPU": 0.5}
    assert needs(config) == [("learner", {"CPU": 4.0})] * 2 + [("runner", runner)] * 2
    request = OwnTDMPC.default_resource_request(config.to_dict())
    assert request.strategy == "SPREAD"
    assert {"CPU": 3} in [{k: v for k, v in bundle.items() if v} for bundle in request.bundles]
    assert [bundle for bundle in request.bundles if bundle.get("GPU")] == [runner] * 2
    assert [bundle["CPU"] for bundle in request.bundles].count(4) == 2
