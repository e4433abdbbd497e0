"""What agents that learn online share outside their losses: noise to explore, images that are shifted, clipped gradients."""

import dataclasses

import pytest
import torch

from tests.core.reference import random_batch, shake
from tests.core.small import CONFIGS, A, O, make
from wmrl_ray.core.agents import make_agent

B, H = 4, 3


@pytest.mark.parametrize("name", ["tdmpc", "tdmpc2", "iql_tdmpc", "iq_mpc"])
def test_agents_that_plan_add_noise_to_explore(name):
    obs, first = torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    (a, plan_a, _), (b, plan_b, _) = (make(name).act(obs, None, first, explore=explore) for explore in (False, True))
    assert torch.equal(plan_a, plan_b) and (a != b).any(1).all()  # the same plans, and other actions in every row


# -- images -------------------------------------------------------------------------------------------------------------------


MOST = 3  # pixels that images move at most
IMAGE_MODEL = {"latent_dim": 32, "num_channels": 2, "mlp_dim": 12, "simnorm_dim": 4}
IMAGE_CONFIGS = {
    "tdmpc2": {**CONFIGS["tdmpc2"], "model": IMAGE_MODEL},
    "iq_mpc": {**CONFIGS["iq_mpc"], "model": IMAGE_MODEL},
    "iq_sac": {"hidden_dim": 8, "num_channels": 2, "simnorm_dim": 4},
}


def image_agent(name, shift):
    """The agent, and a list that fills with the images its encoder sees."""
    agent, seen = make_agent(name, {**IMAGE_CONFIGS[name], "shift": shift}, (3, 64, 64), A), []
    agent.model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -4)))
    return agent, seen


def image_batch(horizon):
    """Every pixel says its row, its column and the number of its image."""
    places = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    numbers = torch.arange(B * (horizon + 1)).view(B, -1, 1, 1).expand(-1, -1, 64, 64)
    images = torch.stack([*(place.expand_as(numbers) for place in places), numbers], 2).byte()
    return dataclasses.replace(random_batch(B, horizon, O, A), obs=images)


def moves(seen):
    """Those of the images that were seen, by the image's number: the row and the column that are in its middle now."""
    found = {}
    for row, column, number in torch.cat(seen)[:, :, 32, 32].tolist():
        found.setdefault(number, set()).add((row - 32, column - 32))
    return found


@pytest.mark.parametrize("name", list(IMAGE_CONFIGS))
def test_an_update_sees_every_image_moved_by_one_random_shift(name):
    agent, seen = image_agent(name, MOST)
    batch = image_batch(agent.config.window)
    agent.update(batch)
    found = moves(seen)
    assert len(found) == batch.obs[..., 0, 0, 0].numel() and all(len(of_image) == 1 for of_image in found.values())
    pairs = [pair for of_image in found.values() for pair in of_image]
    assert all(abs(row) <= MOST and abs(column) <= MOST for row, column in pairs)
    assert len(set(pairs)) > len(pairs) / 2  # of 49


@pytest.mark.parametrize("name", list(IMAGE_CONFIGS))
def test_images_are_not_moved_when_acting_nor_by_a_shift_of_zero(name):
    actions, first = [], torch.ones(B, dtype=torch.bool)
    for shift in (0, MOST):
        agent, seen = image_agent(name, shift)
        batch = image_batch(agent.config.window)
        actions.append(agent.act(batch.obs[:, 0], None, first)[0])
        if shift == 0:
            agent.update(batch)
        assert seen and set().union(*moves(seen).values()) == {(0, 0)}
    assert torch.equal(*actions)


# -- gradients ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tdmpc2", "iq_mpc"])
@pytest.mark.parametrize("config", [{}, {"grad_clip": 3.0}])
def test_the_gradients_of_model_and_actor_are_each_clipped_at_a_norm_of_twenty_or_what_is_set(name, config):
    agent, seen = make(name, **config), []
    shake(agent.model)  # Why: heads that start at zero have no gradient to clip
    agent.sync_grads = lambda parameters: [p.grad.mul_(1e4) for p in parameters] and seen.append(parameters)
    metrics = agent.update(random_batch(B, H, O, A))
    for optimizer, parameters in zip(("model", "actor"), seen, strict=True):
        assert parameters == [p for group in agent.optimizers[optimizer].param_groups for p in group["params"]]
        assert metrics[f"grad_norm/{optimizer}"] > 20
        norm = torch.stack([p.grad.norm() for p in parameters]).norm().item()
        assert norm == pytest.approx(config.get("grad_clip", 20.0), rel=1e-3)
