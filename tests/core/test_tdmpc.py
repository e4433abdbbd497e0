import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, latent_model_loss, q_min, random_batch, shake
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.base import frozen

B, H, O, A, Z = 2, 3, 5, 6, 8  # noqa: E741
SMALL = {
    "model": {"latent_dim": Z, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": H, "num_samples": 16, "num_policy": 4, "num_elites": 4, "iterations": 2},
}


@pytest.fixture
def agent():
    agent = make_agent("tdmpc", {**SMALL, "reward_scale": 2.0, "reward_shift": -1.0}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def numpy_td_target(agent, batch, noise):
    """r + gamma min Q_target(z', pi(z')), with the policy's clipped noise; [B, H]."""
    c = agent.config
    z_next = apply(agent.model.encoder, array(batch.obs)[:, 1:])
    pi = np.tanh(apply(agent.model.actor, z_next)) + np.clip(
        c.policy_std * array(noise), -c.policy_noise_clip, c.policy_noise_clip
    )
    next_value = q_min(agent.target.critic, z_next, np.clip(pi, -1 + 1e-6, 1 - 1e-6))
    return 2.0 * array(batch.reward) - 1.0 + c.gamma * (1 - array(batch.terminated)) * next_value


def test_the_model_loss_is_the_papers_in_numpy(agent):
    batch, noise = random_batch(B, H, O, A), torch.randn(B, H, A) * 10
    loss, zs, info = agent.model_loss(batch, noise)
    expected, parts = latent_model_loss(agent, batch, numpy_td_target(agent, batch, noise))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for name, part in parts.items():
        assert info[f"loss/{name}"].item() == pytest.approx(part, rel=1e-5), name
    q = agent.model.q(zs[:, :-1], batch.action).mean(0)[batch.valid].mean().item()
    assert info["q/mean"].item() == pytest.approx(q, rel=1e-5)
    assert zs.shape == (B, H + 1, Z) and not zs.requires_grad


def test_the_td_target_is_the_papers_in_numpy_and_a_terminal_step_does_not_bootstrap(agent):
    batch, noise = random_batch(B, H, O, A), torch.randn(B, H, A)
    target = agent.td_target(batch, noise)
    assert np.allclose(array(target), numpy_td_target(agent, batch, noise), atol=1e-5)
    assert target[0, -1].item() == pytest.approx(2.0 * batch.reward[0, -1].item() - 1.0)


def test_no_policy_action_is_asked_for_after_a_terminal_step_or_outside_the_episode():
    batch = random_batch(B, H, O, A)  # the first window ends terminated, the second is cut after two steps
    assert batch.alive.tolist() == [[True, True, True, False], [True, True, True, False]]
    truncated = dataclasses.replace(batch, terminated=torch.zeros(B, H, dtype=torch.bool))
    assert truncated.alive.tolist() == [[True, True, True, True], [True, True, True, False]]


def test_each_windows_loss_is_clamped(agent):
    batch = random_batch(B, H, O, A)
    batch.reward[0] = 1e6
    _, _, info = agent.model_loss(batch, torch.zeros(B, H, A))
    assert info["loss/reward"].item() <= 1e4


def test_the_actor_loss_is_minus_the_smaller_critic_along_the_whole_rollout(agent):
    c, zs, noise = agent.config, torch.randn(B, H + 1, Z), torch.randn(B, H + 1, A)
    alive = torch.tensor([[True, True, True, False], [True, True, False, False]])
    pi = np.tanh(apply(agent.model.actor, array(zs)))
    pi = np.clip(pi + np.clip(c.policy_std * array(noise), -c.policy_noise_clip, c.policy_noise_clip), -1 + 1e-6, 1 - 1e-6)
    q = q_min(agent.model.critic, array(zs), pi)
    expected = -(array(alive) * q * c.rho ** np.arange(H + 1)).sum(1).mean()
    assert agent.actor_loss(zs, alive, noise)[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_model_loss_reaches_the_model_and_neither_the_actor_nor_the_targets(agent):
    loss, _, _ = agent.model_loss(random_batch(B, H, O, A), torch.randn(B, H, A))
    loss.backward()
    m = agent.model
    for module in (m.encoder, m.dynamics, m.reward_head, m.critic):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in [*m.actor.parameters(), *agent.target.parameters()])


def test_the_actor_loss_reaches_the_actor_only(agent):
    zs, alive = torch.randn(B, H + 1, Z), torch.ones(B, H + 1, dtype=torch.bool)
    with frozen(agent.model.critic):
        agent.actor_loss(zs, alive, torch.randn(B, H + 1, A))[0].backward()
    reached = {name.split(".")[0] for name, p in agent.model.named_parameters() if p.grad is not None}
    assert reached == {"actor"}
    assert all(p.requires_grad for p in agent.model.critic.parameters())


def test_an_update_moves_the_model_and_the_actor_and_every_second_one_the_targets_by_tau(agent):
    batch = random_batch(B, H, O, A)
    before = [p.clone() for p in agent.target.parameters()]
    actor = [p.clone() for p in agent.model.actor.parameters()]
    agent.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.target.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(actor, agent.model.actor.parameters(), strict=True))
    agent.update(batch)
    source = [*agent.model.encoder.parameters(), *agent.model.critic.parameters()]
    target = [*agent.target.encoder.parameters(), *agent.target.critic.parameters()]
    for old, online, new in zip(before, source, target, strict=True):
        assert torch.allclose(new, 0.99 * old + 0.01 * online, atol=1e-6)


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_reported(agent):
    seen = {}
    agent.sync_grads = lambda parameters: seen.update(parameters=parameters)
    batch = random_batch(B, H, O, A)
    batch.reward.mul_(1000)
    norm = agent.update(batch)["grad_norm/model"]
    assert norm > 10 and seen
    model_parameters = agent.optimizers["model"].param_groups[0]["params"]
    clipped = torch.stack([p.grad.norm() for p in model_parameters]).norm()
    assert clipped.item() == pytest.approx(10.0, rel=1e-3)


def test_acting_returns_bounded_actions_and_a_plan_state_per_environment(agent):
    action, state, info = agent.act(torch.randn(4, O), None, torch.ones(4, dtype=torch.bool))
    assert action.shape == (4, A) and state.shape == (4, H, A) and (action.abs() <= 1).all()
    assert set(info) == {"plan/nan_frac", "plan/value_mean", "plan/std_mean"}


def test_returns_are_the_discounted_rewards_and_the_critics_minimum_in_numpy(agent):
    c, m = agent.config, agent.model
    z, actions, noise = torch.randn(7, Z), torch.rand(7, H, A) * 2 - 1, torch.randn(7, A)
    x, total = array(z), 0.0
    for k in range(H):
        xa = np.concatenate([x, array(actions)[:, k]], -1)
        total = total + c.gamma**k * apply(m.reward_head, xa)[:, 0]
        x = apply(m.dynamics, xa)
    pi = np.tanh(apply(m.actor, x)) + np.clip(c.policy_std * array(noise), -c.policy_noise_clip, c.policy_noise_clip)
    total = total + c.gamma**H * q_min(m.critic, x, np.clip(pi, -1 + 1e-6, 1 - 1e-6))
    assert np.allclose(array(agent.returns(z, actions, noise)), total, atol=1e-5)


def test_policy_trajectories_carry_the_return_that_evaluating_them_gives(agent):
    z, noise = torch.randn(7, Z), torch.randn(7, H + 1, A)
    actions, returns = agent.policy_rollout(z, noise)
    assert torch.allclose(returns, agent.returns(z, actions, noise[:, -1]), atol=1e-5)


def test_networks_are_as_deep_and_as_wide_as_the_public_codes(agent):
    def widths(network):
        return [layer.weight.shape[::-1] for layer in network if isinstance(layer, torch.nn.Linear)]

    m, hidden = agent.model, [(16, 16)]
    assert widths(m.encoder) == [(O, 16), (16, Z)] and widths(m.actor) == [(Z, 16), *hidden, (16, A)]
    assert widths(m.dynamics) == [(Z + A, 16), *hidden, (16, Z)] and widths(m.reward_head) == [(Z + A, 16), *hidden, (16, 1)]
    assert len(m.critic) == 2 and all(widths(member) == [(Z + A, 16), *hidden, (16, 1)] for member in m.critic)


def test_a_bad_coefficient_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"gamma = 1\.5"):
        make_agent("tdmpc", {"gamma": 1.5}, O, A)
    with pytest.raises(ConfigError, match="did you mean 'horizon'"):
        make_agent("tdmpc", {"plan": {"horizn": 3}}, O, A)
    with pytest.raises(ConfigError, match="did you mean 'tdmpc'"):
        make_agent("tdmcp", {}, O, A)
