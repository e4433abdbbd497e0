import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, normal_log_prob, random_batch, reached, shake
from wmrl_ray.core.agents import make_agent

B, O, A = 4, 5, 6  # noqa: E741


def make(**config):
    agent = make_agent("awac", {"hidden_dim": 16, **config}, O, A)
    shake(agent.model, scale=0.2)
    shake(agent.target, seed=1, scale=0.2)
    return agent


def inputs():
    """obs, action, reward, terminated, next_obs; the first is terminal."""
    batch = random_batch(B, 1, O, A)
    return batch.obs[:, 0], batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0], batch.obs[:, 1]


def q_min(critic, obs, action):
    return apply(critic, np.concatenate([array(obs), action], -1))[..., 0].min(0)


def sample(agent, obs, noise):
    mean = apply(agent.model.actor, array(obs))
    return np.clip(mean + np.exp(array(agent.model.log_std)) * array(noise), -1, 1)


def test_the_critic_loss_is_that_of_the_policys_action_in_numpy():
    agent = make(gamma=0.9, reward_scale=2.0, reward_shift=-1.0)
    obs, action, reward, terminated, next_obs = inputs()
    noise = torch.randn(B, A, generator=torch.Generator().manual_seed(0))
    next_q = q_min(agent.target, next_obs, sample(agent, next_obs, noise))
    target = 2 * array(reward) - 1 + 0.9 * (1 - array(terminated)) * next_q
    q = apply(agent.model.critic, np.concatenate([array(obs), array(action)], -1))[..., 0]
    loss, info = agent.critic_loss(obs, action, reward, terminated, next_obs, noise)
    assert target[0] == 2 * array(reward)[0] - 1
    assert loss.item() == pytest.approx(sum(((member - target) ** 2).mean() for member in q), rel=1e-5)
    assert info["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-5)


def test_the_actor_loss_is_the_papers_in_numpy():
    agent, (obs, action, *_) = make(temperature=0.5, largest_weight=1.0), inputs()
    noise = torch.randn(B, A, generator=torch.Generator().manual_seed(0))
    v = q_min(agent.model.critic, obs, sample(agent, obs, noise))
    advantage = q_min(agent.model.critic, obs, array(action)) - v
    weight = np.minimum(np.exp(advantage / 0.5), 1.0)
    assert (weight == 1.0).any() and (weight < 1.0).any()
    log_prob = normal_log_prob(apply(agent.model.actor, array(obs)), np.exp(array(agent.model.log_std)), array(action))
    loss, info = agent.actor_loss(obs, action, noise)
    assert loss.item() == pytest.approx(-(weight * log_prob).mean(), rel=1e-4)
    assert info["advantage/mean"].item() == pytest.approx(advantage.mean(), rel=1e-4)
    assert info["advantage/weight_mean"].item() == pytest.approx(weight.mean(), rel=1e-4)


def test_each_loss_reaches_its_own_modules():
    agent, (obs, action, reward, terminated, next_obs) = make(), inputs()
    noise = torch.randn(B, A)
    assert reached(agent.model, agent.critic_loss(obs, action, reward, terminated, next_obs, noise)[0]) == {"critic"}
    assert reached(agent.model, agent.actor_loss(obs, action, noise)[0]) == {"actor", "log_std"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_the_policys_weights_come_from_the_critics_after_their_step():
    agent, batch = make(lr=0.01), random_batch(B, 1, O, A)
    generator = agent.update_generator.get_state()
    actor = [p.clone() for p in (*agent.model.actor.parameters(), agent.model.log_std)]
    metrics = agent.update(batch)
    noise = torch.randn(2, B, A, generator=torch.Generator().set_state(generator))
    with torch.no_grad():
        for p, old in zip((*agent.model.actor.parameters(), agent.model.log_std), actor, strict=True):
            p.copy_(old)
    expected = agent.actor_loss(batch.obs[:, 0], batch.action[:, 0], noise[1])[0].item()
    assert metrics["loss/actor"].item() == pytest.approx(expected, rel=1e-5)
    before = make(lr=0.01).actor_loss(batch.obs[:, 0], batch.action[:, 0], noise[1])[0].item()
    assert before != pytest.approx(expected, rel=1e-4)


def test_the_spread_is_bounded():
    agent = make()
    with torch.no_grad():
        agent.model.log_std.copy_(torch.tensor([-30.0, 5.0, 0.0, 1.0, 2.0, -20.0]))
    assert agent.log_std().tolist() == [-20.0, 2.0, 0.0, 1.0, 2.0, -20.0]


def test_it_acts_by_the_policys_mean_inside_the_bounds():
    agent, obs = make(), 3 * torch.randn(20, O)
    action, state, _ = agent.act(obs, None, torch.ones(20, dtype=torch.bool))
    mean = apply(agent.model.actor, array(obs))
    assert state is None and (np.abs(mean) > 1).any() and np.allclose(array(action), np.clip(mean, -1, 1), atol=1e-5)
