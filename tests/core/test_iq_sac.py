import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, random_batch, shake, spy_on
from tests.fakes import distance, drift, imitate, policy_of
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent

B, H, O, A = 4, 1, 5, 6  # noqa: E741


def make(**config):
    agent = make_agent("iq_sac", {"hidden_dim": 8, "gamma": 0.9, "temperature": 0.3, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def rows():
    """A batch of two rows of each kind, the first terminal; the indices of the expert's; noise."""
    return random_batch(B, H, O, A), torch.tensor([0, 2]), torch.randn(2, B, A)


def numpy_sample(agent, obs, noise):
    """An action of the policy and its log density, by the change of variables."""
    mean, raw = np.split(apply(agent.model.actor, array(obs)), 2, axis=-1)
    log_std = -5 + 0.5 * 7 * (np.tanh(raw) + 1)
    action = np.tanh(mean + np.exp(log_std) * array(noise))
    normal = -0.5 * array(noise) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return action, (normal - np.log(1 - action**2)).sum(-1)


def numpy_q(critics, obs, action):
    return np.stack([apply(critic, np.concatenate([array(obs), action], -1))[..., 0] for critic in critics])


def numpy_v(agent, critics, obs, noise):
    action, log_prob = numpy_sample(agent, obs, noise)
    return numpy_q(critics, obs, action).min(0) - 0.3 * log_prob


@pytest.mark.parametrize("objective", ["value", "v0"])
@pytest.mark.parametrize("num_critics", [1, 2])
def test_the_critic_loss_is_inverse_soft_q_in_numpy(objective, num_critics):
    agent, (batch, expert, noise) = make(objective=objective, num_critics=num_critics, alpha=0.7), rows()
    obs, next_obs, not_terminal = batch.obs[:, 0], batch.obs[:, 1], np.array([0.0, 1, 1, 1])
    discounted = 0.9 * not_terminal * numpy_v(agent, agent.target, next_obs, noise[1])
    reward = numpy_q(agent.model.critic, obs, array(batch.action[:, 0])) - discounted
    v = numpy_v(agent, agent.model.critic, obs, noise[0])
    second = (v - discounted).mean() if objective == "value" else 0.1 * v[[0, 2]].mean()
    expected = -reward[:, [0, 2]].mean() + second + (reward**2).mean() / (4 * 0.7)
    loss, info = agent.critic_loss(batch, expert, noise)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert info["reward/expert_mean"].item() == pytest.approx(reward[:, [0, 2]].mean(), rel=1e-4)
    assert info["loss/chi2"].item() == pytest.approx((reward**2).mean() / 2.8, rel=1e-4)


def test_a_smaller_alpha_weighs_the_size_of_the_decoded_rewards_more():
    batch, expert, noise = rows()
    small, large = (make(alpha=alpha).critic_loss(batch, expert, noise)[1]["loss/chi2"].item() for alpha in (0.25, 1.0))
    assert small == pytest.approx(4 * large, rel=1e-5)


def test_the_actor_loss_is_soft_actor_critics_in_numpy():
    agent, (batch, _, noise) = make(num_critics=2), rows()
    action, log_prob = numpy_sample(agent, batch.obs[:, 0], noise[0])
    expected = (0.3 * log_prob - numpy_q(agent.model.critic, batch.obs[:, 0], action).min(0)).mean()
    assert agent.actor_loss(batch.obs[:, 0], noise[0])[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", ["value", "v0"])
def test_each_loss_reaches_its_own_modules(objective):
    agent, (batch, expert, noise) = make(objective=objective), rows()

    def reached(loss):
        names, parameters = zip(*agent.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {n.split(".")[0] for n, g in zip(names, grads, strict=True) if g is not None and g.abs().sum() > 0}

    assert reached(agent.critic_loss(batch, expert, noise)[0]) == {"critic"}
    assert reached(agent.actor_loss(batch.obs[:, 0], noise[0])[0]) == {"actor", "critic"}  # the critic is not its optimiser's
    assert {p for group in agent.optimizers["actor"].param_groups for p in group["params"]} == set(
        agent.model.actor.parameters()
    )


def test_the_policy_learns_from_the_critic_after_its_step_and_the_target_follows_by_tau():
    agent, other, batch = make(tau=0.25), make(tau=0.25), random_batch(B, H, O, A)
    old = [p.clone() for p in agent.target.parameters()]
    info = agent.update(batch)
    noise = torch.randn(3, B, A, generator=other.update_generator)
    assert info["loss/critic"] == other.critic_step(batch, torch.tensor([0, 2]), noise[:2])["loss/critic"]
    assert info["loss/actor"] == other.actor_loss(batch.obs[:, 0], noise[2])[0]
    for target, was, online in zip(agent.target.parameters(), old, agent.model.critic.parameters(), strict=True):
        assert torch.allclose(target, 0.75 * was + 0.25 * online, atol=1e-6) and target.grad is None


def test_the_critic_and_the_policy_have_their_own_learning_rates():
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in make().optimizers.items()}
    assert rates == {"critic": 3e-4, "actor": 3e-5}


def test_rewards_of_the_environment_are_not_read():
    batch = random_batch(B, H, O, A)
    losses = [make().update(b)["loss/critic"] for b in (batch, dataclasses.replace(batch, reward=batch.reward + 7))]
    assert losses[0] == losses[1]


def test_a_batch_without_an_experts_rows_is_refused():
    batch = random_batch(B, H, O, A)
    with pytest.raises(ConfigError, match="is_expert.*demonstrations"):
        make().update(dataclasses.replace(batch, is_expert=None))
    with pytest.raises(ConfigError, match="none of the batch's 4 rows.*demonstrations"):
        make().update(dataclasses.replace(batch, is_expert=torch.zeros(B, dtype=torch.bool)))


def test_decoded_rewards_are_q_minus_the_next_value_in_numpy():
    agent, batch = make(), random_batch(B, 3, O, A)
    reward = agent.decoded_reward(batch, num_actions=7)
    noise = torch.randn(7, B, 3, A, generator=torch.Generator().manual_seed(0))
    v = np.mean([numpy_v(agent, agent.model.critic, batch.obs[:, 1:], noise[k]) for k in range(7)], 0)
    q = numpy_q(agent.model.critic, batch.obs[:, :-1], array(batch.action))[0]
    assert reward.shape == (B, 3) and np.allclose(array(reward), q - 0.9 * (1 - array(batch.terminated)) * v, atol=1e-4)
    assert torch.equal(reward, agent.decoded_reward(batch, num_actions=7))


def test_it_acts_by_the_mean_and_explores_by_a_sample():
    agent, obs, first = make(), torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    mean = np.tanh(apply(agent.model.actor, array(obs))[:, :A])
    assert np.allclose(array(agent.act(obs, None, first)[0]), mean, atol=1e-5)
    noise = torch.randn(3, A, generator=torch.Generator().manual_seed(1))
    agent.act_generator.manual_seed(1)
    assert np.allclose(array(agent.act(obs, None, first, explore=True)[0]), numpy_sample(agent, obs, noise)[0], atol=1e-5)


@pytest.mark.parametrize("objective", ["value", "v0"])
def test_an_encoder_of_images_learns_with_the_critic_alone(objective):
    agent = make_agent("iq_sac", {"hidden_dim": 8, "num_channels": 2, "simnorm_dim": 4, "objective": objective}, (9, 64, 64), A)
    batch = dataclasses.replace(random_batch(B, H, O, A), obs=torch.randint(0, 256, (B, 2, 9, 64, 64), dtype=torch.uint8))
    before = [p.clone() for p in agent.model.encoder.parameters()]
    assert all(value.isfinite() for value in agent.update(batch).values())
    assert all(not torch.equal(p, was) for p, was in zip(agent.model.encoder.parameters(), before, strict=True))
    owned = {p for group in agent.optimizers["critic"].param_groups for p in group["params"]}
    assert owned == {*agent.model.encoder.parameters(), *agent.model.critic.parameters()}
    moved = [p.clone() for p in agent.model.encoder.parameters()]
    agent.actor_step(batch.obs[:, 0], torch.randn(B, A))
    assert all(torch.equal(p, was) for p, was in zip(agent.model.encoder.parameters(), moved, strict=True))
    action, _, _ = agent.act(batch.obs[:, 0], None, torch.ones(B, dtype=torch.bool))
    assert action.shape == (B, A) and agent.decoded_reward(batch).shape == (B, 1)


@pytest.mark.parametrize("shift", [0, 1])
def test_images_move_in_updates_where_that_is_asked_for(shift):
    agent = make_agent("iq_sac", {"hidden_dim": 8, "num_channels": 2, "simnorm_dim": 4, "shift": shift}, (9, 64, 64), A)
    batch = dataclasses.replace(random_batch(B, H, O, A), obs=torch.randint(0, 256, (B, 2, 9, 64, 64), dtype=torch.uint8))
    seen = spy_on(agent, "critic_step", "actor_step")
    agent.update(batch)
    ((learned, *_),), ((obs, _),) = seen.values()
    assert torch.equal(learned.obs, batch.obs) == (shift == 0) and torch.equal(obs, learned.obs[:, 0])


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="images of 32 x 64"):
        make_agent("iq_sac", {}, (9, 32, 64), A)


def test_it_learns_to_imitate_without_rewards():
    config = {"hidden_dim": 64, "objective": "v0", "lr": 3e-3, "actor_lr": 3e-3, "tau": 0.05, "gamma": 0.9}
    agent = make_agent("iq_sac", config, 2, 2)

    def result():
        return distance(drift(policy_of(agent, explore=False), 32, torch.Generator().manual_seed(5))[0])

    before = result()
    imitate(agent, rounds=8, updates=15, rows=32)
    assert before > 0.6 and result() < 0.2, (before, result())  # standing still: 0.77; the expert: 0.0002
