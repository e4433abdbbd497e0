"""Weights as one vector, without Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.fakes import OnlineTDMPC
from tests.rllib.fakes import ACTION_DIM, OBS_DIM, TINY_AGENT
from wmrl_ray.core.agents import agent_config
from wmrl_ray.rllib.weights import flatten_weights, load_weights


class Mixed(nn.Module):
    """Element sizes 1, 2, 4 and 8, a scalar, and a transposed view, in an order that no alignment survives."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.register_buffer("seen", torch.rand(3, generator=g) > 0.5)
        self.wide = nn.Parameter(torch.rand(5, 2, generator=g).t())
        self.register_buffer("low", torch.rand(3, generator=g).bfloat16())
        self.register_buffer("count", torch.tensor(seed))
        self.precise = nn.Parameter(torch.rand(1, generator=g).double())


def test_every_parameter_and_buffer_arrives_bit_by_bit() -> None:
    source, target = Mixed(1), Mixed(2)
    flat = flatten_weights(source)
    assert flat.dtype == np.uint8
    assert flat.nbytes == 3 + 40 + 6 + 8 + 8
    flat.flags.writeable = False  # as Ray hands it out
    before = target.wide._version
    load_weights(target, flat)
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name
    assert target.wide._version > before  # what a copy in low precision watches
    with torch.no_grad():
        target.wide.zero_()
    assert torch.equal(torch.from_numpy(np.array(flatten_weights(source))), torch.from_numpy(np.array(flat)))


def test_the_vector_is_a_copy_that_later_updates_do_not_change() -> None:
    source = Mixed(1)
    flat = flatten_weights(source)
    before = flat.copy()
    with torch.no_grad():
        source.wide.zero_()
    np.testing.assert_array_equal(flat, before)


def test_an_agent_acts_as_the_one_whose_weights_it_got() -> None:
    agents = [OnlineTDMPC(agent_config("tdmpc", TINY_AGENT), OBS_DIM, ACTION_DIM, seed=seed) for seed in (0, 1)]
    obs, first = torch.randn(3, OBS_DIM), torch.ones(3, dtype=torch.bool)

    def action(agent: OnlineTDMPC) -> torch.Tensor:
        agent.act_generator.manual_seed(7)
        return agent.act(obs, None, first, explore=True)[0]

    assert not torch.equal(action(agents[0]), action(agents[1]))
    load_weights(agents[1].model, flatten_weights(agents[0].model))
    assert torch.equal(action(agents[0]), action(agents[1]))


def test_the_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match="weights of 65 bytes for a module of 24"):
        load_weights(nn.Linear(2, 2), flatten_weights(Mixed(1)))
