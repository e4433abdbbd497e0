"""Windows are contiguous, uniform and padded after their episode; capacity and state are exact. Observations count rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from wmrl_ray.data.datasets import Dataset, dataset_from_episodes
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.replay import Replay

O, A = 5, 2  # noqa: E741


def counting_episode(number: int, steps: int, terminated: bool = False) -> Episode:
    """obs[t] = (episode, t, ...), action[t] = reward[t] = t / 1000, so each row says where it came from."""
    time = np.arange(steps + 1, dtype=np.float32)
    obs = np.stack([np.full(steps + 1, number, np.float32), time, time * 2, time * 3, -time], axis=1)
    action = np.stack([time[:-1], -time[:-1]], axis=1) / 1000
    return Episode(obs, action, time[:-1] / 1000, terminated)


def counting_dataset(lengths: list[int], terminated: bool = False) -> Dataset:
    return dataset_from_episodes([counting_episode(i, n, terminated) for i, n in enumerate(lengths)], name="counting")


def online_replay(lengths: list[int], *, capacity: int | None = None, seed: int = 0) -> Replay:
    replay = Replay(obs_dim=O, action_dim=A, capacity=capacity, seed=seed)
    for number, steps in enumerate(lengths):
        replay.add(counting_episode(number, steps))
    return replay


def mixed_replay(seed: int = 0) -> Replay:
    replay = Replay(counting_dataset([4, 9, 3]), seed=seed)
    for number, steps in ((3, 5), (4, 2), (5, 7)):
        replay.add(counting_episode(number, steps))
    return replay


@pytest.fixture(params=["dataset", "online", "both"])
def replay(request: pytest.FixtureRequest) -> Replay:
    lengths = [4, 9, 3, 5, 2, 7]
    if request.param == "dataset":
        return Replay(counting_dataset(lengths))
    return online_replay(lengths) if request.param == "online" else mixed_replay()


def starts_of(replay: Replay, horizon: int, draws: int = 4000) -> list[tuple[int, int]]:
    batch = replay.sample(draws, horizon)
    return [(int(e), int(t)) for e, t in batch.obs[:, 0, :2].tolist()]


@pytest.mark.parametrize("horizon", [1, 3, 4])
def test_a_window_is_contiguous_and_stays_in_its_episode(replay: Replay, horizon: int) -> None:
    batch = replay.sample(500, horizon)
    assert batch.obs.shape == (500, horizon + 1, O) and batch.obs.dtype == torch.float32
    assert batch.action.shape == (500, horizon, A) and batch.reward.shape == batch.terminated.shape == (500, horizon)
    assert batch.terminated.dtype == torch.bool
    assert batch.valid.shape == (500, horizon) and batch.valid.dtype == torch.bool
    assert (batch.obs[:, :, 0] == batch.obs[:, :1, 0]).all()
    steps, valid = batch.obs[:, :-1, 1], batch.valid
    assert torch.equal(batch.obs[:, 1:, 1] - steps, valid.float())  # the last observation repeats after the end
    torch.testing.assert_close(batch.reward, torch.where(valid, steps / 1000, 0.0))
    torch.testing.assert_close(batch.action[..., 1], torch.where(valid, -steps / 1000, 0.0))


LENGTHS = torch.tensor([4, 9, 3, 5, 2, 7])


@pytest.mark.parametrize("horizon", [1, 3, 9])
def test_exactly_the_steps_of_the_episode_are_valid(replay: Replay, horizon: int) -> None:
    batch = replay.sample(500, horizon)
    episode, start = batch.obs[:, 0, 0].long(), batch.obs[:, 0, 1]
    assert torch.equal(batch.valid, start[:, None] + torch.arange(horizon) < LENGTHS[episode][:, None])


def test_every_step_is_seen_at_every_place_of_a_window_as_often() -> None:
    """A window that has to fit shows an episode's last step at t = H-1 only, which starves the values of terminal steps."""
    batch = Replay(counting_dataset([12], terminated=True)).sample(60_000, 4)
    for t in range(4):
        _, counts = batch.obs[:, t, 1][batch.valid[:, t]].unique(return_counts=True)
        assert len(counts) == 12 - t and (counts / 5000 - 1).abs().max() < 0.07
        assert (batch.obs[:, t, 1][batch.terminated[:, t]] == 11).all()
    assert batch.terminated.sum(0).div(5000).sub(1).abs().max() < 0.07


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_every_step_starts_a_window_and_nothing_else_does(replay: Replay, horizon: int) -> None:
    valid = {(e, t) for e, steps in enumerate([4, 9, 3, 5, 2, 7]) for t in range(steps)}
    assert set(starts_of(replay, horizon)) == valid  # includes the last step of each episode


def test_starts_are_uniform_over_windows_not_over_episodes(replay: Replay) -> None:
    draws, horizon = 60_000, 3
    _, counts = np.unique(starts_of(replay, horizon, draws), axis=0, return_counts=True)
    expected = draws / replay.num_steps
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 61  # 30 steps: 29 degrees of freedom, p = 0.0005 at 61


def test_only_the_last_step_of_a_terminated_episode_is_marked() -> None:
    replay = Replay(obs_dim=O, action_dim=A)
    replay.add(counting_episode(0, 6, terminated=True))
    replay.add(counting_episode(1, 6, terminated=False))
    batch = replay.sample(400, 2)
    is_last = batch.valid & (batch.obs[:, :-1, 0] == 0) & (batch.obs[:, :-1, 1] == 5)
    assert is_last.any()
    assert torch.equal(batch.terminated, is_last)


def test_a_window_as_long_as_the_longest_episode_is_drawn_whole() -> None:
    batch = online_replay([3, 9]).sample(200, 9)
    assert {(int(e), int(t)) for e, t in batch.obs[batch.valid.all(1), 0, :2].tolist()} == {(1, 0)}


@pytest.mark.parametrize("backing", ["dataset", "online"])
def test_no_episode_longer_than_the_window_is_one_clear_error(backing: str) -> None:
    replay = Replay(counting_dataset([3, 4])) if backing == "dataset" else online_replay([3, 4])
    with pytest.raises(DataError, match=r"window of 5 steps \(the longest has 4\); use a horizon of at most 4"):
        replay.sample(8, 5)
    assert replay.sample(8, 4).horizon == 4


def test_an_empty_replay_and_a_horizon_below_one_are_errors() -> None:
    with pytest.raises(DataError, match="replay is empty"):
        Replay(obs_dim=O, action_dim=A).sample(2, 3)
    with pytest.raises(DataError, match="horizon = 0"):
        online_replay([3]).sample(2, 0)


def test_capacity_evicts_the_oldest_whole_episodes() -> None:
    replay = online_replay([4, 4, 4], capacity=10)
    assert (replay.num_episodes, replay.num_steps) == (2, 8)
    assert {e for e, _ in starts_of(replay, 2)} == {1, 2}
    replay.add(counting_episode(3, 10))
    assert (replay.num_episodes, replay.num_steps) == (1, 10)


def test_a_long_run_under_capacity_always_holds_the_newest_episodes() -> None:
    rng = np.random.default_rng(0)
    replay = Replay(obs_dim=O, action_dim=A, capacity=300)
    lengths: list[int] = []
    for number in range(600):
        lengths.append(int(rng.integers(1, 60)))
        replay.add(counting_episode(number, lengths[-1]))
        if number % 20:
            continue
        kept: list[int] = []
        while len(kept) < len(lengths) and sum(lengths[-len(kept) - 1 :]) <= 300:
            kept.append(number - len(kept))
        assert replay.num_episodes == len(kept) and replay.num_steps == sum(lengths[i] for i in kept) <= 300
        valid = {(e, t) for e in kept for t in range(lengths[e])}
        assert set(starts_of(replay, 1, 6000)) == valid


def test_the_buffer_stays_near_the_capacity() -> None:
    replay = Replay(obs_dim=O, action_dim=A, capacity=2000)
    for number in range(300):
        replay.add(counting_episode(number, 50))
    assert len(replay._online.obs) < 2 * 2000 * 1.1


def test_capacity_limits_only_the_online_part() -> None:
    replay = Replay(counting_dataset([50]), capacity=6)
    for number in range(1, 5):
        replay.add(counting_episode(number, 5))
    assert (replay.num_steps, replay.num_episodes) == (55, 2)
    assert {e for e, _ in starts_of(replay, 2)} == {0, 4}


def test_a_rejected_episode_leaves_the_replay_unchanged() -> None:
    replay = online_replay([4], capacity=5)
    good = counting_episode(1, 4)
    wrong = [
        (Episode(good.obs[:, :3], good.action, good.reward, False), "does not fit"),
        (Episode(good.obs, good.action, good.reward[:2], False), "4 actions need 5 observations and 4 rewards"),
        (Episode(good.obs * np.nan, good.action, good.reward, False), "not finite"),
        (counting_episode(1, 6), "exceeds capacity = 5"),
    ]
    before = json.dumps(replay.get_state(), default=np.ndarray.tolist)
    for episode, message in wrong:
        with pytest.raises(DataError, match=message):
            replay.add(episode)
    assert json.dumps(replay.get_state(), default=np.ndarray.tolist) == before


def test_the_same_seed_draws_the_same_windows_and_another_seed_others() -> None:
    assert starts_of(mixed_replay(3), 3) == starts_of(mixed_replay(3), 3) != starts_of(mixed_replay(4), 3)
    assert starts_of(Replay(counting_dataset([50]), seed=[1, 2]), 3) != starts_of(
        Replay(counting_dataset([50]), seed=[1, 3]), 3
    )


def test_a_seed_may_be_a_numpy_integer() -> None:
    dataset = counting_dataset([50])
    assert starts_of(Replay(dataset, seed=np.int64(3)), 3) == starts_of(Replay(dataset, seed=3), 3)  # type: ignore[arg-type]


def test_sampling_leaves_the_global_generators_alone() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), float(torch.rand(()))
    np.random.seed(0)
    torch.manual_seed(0)
    mixed_replay().sample(32, 2)
    assert (np.random.rand(), float(torch.rand(()))) == expected


def test_a_restored_replay_continues_exactly(replay: Replay) -> None:
    replay.sample(33, 3)
    state = replay.get_state()
    expected = starts_of(replay, 3)
    other = Replay(replay_dataset(replay), obs_dim=O, action_dim=A, seed=99)
    other.add(counting_episode(77, 8))
    other.set_state(through_json(state))
    assert starts_of(other, 3) == expected
    assert (other.num_steps, other.num_episodes) == (replay.num_steps, replay.num_episodes)


def test_a_restored_replay_keeps_evicting_in_the_same_order() -> None:
    replay = online_replay([4, 5, 6], capacity=16)
    other = Replay(obs_dim=O, action_dim=A, capacity=16)
    other.set_state(through_json(replay.get_state()))
    for number in range(3, 30):
        for each in (replay, other):
            each.add(counting_episode(number, 1 + number % 6))
        assert starts_of(replay, 1, 50) == starts_of(other, 1, 50)


def test_a_state_is_a_copy_that_later_episodes_do_not_change() -> None:
    replay = online_replay([4, 4], capacity=8)
    state = replay.get_state()
    before = json.dumps(state, default=np.ndarray.tolist)
    for number in range(2, 40):
        replay.add(counting_episode(number, 4))
    assert json.dumps(state, default=np.ndarray.tolist) == before


def test_the_state_of_another_dataset_or_size_is_refused() -> None:
    state = Replay(counting_dataset([4, 5])).get_state()
    with pytest.raises(DataError, match="saved with dataset sha256"):
        Replay(counting_dataset([4, 6])).set_state(state)
    with pytest.raises(DataError, match="obs_dim = 5"):
        Replay(obs_dim=O + 1, action_dim=A).set_state(online_replay([4]).get_state())


def test_sizes_are_needed_once_and_must_agree() -> None:
    with pytest.raises(DataError, match="needs a dataset, or obs_dim"):
        Replay()
    with pytest.raises(DataError, match="obs_dim = 6"):
        Replay(counting_dataset([4]), obs_dim=6)
    with pytest.raises(DataError, match="capacity = 0"):
        Replay(obs_dim=1, action_dim=1, capacity=0)


def test_a_batch_is_writable_and_detached_from_the_replay() -> None:
    replay = online_replay([4])
    replay.sample(8, 2).obs.zero_()
    batch = replay.sample(80, 2)
    assert torch.equal(batch.obs[:, 1:, 1] - batch.obs[:, :-1, 1], batch.valid.float())


def replay_dataset(replay: Replay) -> Dataset | None:
    """The dataset that the fixture's replay was built on, rebuilt."""
    if replay._fixed is None:
        return None
    return counting_dataset([4, 9, 3, 5, 2, 7] if replay._fixed.num_episodes == 6 else [4, 9, 3])


def through_json(state: dict) -> dict:
    """What a checkpoint does: everything but arrays goes through JSON."""

    def walk(value: object) -> object:
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items()}
        return value.copy() if isinstance(value, np.ndarray) else json.loads(json.dumps(value))

    return walk(state)  # type: ignore[return-value]


# -- returns-to-go -----------------------------------------------------------------------------------------------------------


def test_returns_to_go_and_times_are_those_of_the_episode(replay: Replay) -> None:
    batch = replay.sample(500, 3, return_to_go=True)
    assert batch.time is not None and batch.return_to_go is not None
    assert torch.equal(batch.time, batch.obs[:, 0, 1].long()) and batch.time.dtype == torch.int64
    length = LENGTHS[batch.obs[:, 0, 0].long()]
    step = batch.time[:, None] + torch.arange(3)
    expected = (length * (length - 1) // 2)[:, None] - step * (step - 1) // 2  # sum of step .. length - 1
    torch.testing.assert_close(batch.return_to_go, torch.where(batch.valid, expected / 1000, 0.0), atol=1e-7, rtol=1e-6)


def test_asking_for_returns_to_go_draws_the_same_windows() -> None:
    a, b = mixed_replay(3).sample(50, 3), mixed_replay(3).sample(50, 3, return_to_go=True)
    assert torch.equal(a.obs, b.obs) and a.time is None and a.return_to_go is None


def test_returns_to_go_follow_episodes_that_come_and_go() -> None:
    replay = online_replay([4, 9], capacity=14)
    replay.sample(10, 1, return_to_go=True)
    replay.add(counting_episode(2, 5))  # the first one leaves
    batch = replay.sample(300, 1, return_to_go=True)
    assert batch.time is not None and batch.return_to_go is not None
    at_start = batch.time == 0
    found = dict(zip(batch.obs[at_start, 0, 0].tolist(), batch.return_to_go[at_start, 0].tolist(), strict=True))
    assert found == pytest.approx({1.0: 0.036, 2.0: 0.010})


def test_a_huge_reward_in_one_episode_costs_no_digit_in_another() -> None:
    replay = Replay(obs_dim=O, action_dim=A)
    for reward in (1e30, 0.1):
        replay.add(Episode(np.zeros((4, O), np.float32), np.zeros((3, A), np.float32), np.full(3, reward, np.float32), False))
    batch = replay.sample(200, 1, return_to_go=True)
    assert batch.return_to_go is not None
    assert batch.return_to_go[batch.return_to_go < 1].unique().tolist() == pytest.approx([0.1, 0.2, 0.3], rel=1e-7)


def test_a_state_without_its_episodes_copies_none(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = online_replay([5, 6])
    whole = replay.get_state()

    def refused() -> None:
        raise AssertionError("the episodes were copied")

    monkeypatch.setattr(replay._online, "get_state", refused)
    assert replay.get_state(episodes=False) == {name: whole[name] for name in ("dataset_sha256", "generator")}
