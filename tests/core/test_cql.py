import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, random_batch, shake
from wmrl_ray.core.agents import make_agent

B, H, O, A, K = 4, 1, 5, 6, 3  # noqa: E741
SMALL = {"hidden_dim": 8, "num_actions": K, "gamma": 0.9}


def make(**config):
    agent = make_agent("cql", {**SMALL, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def draws(max_target_backup=False):
    g = torch.Generator().manual_seed(5)
    noise = torch.randn(B, H, 3 * K if max_target_backup else 2 * K + 1, A, generator=g)
    return noise, torch.rand(B, H, K, A, generator=g) * 2 - 1


def sample(agent, obs, noise):
    """obs [N, O], noise [N, K, A] -> action [N, K, A], log density [N, K], by the change of variables."""
    mean, raw = np.split(apply(agent.model.actor.body, array(obs)), 2, axis=-1)
    log_std = np.clip(array(agent.model.actor.scale) * raw + array(agent.model.actor.offset), -20, 2)
    mean, log_std = mean[:, None], log_std[:, None]
    action = np.tanh(mean + np.exp(log_std) * array(noise))
    normal = -0.5 * array(noise) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return action, (normal - np.log(1 - action**2)).sum(-1)


def q(critics, obs, action):
    """obs [N, O], action [N, K, A] -> [Q, N, K]."""
    pairs = np.concatenate([np.repeat(array(obs)[:, None], action.shape[1], 1), action], -1)
    return np.stack([apply(critic.layers, pairs)[..., 0] for critic in critics])


def numpy_losses(agent, batch, noise, uniform):
    """td, difference [Q] of Eq. 4, td target [N]."""
    c = agent.config
    obs, next_obs, noise, uniform = batch.obs[:, 0], batch.obs[:, 1], noise[:, 0], array(uniform[:, 0])
    now, log_now = sample(agent, obs, noise[:, :K])
    next_, log_next = sample(agent, next_obs, noise[:, K : 2 * K])
    target_action, _ = sample(agent, next_obs, noise[:, 2 * K :])
    best = q(agent.target, next_obs, target_action).min(0).max(-1)
    target = c.reward_scale * array(batch.reward[:, 0]) + c.reward_shift + 0.9 * (1 - array(batch.terminated[:, 0])) * best
    of_data = q(agent.model.critic, obs, array(batch.action))[..., 0]
    terms = [q(agent.model.critic, obs, uniform) - np.log(0.5**A)]
    terms += [q(agent.model.critic, obs, next_) - log_next, q(agent.model.critic, obs, now) - log_now]
    bracket = np.log(np.exp(np.concatenate(terms, -1)).sum(-1)) - of_data
    if c.clip_difference is not None:
        bracket = np.maximum(bracket, c.clip_difference)
    return ((of_data - target) ** 2).mean(1).sum(), bracket.mean(1), target


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"critic_layers": 5},
        {"clip_difference": 6.0},
        {"max_target_backup": True},
        {"reward_scale": 10.0, "reward_shift": -5.0},
    ],
)
def test_the_critic_loss_is_equation_4_in_numpy(config):
    agent, batch = make(**config), random_batch(B, H, O, A)
    noise, uniform = draws(agent.config.max_target_backup)
    td, expected, target = numpy_losses(agent, batch, noise, uniform)
    loss, difference, info = agent.critic_loss(batch, noise, uniform)
    assert info["loss/td"].item() == pytest.approx(td, rel=1e-4)
    assert info["q/target_mean"].item() == pytest.approx(target.mean(), rel=1e-4)
    of_policy = q(agent.model.critic, batch.obs[:, 0], sample(agent, batch.obs[:, 0], noise[:, 0, :K])[0])
    of_uniform = q(agent.model.critic, batch.obs[:, 0], array(uniform[:, 0]))
    assert info["q/policy_mean"].item() == pytest.approx(of_policy.mean(), rel=1e-4)
    assert info["q/uniform_mean"].item() == pytest.approx(of_uniform.mean(), rel=1e-4)
    assert np.allclose(array(difference), expected, rtol=1e-4)
    assert loss.item() == pytest.approx(td + 10 * expected.sum(), rel=1e-4)
    if "clip_difference" in config:  # the test would see a clip that is ignored
        free = make().critic_loss(batch, noise, uniform)[1]
        assert (difference > free + 1e-3).any() and (difference > 6.0 + 1e-3).all()  # some states are clipped, some not


def test_nothing_is_bootstrapped_after_a_terminal_step():
    agent, batch = make(), random_batch(B, H, O, A)
    action = torch.rand(B, H, 1, A)
    target = agent.td_target(batch, batch.obs[:, 1:], action)
    assert batch.terminated[0, 0] and target[0, 0] == batch.reward[0, 0]
    assert (target[1:] != batch.reward[1:]).all()


def test_the_lagrangian_form_weighs_the_distance_to_the_gap_and_moves_the_multiplier():
    agent, batch = make(lagrange=True, action_gap=2.0), random_batch(B, H, O, A)
    noise, uniform = draws()
    td, expected, _ = numpy_losses(agent, batch, noise, uniform)
    with torch.no_grad():
        agent.model.log_multiplier.fill_(0.5)
    loss, difference, _ = agent.critic_loss(batch, noise, uniform)
    penalty = np.exp(0.5) * 10 * (expected - 2.0)
    assert loss.item() == pytest.approx(td + penalty.sum(), rel=1e-4)
    assert agent.multiplier_loss(difference).item() == pytest.approx(-0.5 * penalty.sum(), rel=1e-4)
    before = agent.model.log_multiplier.item()
    agent.update(batch)
    assert (agent.model.log_multiplier.item() > before) == (expected.mean() > 2.0)


def test_the_actor_loss_is_soft_actor_critics_in_numpy():
    agent, batch, noise = make(), random_batch(B, H, O, A), torch.randn(B, H, A)
    with torch.no_grad():
        agent.model.log_temperature.fill_(-0.7)
    action, log_prob = sample(agent, batch.obs[:, 0], noise)
    expected = (np.exp(-0.7) * log_prob - q(agent.model.critic, batch.obs[:, 0], action).min(0)).mean()
    loss, mean_log_prob, _ = agent.actor_loss(batch, noise)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert agent.temperature_loss(mean_log_prob).item() == pytest.approx(0.7 * (log_prob.mean() - A), rel=1e-4)


def test_each_loss_reaches_its_own_modules():
    agent, batch = make(lagrange=True), random_batch(B, H, O, A)
    critic_loss, difference, _ = agent.critic_loss(batch, *draws())
    actor_loss, log_prob, _ = agent.actor_loss(batch, torch.randn(B, H, A))

    def reached(loss):
        names, parameters = zip(*agent.model.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return {n.split(".")[0] for n, g in zip(names, grads, strict=True) if g is not None and g.abs().sum() > 0}

    assert reached(critic_loss) == {"critic"}
    assert reached(actor_loss) == {"actor", "critic"}  # through the critics, which are not in the actor's optimiser
    assert reached(agent.temperature_loss(log_prob)) == {"log_temperature"}
    assert reached(agent.multiplier_loss(difference)) == {"log_multiplier"}
    assert {p for group in agent.optimizers["actor"].param_groups for p in group["params"]} == set(
        agent.model.actor.parameters()
    )


def test_every_loss_of_an_update_sees_the_parameters_before_any_step():
    """CORL's order: the critics learn from the policy that the update found, the policy from the critics that it found."""
    agent, batch = make(), random_batch(B, H, O, A)
    state = agent.update_generator.get_state()
    info = agent.update(batch)
    again = make()
    again.update_generator.set_state(state)
    noise = torch.randn(B, H, 2 + 2 * K, A, generator=again.update_generator)
    uniform = torch.rand(B, H, K, A, generator=again.update_generator) * 2 - 1
    assert info["loss/actor"] == again.actor_loss(batch, noise[..., 0, :])[0]
    assert info["loss/conservative"] == again.critic_loss(batch, noise[..., 1:, :], uniform)[2]["loss/conservative"]


def test_an_update_moves_every_module_and_drags_the_targets_along():
    agent, batch = make(lagrange=True), random_batch(B, H, O, A)
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    old = [p.clone() for p in agent.target.parameters()]
    metrics = agent.update(batch)
    assert all(not torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    for target, was, online in zip(agent.target.parameters(), old, agent.model.critic.parameters(), strict=True):
        assert torch.allclose(target, 0.995 * was + 0.005 * online, atol=1e-6)
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())


def test_both_critics_have_the_layers_that_are_asked_for():
    agent = make(critic_layers=5)
    assert [len(critic.layers) for critic in agent.model.critic] == [6, 6]


def test_a_critic_that_works_in_parts_gives_the_values_and_gradients_of_one_that_does_not(monkeypatch):
    agent, obs, action = make(), torch.randn(7, O), torch.rand(7, K, A)

    def run():
        values = agent.model.critic(obs, action)
        return values, torch.autograd.grad(values.square().sum(), list(agent.model.critic.parameters()))

    whole, grads = run()
    monkeypatch.setattr("wmrl_ray.core.agents.cql.ROWS", 4)
    parts, part_grads = run()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(part_grads, grads)


def test_it_acts_by_the_mean_and_explores_by_a_sample():
    agent, obs, first = make(), torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    mean = np.split(apply(agent.model.actor.body, array(obs)), 2, axis=-1)[0]
    action = agent.act(obs, None, first)[0]
    assert np.allclose(array(action), np.tanh(mean), atol=1e-5)
    explored = agent.act(obs, None, first, explore=True)[0]
    assert explored.shape == (3, A) and not torch.allclose(explored, action) and explored.abs().max() <= 1


def test_steps_after_an_episodes_end_do_not_count():
    agent, batch = make(), random_batch(B, 2, O, A)
    noise, uniform = torch.randn(B, 2, 2 * K + 1, A), torch.rand(B, 2, K, A)
    valid = torch.tensor([[True, False]]).expand(B, -1)
    long = dataclasses.replace(batch, valid=valid, terminated=torch.zeros_like(valid))
    names = ("action", "reward", "terminated", "valid", "return_to_go")
    short = dataclasses.replace(long, obs=long.obs[:, :2], **{name: getattr(long, name)[:, :1] for name in names})
    a = agent.critic_loss(long, noise, uniform)[0]
    assert a.item() == pytest.approx(agent.critic_loss(short, noise[:, :1], uniform[:, :1])[0].item(), rel=1e-5)
