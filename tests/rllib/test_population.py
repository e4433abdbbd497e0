"""What the searches' schedulers and searchers decide, driven by trials that train nothing."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _explore

from tests.studies import tiny_plan, tiny_values
from wmrl_ray.rllib import search as module
from wmrl_ray.rllib.trials import Stopper, Working
from wmrl_ray.search import Search
from wmrl_ray.search_trial import Member
from wmrl_ray.space import point_name

LR = {"agent.lr": {"loguniform": [1e-4, 1e-1]}}


def search_of(folder: Path, space: dict[str, Any] = LR, num_updates: int = 8, **tune: Any) -> Search:
    run = {**tiny_values(folder)["run"], "eval_every": 2, "num_updates": num_updates}
    plan = tiny_plan(folder, variants={"baseline": {}}, columns=["bc"], run=run, search=space, tune=tune)
    return plan.searches[0]


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_search` gives to Tune, which runs nothing."""
    given: dict[str, Any] = {}

    def with_parameters(work: Any, **parameters: Any) -> Any:
        given.update(parameters)
        return work

    class Tuner:
        def __init__(self, trainable: Any, **kwargs: Any) -> None:
            given.update(kwargs)

        def fit(self) -> None: ...

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}])
    monkeypatch.setattr(module.tune, "with_parameters", with_parameters)
    monkeypatch.setattr(module.tune, "Tuner", Tuner)
    return given


def test_a_member_that_goes_on_tells_tune_what_its_settings_are_now(tmp_path: Path, tuner: dict[str, Any]) -> None:
    search = search_of(tmp_path, scheduler="pbt", num_samples=2)
    first, second = (point_name(point) for point in search.trials)
    member = Member(search, tmp_path / "out", first, search.trials[0])
    member.generation, member.point = 1, {"agent.lr": 0.05}
    member.record()
    module.run_search(search, tmp_path / "out")
    trials = tuner["param_space"]["trial"]["grid_search"]
    assert trials == [{"name": first, "point": {"agent.lr": 0.05}}, {"name": second, "point": search.trials[1]}]
    creator = tuner["tune_config"].trial_dirname_creator
    assert [creator(SimpleNamespace(config={"trial": trial})) for trial in trials] == [first, second]


@pytest.mark.parametrize(("gpus", "asked", "device"), [(0, "auto", "cpu"), (0.5, "auto", "cuda"), (0, "cuda:1", "cuda:1")])
def test_trials_get_the_device_and_the_folder_that_they_are_to_have(
    tmp_path: Path, tuner: dict[str, Any], monkeypatch: pytest.MonkeyPatch, gpus: float, asked: str, device: str
) -> None:
    search = search_of(tmp_path, scheduler="asha", num_samples=2, gpus_per_run=gpus)
    search.configs[0]["device"] = asked
    monkeypatch.chdir(tmp_path)
    module.run_search(search, Path("out"))
    assert tuner["out"] == tmp_path / "out"
    assert tuner["search"].config(search.trials[0], 0)["device"] == device


@pytest.mark.parametrize("choices", [[8, 16, 32], ["adam", "sgd"], [True, False], [None, 0.5]])
def test_a_population_explores_a_choice_among_its_choices(tmp_path: Path, choices: list[Any]) -> None:
    setting = "agent.x"
    mutations = {setting: module._mutation(module.Distribution("choice", choices))}
    random.seed(0)
    points = [{setting: choices[0]}]
    for _ in range(60):
        points.append(_explore(points[-1], mutations, 0.25, (1.2, 0.8), None)[0])
    assert {repr(point[setting]) for point in points} == set(map(repr, choices))


class FakeTrial:
    """As much of a trial as schedulers look at. It stands at an update, and its `lr` is how good it is."""

    def __init__(self, lr: float, update: int = 0, dies_at: int | None = None) -> None:
        self.trial_id = self.experiment_tag = f"lr{lr}"
        self.config: dict[str, Any] = {"trial": {"name": self.trial_id, "point": {"agent.lr": lr}}}
        self.status, self.dies_at, self.reports = Trial.PENDING, dies_at, []
        self.checkpoint, self.last_result = "a folder", {}
        self.temporary_state = SimpleNamespace(saving_to=None)
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        manager._latest_checkpoint_result = SimpleNamespace(checkpoint=None, metrics={"update": update})
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)
        self.evaluated_params: dict[str, Any] = {}

    @property
    def update(self) -> int:
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result.metrics["update"]

    def is_finished(self) -> bool:
        return self.status in (Trial.TERMINATED, Trial.ERROR)

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


def play(scheduler: Any, members: list[FakeTrial], last: int) -> list[str]:
    """Runs whom the scheduler chooses until it pauses him, he dies, or is at `last`, which is not reported; the states then."""
    controller: Any = SimpleNamespace(search_alg=None, get_trials=lambda: members)
    controller.get_live_trials = lambda: [member for member in members if not member.is_finished()]
    controller._schedule_trial_save = lambda member, result: member.checkpoint
    controller.pause_trial = lambda member, should_checkpoint: setattr(member, "status", Trial.PAUSED)
    for member in members:
        scheduler.on_trial_add(controller, member)
    for _ in range(100):
        if (member := scheduler.choose_trial_to_run(controller)) is None:
            break
        member.status = Trial.RUNNING
        while member.status == Trial.RUNNING:
            latest = member.run_metadata.checkpoint_manager._latest_checkpoint_result
            if latest.checkpoint is None:  # else it was paused, or has taken another's, and reports that again
                latest.metrics = {"update": member.update + 2 if member.reports else max(member.update, 2)}
            latest.checkpoint = None
            if member.update == member.dies_at:
                member.status = Trial.ERROR
                scheduler.on_trial_error(controller, member)
            elif member.update >= last:
                member.status = Trial.TERMINATED
                scheduler.on_trial_complete(controller, member, {})
            else:
                member.reports.append(member.update)
                result = {"update": member.update, "eval/return_mean": member.config["trial"]["point"]["agent.lr"]}
                if scheduler.on_trial_result(controller, member, result) == "PAUSE":
                    member.status = Trial.PAUSED
                    latest.checkpoint = "own"
    return [member.status for member in members]


POPULATIONS = {
    "one fails before the first exploit": lambda: [FakeTrial(1e-3), FakeTrial(1e-2), FakeTrial(1e-4, dies_at=2)],
    "one fails later": lambda: [FakeTrial(1e-3, dies_at=6), FakeTrial(1e-2), FakeTrial(1e-4)],
    "one finishes first": lambda: [FakeTrial(1e-3, update=2), FakeTrial(1e-2, update=4), FakeTrial(1e-4, update=8)],
    "all go on from beyond the first exploits": lambda: [FakeTrial(1e-3, update=6), FakeTrial(1e-2, update=6)],
    "one alone is left": lambda: [FakeTrial(1e-3), FakeTrial(1e-2, dies_at=2), FakeTrial(1e-4, dies_at=2)],
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("interval", [1, 2])
def test_nobody_waits_for_a_member_that_has_ended(tmp_path: Path, name: str, interval: int) -> None:
    search = search_of(tmp_path, scheduler="pbt", num_samples=3, perturbation_interval=interval, quantile_fraction=0.34)
    random.seed(0)
    members = POPULATIONS[name]()
    play(module._scheduler(search), members, search.rungs[-1])
    assert all(member.is_finished() for member in members), [(m.trial_id, m.status, m.reports) for m in members]


def test_the_others_exploit_when_one_fails_and_tunes_own_scheduler_hangs(tmp_path: Path) -> None:
    search = search_of(tmp_path, scheduler="pbt", num_samples=3, quantile_fraction=0.34)
    for hangs in (False, True):
        scheduler = module._scheduler(search)
        if hangs:  # Why: when Ray has mended this, `Population` may go
            scheduler.__class__ = PopulationBasedTraining
        members = POPULATIONS["one fails before the first exploit"]()
        states = play(scheduler, members, search.rungs[-1])
        assert states == ([Trial.PAUSED] * 2 if hangs else [Trial.TERMINATED] * 2) + [Trial.ERROR]
        assert (scheduler._num_perturbations > 0) != hangs


def test_a_stop_awaits_those_at_work_and_not_the_paused(tmp_path: Path) -> None:
    working, members = Working(), [FakeTrial(1e-3), FakeTrial(1e-2)]
    first, second = members
    for member in members:
        member.status = Trial.RUNNING
        working.on_trial_start(0, [], member)
    stopper = Stopper(lambda: True, tmp_path / "stop", working)
    first.status = Trial.PAUSED
    assert not stopper.stop_all()
    second.status = Trial.PAUSED
    assert stopper.stop_all()


def test_optuna_suggests_no_point_twice_and_ends_when_there_is_no_other(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra [optuna] is not installed")
    space = {"batch_size": {"choice": [4, 8, 16, 32]}}
    search = search_of(tmp_path, space, searcher="optuna", num_samples=8, seed=1)
    searcher = module._optuna(search, [{"batch_size": 8}], [point_name({"batch_size": 32})])
    points = [searcher.suggest(str(number)) for number in range(4)]
    assert points[0] == {"batch_size": 8} and sorted(point["batch_size"] for point in points[:3]) == [4, 8, 16]
    assert points[3] == searcher.FINISHED
    searcher.on_trial_result("0", {"result": {"state": "failed"}})
    searcher.on_trial_complete("0", {"eval/return_mean": 1.0})
