"""Datasets and environments with intents: one Manager, the same vectors wherever they are asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import minari
import numpy as np
import pytest
import torch

from tests.data.fakes import write_minari
from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.cli.evaluate import evaluate as cli_evaluate
from wmrl_ray.config import ConfigError, from_dict, to_dict
from wmrl_ray.core.agents import agent_config, make_agent
from wmrl_ray.core.agents.manager import Manager
from wmrl_ray.data.datasets import Dataset, check_compatible, open_dataset
from wmrl_ray.data.episode import DataError, Episode
from wmrl_ray.data.makers import make_dataset
from wmrl_ray.data.source import minari_root
from wmrl_ray.envs import make_env
from wmrl_ray.envs.intents import intent_env_id, load_manager
from wmrl_ray.intents import augment, augmented, intended_states
from wmrl_ray.report.render import write_report
from wmrl_ray.rollout import env_dims, evaluate
from wmrl_ray.run.config import RunConfig
from wmrl_ray.train import train

SMALL = {
    "model": {"latent_dim": 6, "encoder_dim": 8, "hidden_dim": 8},
    "plan": {"horizon": 2, "num_samples": 0, "num_policy": 8, "num_elites": 2, "iterations": 1},
    "skip": 3,
}
ENV = "wmrl/PointMaze-UMaze-v0"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    dataset_id = make_dataset("pointmaze-umaze", steps=3_000, dataset_id="test/intents-point-v0", reference_episodes=2)
    return open_dataset(dataset_id)


@pytest.fixture
def manager_path(tmp_path: Path) -> Path:
    return save_manager(tmp_path / "manager")


def save_manager(path: Path, name: str = "manager", obs_dim: int = 4, seed: int = 0) -> Path:
    values = SMALL if name == "manager" else {}
    agent = make_agent(name, values, obs_dim, 2, seed=seed)
    meta = {"algorithm": name, "agent": to_dict(agent_config(name, values)), "obs_dim": obs_dim, "action_dim": 2, "env": ENV}
    return checkpoint.save(path, {"agent": agent.get_state()}, meta)


def test_a_dataset_gets_the_managers_intents_behind_its_observations(dataset: Dataset, manager_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = open_dataset(augment(dataset.card.uri, manager_path, progress=lambda *at: seen.append(at)))
    assert made.card.name == "test/intents-point-intents-manager-v0"
    np.testing.assert_array_equal(made.obs[:, :4], dataset.obs)
    for name in ("action", "reward", "terminated", "episode_starts"):
        np.testing.assert_array_equal(getattr(made, name), getattr(dataset, name))
    assert seen[-1] == (len(dataset.obs),) * 2

    manager = load_manager(manager_path)
    for index in (0, len(dataset) - 1):
        episode, intents = dataset.episode(index), made.episode(index).obs[:, 4:]
        last = len(episode)
        for t in (0, 5, last - 1, last):  # the last steps look at the last state
            now, later = (torch.from_numpy(episode.obs[row][None].copy()) for row in (t, min(t + 3, last)))
            np.testing.assert_allclose(intents[t], manager.intent(now, later)[0], atol=1e-6)
    assert made.card.obs_dim == 10 and made.card.normalized_score(made.card.ref_max_score or 0) == 100


def test_an_intent_never_looks_into_the_next_episode(manager_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two episodes, of 7 and 2 steps, whose states are far apart; a pass in pieces that do not end where they end."""

    def episode_at(place: float, steps: int) -> Episode:
        obs = place + np.arange(4 * (steps + 1), dtype=np.float32).reshape(-1, 4)
        return Episode(obs, np.zeros((steps, 2), np.float32), np.zeros(steps, np.float32), False)

    episodes = [episode_at(-100.0, 7), episode_at(100.0, 2)]
    write_minari("test/intents-far-v0", episodes)
    far = open_dataset("test/intents-far-v0")
    monkeypatch.setattr("wmrl_ray.intents.ROWS", 5)
    made, manager = open_dataset(augment(far.card.uri, manager_path, "test/intents-apart-v0")), load_manager(manager_path)
    for index, episode in enumerate(episodes):
        later = episode.obs[np.minimum(np.arange(len(episode.obs)) + 3, len(episode.obs) - 1)]
        expected = manager.intent(torch.from_numpy(episode.obs), torch.from_numpy(later)).numpy()
        np.testing.assert_allclose(made.episode(index).obs[:, 4:], expected, atol=1e-5)


def test_the_manifest_names_the_manager(dataset: Dataset, manager_path: Path) -> None:
    dataset_id = augment(dataset.card.uri, manager_path, "test/intents-named-v0")
    about = json.loads(minari.load_dataset(dataset_id).storage.metadata["wmrl_intents"])
    assert about["manager"] == str(manager_path) and about["skip"] == 3 and about["dataset"] == dataset.card.name
    assert len(about["sha256"]) == 64
    card = open_dataset(dataset_id).card
    assert str(manager_path) in card.description
    assert (card.base_name, card.base_sha256) == (dataset.card.name, dataset.card.sha256)


def test_a_broken_off_pass_goes_on_where_it_was(dataset: Dataset, manager_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmrl_ray.intents.ROWS", 1000)

    def stop(done: int, rows: int) -> None:
        if done == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment(dataset.card.uri, manager_path, "test/intents-resumed-v0", progress=stop)
    assert not (minari_root() / "test/intents-resumed-v0").exists()
    seen: list[int] = []
    resumed = open_dataset(
        augment(dataset.card.uri, manager_path, "test/intents-resumed-v0", progress=lambda done, _: seen.append(done))
    )
    assert seen == [3000, len(dataset.obs)]
    whole = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-whole-v0"))
    np.testing.assert_allclose(resumed.obs, whole.obs, atol=1e-6)
    assert not list(minari_root().glob("test/.*intents*"))


def test_a_pass_of_another_manager_starts_afresh(
    dataset: Dataset, manager_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmrl_ray.intents.ROWS", 1000)

    def stop(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        augment(dataset.card.uri, manager_path, "test/intents-afresh-v0", progress=stop)
    seen: list[int] = []
    other = save_manager(tmp_path / "other", seed=1)
    augment(dataset.card.uri, other, "test/intents-afresh-v0", progress=lambda done, _: seen.append(done))
    assert seen[0] == 1000


def test_random_vectors_replace_intents_for_the_ablation(dataset: Dataset) -> None:
    made = open_dataset(augment(dataset.card.uri, 7))
    vectors = made.obs[:, 4:]
    assert made.card.name == "test/intents-point-random7-v0" and vectors.shape[1] == 7
    assert vectors.min() >= 0 and vectors.max() <= 1 and abs(vectors.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(vectors[:-1, 0], vectors[1:, 0])[0, 1]) < 0.1  # redrawn at every step
    assert made.card.env_id is not None and env_dims(made.card.env_id) == (11, 2)


def test_random_vectors_come_in_pieces_that_change_nothing(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_dataset(augment(dataset.card.uri, 3, "test/intents-random-whole-v0", seed=4))
    monkeypatch.setattr("wmrl_ray.intents.ROWS", 1000)
    rows, seen = len(dataset.obs), []
    pieces = augment(dataset.card.uri, 3, "test/intents-random-pieces-v0", seed=4, progress=lambda *at: seen.append(at))
    np.testing.assert_array_equal(open_dataset(pieces).obs, whole.obs)
    assert seen == [(1000, rows), (2000, rows), (3000, rows), (rows, rows)]


def test_the_same_data_with_other_reference_scores_gives_a_dataset_of_another_name(
    dataset: Dataset, manager_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (augmented(dataset.card.uri, 2) for _ in range(2))
    other = dataclasses.replace(dataset, card=dataclasses.replace(dataset.card, ref_max_score=1e4))
    monkeypatch.setattr("wmrl_ray.intents.open_dataset", lambda uri: other)
    rescaled = open_dataset(augmented(dataset.card.uri, 2))
    assert first == again != rescaled.card.name and rescaled.card.ref_max_score == 1e4


def test_a_folder_that_is_no_checkpoint_is_one_clear_error(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for make in (augment, augmented):
        with pytest.raises(CheckpointError, match="no manifest.json"):
            make(dataset.card.uri, tmp_path / "empty")


def test_the_environment_plans_with_the_same_manager(dataset: Dataset, manager_path: Path) -> None:
    made = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-env-v0"))
    assert made.card.env_id is not None and made.card.env_id.startswith("intents:") and made.card.env_id.endswith(f":{ENV}")
    env, manager = make_env(made.card.env_id), load_manager(manager_path)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs) and obs.shape == (10,)
    noise = torch.Generator().manual_seed(3)
    for _ in range(4):
        np.testing.assert_allclose(obs[4:], manager.act_intent(torch.from_numpy(obs[None, :4]), noise)[0], atol=1e-6)
        obs = env.step(np.array([0.5, -0.5], np.float32))[0]
    plain = make_env(ENV)
    np.testing.assert_array_equal(plain.reset(seed=3)[0], env.reset(seed=3)[0][:4])


def test_a_worker_that_knows_nothing_of_intents_is_evaluated_and_repeats(dataset: Dataset, manager_path: Path) -> None:
    made = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-worker-v0"))
    worker = make_agent("bc", {}, made.card.obs_dim, 2)
    assert made.card.env_id is not None
    first, second = (evaluate(worker, made.card.env_id, 2, num_envs=2, seed=5) for _ in range(2))
    assert first.returns == second.returns and first.episodes[0].obs.shape[1] == 10
    np.testing.assert_array_equal(first.episodes[1].obs, second.episodes[1].obs)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("bc", ConfigError, "holds a BC, not a Manager"),
        ("wide", DataError, "observations of size 5"),
        ("missing", CheckpointError, "no checkpoint"),
        (0, ConfigError, "random = 0"),
    ],
)
def test_what_is_no_fitting_manager_is_one_clear_error(
    dataset: Dataset, tmp_path: Path, source: str | int, error: type[Exception], message: str
) -> None:
    save_manager(tmp_path / "bc", name="bc")
    save_manager(tmp_path / "wide", obs_dim=5)
    with pytest.raises(error, match=message):
        augment(dataset.card.uri, source if isinstance(source, int) else tmp_path / source, "test/intents-never-v0")
    assert not (minari_root() / "test/intents-never-v0").exists()


def test_an_id_that_is_none_is_refused_and_a_new_namespace_is_made(dataset: Dataset, manager_path: Path) -> None:
    with pytest.raises(DataError, match="'no id'"):
        augment(dataset.card.uri, 2, "no id")
    made = augment(dataset.card.uri, manager_path, "test-new/space/intents-v0")
    assert open_dataset(made).card.name == "test-new/space/intents-v0"


def test_a_manager_that_is_trained_further_changes_no_dataset_of_before(dataset: Dataset, manager_path: Path) -> None:
    made = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-kept-v0"))
    assert made.card.env_id is not None
    before = make_env(made.card.env_id).reset(seed=0)[0]
    save_manager(manager_path, seed=1)
    np.testing.assert_array_equal(make_env(made.card.env_id).reset(seed=0)[0], before)
    again = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-kept-again-v0"))
    assert again.card.env_id != made.card.env_id
    with pytest.raises(DataError, match="was recorded in"):
        check_compatible(made, 10, 2, again.card.env_id)
    check_compatible(made, 10, 2, made.card.env_id)


def test_a_path_that_an_id_cannot_hold_is_refused_before_the_pass(dataset: Dataset, tmp_path: Path) -> None:
    save_manager(tmp_path / "manager")
    with pytest.raises(ConfigError, match="has a colon"):
        intent_env_id(tmp_path / "10:00", ENV)


@pytest.mark.parametrize("env_id", ["intents:only", "random-intents:x:wmrl/PointMaze-UMaze-v0"])
def test_a_wrong_id_is_refused(env_id: str) -> None:
    with pytest.raises(ConfigError, match="looks like|is not a size"):
        make_env(env_id)


def test_a_dataset_that_exists_is_not_replaced_unasked(dataset: Dataset, manager_path: Path) -> None:
    augment(dataset.card.uri, manager_path, "test/intents-taken-v0")
    with pytest.raises(DataError, match="exists already"):
        augment(dataset.card.uri, manager_path, "test/intents-taken-v0")
    augment(dataset.card.uri, manager_path, "test/intents-taken-v0", overwrite=True)


def test_a_manager_is_loaded_as_one(manager_path: Path) -> None:
    assert isinstance(load_manager(manager_path), Manager)


def test_what_the_intents_point_to_is_decoded_for_pictures(dataset: Dataset, manager_path: Path, tmp_path: Path) -> None:
    made = open_dataset(augment(dataset.card.uri, manager_path, "test/intents-decoded-v0"))
    assert made.card.env_id is not None
    result = evaluate(make_agent("bc", {}, 10, 2), made.card.env_id, 2, num_envs=2)
    intended = intended_states(result.episodes, made.card.env_id)
    assert intended is not None and [states.shape for states in intended] == [(len(e) + 1, 4) for e in result.episodes]
    manager, obs = load_manager(manager_path), torch.from_numpy(result.episodes[0].obs[7])
    expected = manager.model.decode(manager.model.encode(obs[:4]) + obs[4:])
    np.testing.assert_allclose(intended[0][7], expected.detach(), atol=1e-5)
    assert intended_states(result.episodes, ENV) is None


def test_a_workers_report_shows_where_its_manager_pointed(dataset: Dataset, manager_path: Path, tmp_path: Path) -> None:
    dataset_id = augment(dataset.card.uri, manager_path, "test/intents-report-v0")
    settings = {
        "num_updates": 2,
        "updates_per_call": 1,
        "eval_episodes": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    for name, uri in (("worker", dataset_id), ("plain", dataset.card.uri)):
        train(from_dict(RunConfig, {"algorithm": "bc", "dataset": uri, **settings}), tmp_path / name)
    html = write_report([tmp_path / "worker"], tmp_path / "report.html")[0].read_text()
    assert "the Manager's intents pointed to" in html and "bc, without intents" not in html
    both = write_report([tmp_path / "worker", tmp_path / "plain"], tmp_path / "both.html")[0].read_text()
    assert both.index("bc, without intents") < both.index("bc, with intents")


def test_a_manager_is_trained_and_resumed_and_never_evaluated_itself(dataset: Dataset, tmp_path: Path) -> None:
    every = dict.fromkeys(("num_updates", "eval_every", "checkpoint_every", "log_every"), 4)
    settings = {"updates_per_call": 2, "batch_size": 8, **every, "agent": SMALL}
    config = from_dict(RunConfig, {"algorithm": "manager", "dataset": dataset.card.uri, **settings})
    result = train(config, tmp_path / "run")
    assert result["finished"] and not any(name.startswith("eval/") for name in result)
    assert (write_report([tmp_path / "run"], tmp_path / "report.html")[0]).exists()
    with pytest.raises(ConfigError, match="judged by its Workers"):
        cli_evaluate(tmp_path / "run")
