import math

import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, normal_log_prob, random_batch, reached, shake
from wmrl_ray.core.agents import make_agent

B, O, A = 4, 5, 6  # noqa: E741


def make(**config):
    agent = make_agent("iql", {"hidden_dim": 16, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def inputs():
    """obs, action, reward, terminated, next_obs; the first is terminal."""
    batch = random_batch(B, 1, O, A)
    return batch.obs[:, 0], batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0], batch.obs[:, 1]


def test_the_value_loss_is_the_papers_in_numpy():
    agent, (obs, action, *_) = make(expectile=0.9), inputs()
    with torch.no_grad():
        agent.model.value.get_parameter("4.bias").sub_(1.5)  # errors of both signs
    q = apply(agent.target, np.concatenate([array(obs), array(action)], -1))[..., 0].min(0)
    u = q - apply(agent.model.value, array(obs))[..., 0]
    loss, advantage, info = agent.value_loss(obs, action)
    assert (u > 0).any() and (u < 0).any()
    assert loss.item() == pytest.approx((np.where(u >= 0, 0.9, 0.1) * u**2).mean(), rel=1e-5)
    assert np.allclose(array(advantage), u, atol=1e-5) and not advantage.requires_grad
    assert info["advantage/mean"].item() == pytest.approx(u.mean(), rel=1e-4)


def test_the_critic_loss_is_the_papers_in_numpy():
    agent, (obs, action, reward, terminated, next_obs) = make(gamma=0.9, reward_scale=2.0, reward_shift=-1.0), inputs()
    next_value = apply(agent.model.value, array(next_obs))[..., 0]
    target = 2 * array(reward) - 1 + 0.9 * (1 - array(terminated)) * next_value
    q = apply(agent.model.critic, np.concatenate([array(obs), array(action)], -1))[..., 0]
    loss, info = agent.critic_loss(obs, action, reward, terminated, next_obs)
    assert target[0] == 2 * array(reward)[0] - 1
    assert loss.item() == pytest.approx(((q - target) ** 2).mean(), rel=1e-5)
    assert info["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_actor_loss_is_the_papers_in_numpy(deterministic):
    agent, (obs, action, *_) = make(beta=2.0, largest_weight=3.0, deterministic_actor=deterministic), inputs()
    advantage = torch.tensor([0.1, -0.5, 5.0, 0.4])
    weight = np.minimum(np.exp(2.0 * array(advantage)), 3.0)
    mean = apply(agent.model.actor, array(obs))
    if deterministic:
        error = ((mean - array(action)) ** 2).sum(-1)
    else:
        error = -normal_log_prob(mean, np.exp(array(agent.model.log_std)), array(action))
    loss, info = agent.actor_loss(obs, action, advantage)
    assert loss.item() == pytest.approx((weight * error).mean(), rel=1e-5)
    assert info["advantage/weight_mean"].item() == pytest.approx(weight.mean(), rel=1e-5)


def test_each_loss_reaches_its_own_modules():
    agent, (obs, action, reward, terminated, next_obs) = make(), inputs()
    value_loss, advantage, _ = agent.value_loss(obs, action)
    assert reached(agent.model, value_loss) == {"value"}
    assert reached(agent.model, agent.critic_loss(obs, action, reward, terminated, next_obs)[0]) == {"critic"}
    assert reached(agent.model, agent.actor_loss(obs, action, advantage)[0]) == {"actor", "log_std"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_an_update_takes_every_loss_before_the_step():
    """CORL's order: Q's target and the policy's weights come from the V, and the target critics, from before."""
    agent, other, batch = make(), make(), random_batch(B, 1, O, A)
    metrics = agent.update(batch)
    obs, action, reward, terminated, next_obs = inputs()
    value_loss, advantage, _ = other.value_loss(obs, action)
    expected = {
        "loss/value": value_loss,
        "loss/critic": other.critic_loss(obs, action, reward, terminated, next_obs)[0],
        "loss/actor": other.actor_loss(obs, action, advantage)[0],
    }
    for name, loss in expected.items():
        assert metrics[name].item() == pytest.approx(loss.item(), rel=1e-6), name
    # one optimiser on the sum moves each module as an optimiser of its own on its loss would
    for loss, module in zip(expected.values(), (other.model.value, other.model.critic, other.model.actor), strict=True):
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
        loss.backward(inputs=list(module.parameters()), retain_graph=True)
        optimizer.step()
    for name, p in agent.model.named_parameters():
        if name != "log_std":
            assert torch.allclose(p, other.model.get_parameter(name), atol=1e-6), name


def test_the_actors_learning_rate_falls_by_a_cosine_and_the_others_stay():
    agent = make(lr_steps=4)
    rates = []
    for _ in range(6):
        agent.update(random_batch(B, 1, O, A))
        rates.append([group["lr"] for group in agent.optimizers["all"].param_groups])
    values, actor = zip(*rates, strict=True)
    assert set(values) == {3e-4}
    assert actor == pytest.approx([3e-4 * 0.5 * (1 + math.cos(math.pi * min(n, 4) / 4)) for n in range(6)], abs=1e-12)
    agent = make(lr_steps=None)
    agent.update(random_batch(B, 1, O, A))
    assert {group["lr"] for group in agent.optimizers["all"].param_groups} == {3e-4}


def test_it_acts_by_the_policys_mean():
    agent, obs = make(), torch.randn(3, O)
    action, state, _ = agent.act(obs, None, torch.ones(3, dtype=torch.bool))
    assert action.shape == (3, A) and state is None
    assert np.allclose(array(action), apply(agent.model.actor, array(obs)), atol=1e-5) and action.abs().max() <= 1


def test_a_deterministic_actor_has_no_spread():
    assert make(deterministic_actor=True).model.log_std is None
    assert make().model.log_std.shape == (A,)
