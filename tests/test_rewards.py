"""Decoded rewards beside the environment's: every step paired with its own, and the command around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import OnlineTDMPC, registered
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError
from wmrl_ray.core.batch import Batch
from wmrl_ray.rewards import pearson, recover_rewards, steps_of

SMALL = {
    "model": {"latent_dim": 8, "encoder_dim": 8, "hidden_dim": 8},
    "plan": {"horizon": 2, "num_samples": 4, "num_policy": 4, "num_elites": 2, "iterations": 1},
}


class Knows(OnlineTDMPC):
    """Decodes -2 x the true reward of Drift-v0 + 3, from what follows a step: a correlation of -1."""

    def decoded_reward(self, batch: Batch) -> Tensor:
        return -2 * (1 - batch.obs[:, 1:].abs().amax(-1)) + 3


@pytest.fixture(autouse=True)
def agents() -> Iterator[None]:
    with registered(knows=Knows):
        yield


def make(cls: type[OnlineTDMPC] = Knows) -> OnlineTDMPC:
    from wmrl_ray.core.agents import agent_config

    return cls(agent_config("tdmpc", SMALL), 3, 2)


def test_every_step_is_paired_with_its_own_reward() -> None:
    found = recover_rewards(make(), "Drift-v0", 4, num_envs=3)
    assert len(found.true) == len(found.decoded) == sum(found.lengths) and len(found.returns) == 4
    np.testing.assert_allclose(found.decoded, -2 * found.true + 3, rtol=1e-4, atol=1e-4)
    assert found.pearson == pytest.approx(-1, abs=1e-6)
    assert found.pearson_of_episodes == pytest.approx([-1] * 4, abs=1e-5)
    assert found.true[: found.lengths[0]].sum() == pytest.approx(found.returns[0], rel=1e-5)


def test_episodes_of_the_random_policy_come_after_the_agents_own() -> None:
    alone = recover_rewards(make(), "Drift-v0", 2, num_envs=2)
    found = recover_rewards(make(), "Drift-v0", 2, num_envs=2, num_random=3)
    own = sum(alone.lengths)
    assert found.lengths[:2] == alone.lengths and len(found.lengths) == len(found.returns) == 5
    np.testing.assert_array_equal(found.true[:own], alone.true)
    np.testing.assert_allclose(found.decoded, -2 * found.true + 3, rtol=1e-4, atol=1e-4)
    assert found.true[own : own + found.lengths[2]].sum() == pytest.approx(found.returns[2], rel=1e-5)


def test_the_last_step_alone_is_terminal() -> None:
    from wmrl_ray.collect import Collector

    episodes = Collector("Drift-v0", num_envs=4).collect(None, 60)
    for episode in episodes:
        batch = steps_of(episode)
        assert batch.terminated[:, 0].tolist() == [False] * (len(episode) - 1) + [episode.terminated]
        assert torch.equal(batch.obs[1:, 0], batch.obs[:-1, 1])


def test_the_correlation_is_numpys_and_none_without_variation() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 50))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert pearson(a, np.ones(50)) is None


def test_an_agent_that_is_told_rewards_is_refused() -> None:
    with pytest.raises(ConfigError, match="OnlineTDMPC decodes no rewards"):
        recover_rewards(make(OnlineTDMPC), "Drift-v0", 1)


def test_the_command_writes_a_picture_and_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wmrl_ray.cli.analyse import reward

    about = {
        "algorithm": "knows",
        "agent": SMALL,
        "obs_dim": 3,
        "action_dim": 2,
        "env": "Drift-v0",
        "update": 5,
        "dataset": None,
    }
    path = checkpoint.save(tmp_path / "c", {"agent": {"model": make().model.state_dict()}}, about)
    reward(path, episodes=2, out=tmp_path / "fig4.png")
    assert "Pearson correlation of decoded and true rewards: -1.000" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "fig4.json").read_text())
    assert numbers["pearson"] == pytest.approx(-1, abs=1e-6) and len(numbers["true"]) == numbers["steps"] == sum(
        numbers["lengths"]
    )
    assert (tmp_path / "fig4.png").read_bytes()[:4] == b"\x89PNG"
    reward(path, episodes=2, random_episodes=1, out=tmp_path / "both.png")
    assert "steps of 2 episodes and 1 of the random policy" in capsys.readouterr().out
    assert json.loads((tmp_path / "both.json").read_text())["random_episodes"] == 1
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        reward(path, out=tmp_path / "fig4.txt")
