import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, random_batch, reached, shake
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import frozen

B, O, A = 4, 5, 6  # noqa: E741


def make(**config):
    agent = make_agent("td3_bc", {"hidden_dim": 16, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def inputs():
    """obs, action, reward, terminated, next_obs; the first is terminal."""
    batch = random_batch(B, 1, O, A)
    return batch.obs[:, 0], batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0], batch.obs[:, 1]


def q(critic, obs, action):
    return apply(critic, np.concatenate([array(obs), action], -1))[..., 0]


def test_the_critic_loss_is_td3s_in_numpy():
    agent = make(gamma=0.9, policy_noise=0.4, noise_clip=0.5, reward_scale=2.0, reward_shift=-1.0)
    obs, action, reward, terminated, next_obs = inputs()
    noise = torch.randn(B, A, generator=torch.Generator().manual_seed(0))
    clipped = np.clip(0.4 * array(noise), -0.5, 0.5)
    next_action = np.clip(apply(agent.target.actor, array(next_obs)) + clipped, -1, 1)
    assert (np.abs(clipped) == 0.5).any() and (np.abs(next_action) == 1).any()
    target = 2 * array(reward) - 1 + 0.9 * (1 - array(terminated)) * q(agent.target.critic, next_obs, next_action).min(0)
    expected = sum(((member - target) ** 2).mean() for member in q(agent.model.critic, obs, array(action)))
    loss, info = agent.critic_loss(obs, action, reward, terminated, next_obs, noise)
    assert target[0] == 2 * array(reward)[0] - 1
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert info["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-5)


def test_the_actor_loss_is_the_papers_in_numpy():
    agent, (obs, action, *_) = make(alpha=2.0), inputs()
    policy_action = apply(agent.model.actor, array(obs))
    first = q(agent.model.critic, obs, policy_action)[0]
    cloning = ((policy_action - array(action)) ** 2).mean()
    loss, info = agent.actor_loss(obs, action)
    assert loss.item() == pytest.approx(cloning - 2.0 / np.abs(first).mean() * first.mean(), rel=1e-4)
    assert info["loss/cloning"].item() == pytest.approx(cloning, rel=1e-5)


def test_the_weight_of_q_takes_no_gradient():
    """Else a policy whose Q is all of one sign would learn nothing from it."""
    agent, (obs, action, *_) = make(), inputs()
    with torch.no_grad():
        agent.model.critic.get_parameter("4.bias").add_(100.0)  # every Q positive
    weight = 2.5 / agent.model.critic(torch.cat([obs, agent.model.actor(obs)], -1))[0].detach().abs().mean()
    parameters = list(agent.model.actor.parameters())
    ours = torch.autograd.grad(agent.actor_loss(obs, action)[0], parameters)
    policy_action = agent.model.actor(obs)
    first = agent.model.critic(torch.cat([obs, policy_action], -1))[0]
    plain = (policy_action - action).square().mean() - weight * first.mean()
    for a, b in zip(ours, torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_each_loss_reaches_its_own_modules():
    agent, (obs, action, reward, terminated, next_obs) = make(), inputs()
    loss = agent.critic_loss(obs, action, reward, terminated, next_obs, torch.randn(B, A))[0]
    assert reached(agent.model, loss) == {"critic"}
    with frozen(agent.model.critic):
        assert reached(agent.model, agent.actor_loss(obs, action)[0]) == {"actor"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_policy_and_targets_move_in_every_second_update_only():
    agent, batch = make(), random_batch(B, 1, O, A)

    def parameters(module):
        return torch.cat([p.detach().flatten().clone() for p in module.parameters()])

    for update in range(1, 5):
        before = [parameters(m) for m in (agent.model.critic, agent.model.actor, agent.target)]
        metrics = agent.update(batch)
        after = [parameters(m) for m in (agent.model.critic, agent.model.actor, agent.target)]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([True, True, True] if update % 2 == 0 else [True, False, False])
        assert ("loss/actor" in metrics) == (update % 2 == 0)


def test_the_policys_loss_asks_the_critic_after_its_step():
    agent, batch = make(policy_every=1), random_batch(B, 1, O, A)
    actor = [p.clone() for p in agent.model.actor.parameters()]
    expected_before = agent.actor_loss(batch.obs[:, 0], batch.action[:, 0])[0].item()
    metrics = agent.update(batch)
    with torch.no_grad():
        for p, old in zip(agent.model.actor.parameters(), actor, strict=True):
            p.copy_(old)
    expected = agent.actor_loss(batch.obs[:, 0], batch.action[:, 0])[0].item()
    assert metrics["loss/actor"].item() == pytest.approx(expected, rel=1e-5) != pytest.approx(expected_before, rel=1e-5)


def test_it_acts_by_the_policy_without_noise():
    agent, obs = make(), torch.randn(3, O)
    action, state, _ = agent.act(obs, None, torch.ones(3, dtype=torch.bool))
    assert state is None and np.allclose(array(action), apply(agent.model.actor, array(obs)), atol=1e-5)
