"""Datasets of images: kept as uint8 from the disk to the batch, in Minari and npz, and as demonstrations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.fakes import assert_holds
from tests.fakes import ImageActor, registered
from wmrl_ray import checkpoint
from wmrl_ray.cli.app import app
from wmrl_ray.core.batch import Batch
from wmrl_ray.data import DataError, Episode, Replay, dataset_from_episodes, export, open_dataset
from wmrl_ray.data.makers.experts import make_demonstrations
from wmrl_ray.data.minari_writer import write_local_minari
from wmrl_ray.intents import augmented
from wmrl_ray.online import train_online
from wmrl_ray.run.config import OnlineConfig, RunConfig

SHAPE = (3, 4, 4)


class ImageImitator(ImageActor):
    """Learns from demonstrations too; every second row of a batch is one of them."""

    needs_demonstrations = True

    def update(self, batch: Batch):  # noqa: ANN201
        assert batch.is_expert is not None and batch.is_expert.float().mean() == 0.5
        return super().update(batch)


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(image_actor=ImageActor, image_imitator=ImageImitator):
        yield


def image_episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    obs = rng.integers(0, 256, (steps + 1, *SHAPE), np.uint8)
    action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    return Episode(obs, action, rng.normal(size=steps).astype(np.float32), number == 1)


@pytest.fixture
def episodes() -> list[Episode]:
    return [image_episode(0, 4), image_episode(1, 7), image_episode(2, 5)]


@pytest.fixture
def written(home: Path, episodes: list[Episode]) -> str:
    write_local_minari(dataset_from_episodes(episodes), "images-v0")
    return "images-v0"


def test_images_come_back_byte_for_byte(home: Path, written: str, episodes: list[Episode]) -> None:
    for _ in range(2):  # read, then mapped
        dataset = open_dataset(written)
        assert dataset.obs.dtype == np.uint8 and dataset.obs.shape == (19, *SHAPE) and not dataset.obs.flags.writeable
        assert dataset.card.obs_dim == SHAPE and dataset.card.obs_mean == ()
        assert_holds(dataset, episodes)


def test_minari_reads_what_we_wrote(written: str, episodes: list[Episode]) -> None:
    import minari

    found = minari.load_dataset(written)
    assert found.observation_space.shape == SHAPE and found.observation_space.dtype == np.uint8
    assert np.array_equal(found[1].observations, episodes[1].obs)


@pytest.mark.parametrize("name", ["copy.npz", "copy-v0"])
def test_an_export_has_the_same_images(home: Path, written: str, name: str) -> None:
    path = export(written, home / name, "npz" if name.endswith("npz") else "minari")
    assert open_dataset(path).card.sha256 == open_dataset(written).card.sha256


@pytest.mark.parametrize("ending", ["parquet", "arrow", "hdf5"])
def test_formats_without_images_refuse_them(home: Path, written: str, ending: str) -> None:
    with pytest.raises(DataError, match=f"holds images, which format = '{ending}' cannot; export it as minari or npz"):
        export(written, home / f"copy.{ending}", ending)
    assert not (home / f"copy.{ending}").exists()


def test_a_replay_gives_windows_of_the_images(home: Path, written: str, episodes: list[Episode]) -> None:
    replay = Replay(open_dataset(written), seed=0)
    replay.check_window(2)
    batch = replay.sample(64, 2)
    assert tuple(batch.obs.shape) == (64, 3, *SHAPE) and str(batch.obs.dtype) == "torch.uint8"
    windows = {episode.obs[t : t + 3].tobytes() for episode in episodes for t in range(len(episode) - 1)}
    inside = batch.valid.all(1)
    assert inside.any() and all(obs.numpy().tobytes() in windows for obs in batch.obs[inside])


def test_the_card_and_a_picture_of_images(home: Path, written: str) -> None:
    result = CliRunner().invoke(app, ["data", "info", written, "--picture", str(home / "frames.png")])
    assert result.exit_code == 0, result.output
    assert "images of 3 x 4 x 4, 2 actions" in result.output and "mean  " not in result.output
    from matplotlib.image import imread

    assert imread(home / "frames.png").std() > 0.1


def test_intents_cannot_follow_images(written: str) -> None:
    with pytest.raises(DataError, match="are images; intents are vectors behind vectors"):
        augmented(written, 8)


def test_demonstrations_of_an_expert_that_sees_images_teach_an_imitator(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ImageActor(ImageActor.Config(), SHAPE, 2)
    about = {"algorithm": "image_actor", "agent": {}, "obs_dim": SHAPE, "action_dim": 2, "env": "DriftImages-v0", "update": 7}
    expert = checkpoint.save(
        home / "expert", {"agent": {"model": agent.model.state_dict()}}, {**about, "env_config": {}, "dataset": None}
    )
    monkeypatch.setattr(
        "wmrl_ray.data.makers.experts._random_returns", lambda *args: np.full(5, -1e3)
    )  # the expert has learned nothing
    made = make_demonstrations("DriftImages-v0", expert, num_episodes=6)
    dataset = open_dataset(made)
    assert made == "wmrl/expert/driftimages-visual-v0"
    assert dataset.card.obs_dim == SHAPE and len(dataset) == 6
    config = RunConfig(
        algorithm="image_imitator",
        dataset=made,
        env="DriftImages-v0",
        num_updates=20,
        batch_size=8,
        updates_per_call=10,
        eval_every=20,
        eval_episodes=2,
        checkpoint_every=20,
        log_every=10,
        online=OnlineConfig(seed_steps=40, num_demonstrations=4),
    )
    train_online(config, home / "run")
    logged = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["update"] == 20 and any("eval/return_mean" in line for line in logged)
