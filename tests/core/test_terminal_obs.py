"""A step whose result the data do not have teaches everything but the dynamics."""

import dataclasses

import pytest
import torch

from tests.core.reference import random_batch
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.manager import coarse
from wmrl_ray.core.batch import Batch

B, H, O, A, K = 4, 3, 5, 6, 2  # noqa: E741
OLD = {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 16}
NEW = {"latent_dim": 8, "encoder_dim": 16, "mlp_dim": 12, "simnorm_dim": 4}
PLAN = {"horizon": H, "num_policy": 4, "num_elites": 4, "iterations": 1}
CONFIGS = {
    "tdmpc": {"model": OLD, "plan": {**PLAN, "num_samples": 8}},
    "iql_tdmpc": {"model": OLD, "plan": {**PLAN, "num_samples": 0}},
    "manager": {"model": OLD, "plan": {**PLAN, "num_samples": 0}, "skip": K},
    "tdmpc2": {"model": NEW, "plan": {**PLAN, "num_samples": 8}, "episode_len": 500},
    "iq_mpc": {"model": NEW, "plan": {**PLAN, "num_samples": 8}, "gamma": 0.9},
}


def losses(name: str, batch: Batch) -> dict[str, float]:
    agent = make_agent(name, CONFIGS[name], O, A)
    return {key: value.item() for key, value in agent.update(batch).items() if key.startswith("loss/")}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_unknown_result_leaves_the_consistency_loss_and_no_other(name):
    batch = random_batch(B, H * K if name == "manager" else H, O, A)  # its first window ends in a terminal step
    known = ~batch.terminated
    marked = losses(name, dataclasses.replace(batch, next_obs_known=known))
    absent = losses(name, dataclasses.replace(batch, valid=batch.valid & known))  # as if the step were not there at all
    plain = losses(name, batch)
    assert marked["loss/consistency"] == pytest.approx(absent["loss/consistency"], rel=1e-5)
    assert marked["loss/consistency"] != pytest.approx(plain["loss/consistency"], rel=1e-3)
    learned = {key for key in plain if key not in ("loss/consistency", "loss/model")}
    # Why not equal: the actor's critics have taken a step already, with a clipped gradient
    assert {key: marked[key] for key in learned} == pytest.approx({key: plain[key] for key in learned}, rel=1e-4)
    assert any(absent[key] != pytest.approx(plain[key], rel=1e-3) for key in learned)  # the step has something to teach


def test_a_managers_step_is_observed_where_all_of_its_steps_are():
    batch = random_batch(1, H * K, O, A)
    batch.terminated.zero_()
    batch.terminated[0, 2], batch.valid[0, 3:] = True, False  # in the Manager's second step
    steps = coarse(dataclasses.replace(batch, next_obs_known=~batch.terminated), torch.zeros(1, H, A), K, batch.reward)
    assert steps.valid.tolist() == [[True, True, False]] and steps.observed.tolist() == [[True, False, False]]
    assert coarse(batch, torch.zeros(1, H, A), K, batch.reward).observed.tolist() == [[True, True, False]]
