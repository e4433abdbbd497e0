"""When steps are taken and updates made: the papers' loop, and turns of other sizes."""

from __future__ import annotations

import dataclasses

import pytest

from tests.online.runs import SMALL
from wmrl_ray.online import Clock, make_clock
from wmrl_ray.run.config import OnlineConfig, RunConfig


def simulated(online: OnlineConfig, seed_steps: int, until: int, call: int) -> list[tuple[int, int, bool]]:
    """(steps so far, updates so far, random) after each turn, up to `until` updates in calls of `call`."""
    clock, steps, update, seen = Clock(online, seed_steps), 0, 0, []
    for end in range(call, until + 1, call):
        while update < end:
            turn = clock.turn(update, steps, end)
            assert turn.steps or turn.updates
            steps += turn.steps * online.total_envs
            update += turn.updates
            seen.append((steps, update, turn.random))
        assert update == end
    return seen


def test_the_papers_loop_seeds_then_updates_as_often_then_alternates() -> None:
    seen = simulated(OnlineConfig(), 30, until=60, call=10)
    assert seen[0] == (30, 0, True)
    assert seen[1:4] == [(30, 10, False), (30, 20, False), (30, 30, False)]
    assert seen[4:] == [(30 + i, 30 + i, False) for i in range(1, 31)]


@pytest.mark.parametrize(
    "online",
    [
        OnlineConfig(num_envs=4),
        OnlineConfig(num_envs=2, updates_per_step=2.0),
        OnlineConfig(num_envs=2, updates_per_step=0.5),
        OnlineConfig(num_runners=2, num_envs=1, steps_per_turn=5, updates_per_step=0.5),
        OnlineConfig(num_envs=3, steps_per_turn=2, updates_per_step=1 / 3),
    ],
)
def test_updates_wait_for_their_steps_and_steps_for_their_updates(online: OnlineConfig) -> None:
    seen = simulated(online, 50, until=400, call=20)
    per_turn = round(online.updates_per_turn)
    for steps, update, is_random in seen:
        if not is_random:
            assert update <= steps * online.updates_per_step + 1e-6
        if steps > 50 + online.total_envs:  # after the first burst neither is ahead by more than a turn
            assert steps * online.updates_per_step - update < per_turn + online.total_envs * online.updates_per_step
    assert seen[-1][1] == 400
    assert sum(1 for *_, is_random in seen if is_random) == 1


def test_the_number_of_random_steps_comes_from_the_step_limit() -> None:
    config = RunConfig(algorithm="online", env="Drift-v0", agent=SMALL)
    assert make_clock(config, "Drift-v0").seed_steps == 1000
    assert make_clock(dataclasses.replace(config, env_config={"max_episode_steps": 700}), "Drift-v0").seed_steps == 3500
    many = dataclasses.replace(config, online=OnlineConfig(num_envs=100))
    assert make_clock(many, "Drift-v0").seed_steps == 2000  # an episode of each
