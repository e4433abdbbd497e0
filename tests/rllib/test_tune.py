"""The algorithms as Tune trainables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from tests.rllib import fakes
from wmrl_ray.policy import Policy
from wmrl_ray.rllib.algorithm import BC, IQLTDMPC

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(trainable: Any, config: Any, folder: Path, **kwargs: Any) -> Any:
    run_config = tune.RunConfig(
        name="t",
        storage_path=str(folder),
        stop={"training_iteration": 2},
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
    )
    return tune.Tuner(trainable, param_space=config, run_config=run_config, **kwargs).fit()


def test_two_seeds_run_score_and_leave_loadable_checkpoints(iql: Any, tmp_path: Path) -> None:
    """The metric of the search is there from the first iteration, before any evaluation."""
    config = iql.debugging(seed=tune.grid_search([1, 2])).evaluation(evaluation_interval=2)
    grid = run(IQLTDMPC, config, tmp_path, tune_config=tune.TuneConfig(metric="score", mode="max"))
    assert not grid.errors
    assert sorted(result.config["seed"] for result in grid) == [1, 2]
    scores = [result.metrics["score"] for result in grid]
    assert all(math.isfinite(score) for score in scores)
    assert scores[0] != scores[1]
    assert all(result.metrics["num_updates"] == 6 for result in grid)
    best = grid.get_best_result()
    assert best.metrics["score"] == max(scores)
    policy = Policy.load(best.checkpoint.path)
    assert policy.meta["run"]["seed"] == best.config["seed"]
    algorithm = IQLTDMPC.from_checkpoint(best.checkpoint.path)
    assert (algorithm.num_updates, algorithm.score) == (6, max(scores))
    algorithm.stop()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"batchsize": 4}, "unknown key 'batchsize' (did you mean 'batch_size'?)"),
        ({"agent": {"hidden": 3}}, "unknown key 'agent.hidden'"),
    ],
)
def test_an_unknown_key_stops_the_experiment_with_its_name(bc: Any, tmp_path: Path, mistake: Any, message: str) -> None:
    space = {"dataset_uri": bc.dataset_uri, "env": fakes.PLANE, "updates_per_call": 2, **mistake}
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - Tune wraps what a trial's resources raise, differently by version
        grid = run(BC, space, tmp_path)
        if grid.errors:
            raise grid.errors[0]
    assert message in str(caught.value)
