"""A run on Ray goes on with another number of learners and runners, and no step of it is lost without being counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from tests.rllib.online_fakes import run_config
from wmrl_ray import checkpoint
from wmrl_ray.rllib.train import train_on_ray
from wmrl_ray.run.folder import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def saved(run: Path) -> tuple[list[bytes], dict[str, Any]]:
    """The agent's own episodes in the newest checkpoint, in their order, each as its actions; and the counts of its steps."""
    newest = RunDir(run).newest_checkpoint()
    assert newest is not None
    tree, _ = checkpoint.load(newest / "policy")
    online = tree["streams"][0]["replay"]["online"]
    starts = online["starts"]
    episodes = [online["action"][first:last].tobytes() for first, last in zip(starts[:-1], starts[1:], strict=True)]
    assert starts[-1] - len(episodes) == tree["online"]["delivered_steps"]  # a row for each observation, the last ones too
    return episodes, tree["online"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_another_number_of_learners_and_runners(schedule: Any, tmp_path: Path) -> None:
    config = run_config(checkpoint_every=24, log_every=12, eval_every=0)
    ahead = {"max_steps_ahead": 48, "max_updates_ahead": 12, "capacity": 2000}
    online = dataclasses.replace(config.online, num_runners=1, schedule=schedule, **ahead)
    episodes: list[bytes] = []
    num_before, lost, unfinished = 0, 0, 0
    for num_learners, num_runners, until in ((1, 1, 24), (2, 2, 48), (0, 1, 72), (1, 2, 96), (0, 2, 120)):
        config = dataclasses.replace(
            config,
            num_updates=until,
            num_learners=num_learners,
            online=dataclasses.replace(online, num_runners=num_runners),
        )
        result = train_on_ray(config, tmp_path / "run", resume=True)
        assert (result["updates"], result["finished"]) == (until, True)
        kept, counts = saved(tmp_path / "run")
        assert kept[: len(episodes)] == episodes  # all that there were, then the new ones
        assert counts["episodes"] == len(kept)
        # Where all runners are there again, each goes on with what it had begun; at once nobody does
        goes_on = schedule == "synchronous" and num_runners == num_before
        lost += 0 if goes_on else unfinished
        assert counts["lost_steps"] == lost
        unfinished = sum(counts["unfinished"])
        assert counts["steps"] == counts["delivered_steps"] + unfinished + lost
        episodes, num_before = kept, num_runners
    assert counts["steps"] >= 96  # one for each update, but for those that may be ahead
    lines = [line["update"] for line in RunDir(tmp_path / "run").read_metrics() if "grad_norm/model" in line]
    assert lines == list(range(12, 121, 12))
