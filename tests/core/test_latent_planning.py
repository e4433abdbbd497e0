"""Planning of the TD-MPC family in bfloat16: with weights that were rounded once for a plan."""

import pytest
import torch

from tests.core.reference import random_batch, shake
from wmrl_ray.core.agents import make_agent

H, O, A = 3, 5, 6  # noqa: E741
MODEL = {"latent_dim": 8, "encoder_dim": 16, "hidden_dim": 32}
PLANS = {
    "tdmpc": {"horizon": H, "num_samples": 16, "num_policy": 4, "num_elites": 4, "iterations": 2},
    "iql_tdmpc": {"horizon": H, "num_policy": 16, "num_elites": 4},
    "manager": {"horizon": H, "num_policy": 16, "num_elites": 4},
}


def make(name, seed=0):
    agent = make_agent(name, {"model": MODEL, "plan": PLANS[name], "precision": "bfloat16"}, O, A, seed=seed)
    shake(agent.model, seed=seed)
    return agent


def act(agent):
    obs, first = torch.linspace(-1, 1, 2 * O).view(2, O), torch.ones(2, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    action, state, _ = agent.plan(obs, None, first, generator, explore=True)
    return torch.cat([action.flatten(), state.flatten()])


@pytest.mark.parametrize("name", list(PLANS))
def test_a_plan_in_bfloat16_is_the_one_of_autocast_to_the_bit(name):
    agent = make(name)
    ours = act(agent)
    assert agent.planned is not agent.model and agent.planned.dynamics[0].weight.dtype == torch.bfloat16
    agent.low_precision = None
    assert torch.equal(ours, act(agent)) and agent.planned is agent.model
    assert all(p.dtype == torch.float32 and p.requires_grad for p in agent.model.parameters())


@pytest.mark.parametrize("name", list(PLANS))
def test_a_plan_in_bfloat16_reads_the_weights_of_now(name):
    agent = make(name)

    def plans_with_the_models_weights():
        ours, low_precision = act(agent), agent.low_precision
        agent.low_precision = None
        expected = act(agent)
        agent.low_precision = low_precision
        return torch.equal(ours, expected)

    before = act(agent)
    agent.update(random_batch(4, agent.config.window, O, A))  # by fused optimisers
    assert plans_with_the_models_weights() and not torch.equal(before, act(agent))
    agent.set_state(make(name, seed=1).get_state())
    assert plans_with_the_models_weights()
    agent.model.get_parameter("actor.4.bias").data.fill_(3.0)
    assert plans_with_the_models_weights()
