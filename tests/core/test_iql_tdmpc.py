import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, latent_model_loss, q_min, random_batch, shake
from wmrl_ray.core.agents import make_agent

B, H, O, A, Z = 2, 3, 5, 6, 8  # noqa: E741
SMALL = {
    "model": {"latent_dim": Z, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": H, "num_samples": 0, "num_policy": 12, "num_elites": 4, "iterations": 1},
}


def make(**config):
    agent = make_agent("iql_tdmpc", {**SMALL, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def numpy_distribution(agent, z):
    c = agent.config
    mean, raw = np.split(apply(agent.model.actor, z), 2, axis=-1)
    return mean, c.log_std_min + 0.5 * (c.log_std_max - c.log_std_min) * (np.tanh(raw) + 1)


def rollout_weights():
    w = 0.5 ** np.arange(H)
    return w / w.sum()


def test_the_value_loss_is_equation_1_in_numpy():
    agent = make(expectile=0.9)
    zs, action = torch.randn(B, H, Z), torch.rand(B, H, A) * 2 - 1
    valid = torch.tensor([[True, True, True], [True, False, False]])
    q = q_min(agent.target.critic, array(zs), array(action))
    u = q - apply(agent.model.value_head, array(zs))[..., 0]
    expected = (array(valid) * rollout_weights() * np.where(u >= 0, 0.9, 0.1) * u**2).sum(1).mean()
    loss, advantage, _ = agent.value_loss(zs, action, valid)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert np.allclose(array(advantage), u, atol=1e-5) and not advantage.requires_grad


@pytest.mark.parametrize("critic_loss", ["iql", "tdmpc"])
def test_the_td_target_bootstraps_from_v_or_from_q_and_not_after_a_terminal_step(critic_loss):
    agent = make(critic_loss=critic_loss)
    batch, noise = random_batch(B, H, O, A), torch.randn(B, H, A)
    z_next = apply(agent.model.encoder, array(batch.obs)[:, 1:])
    if critic_loss == "iql":  # Eq. 2
        next_value = apply(agent.model.value_head, z_next)[..., 0]
    else:  # L_Q of Section III-B
        mean, log_std = numpy_distribution(agent, z_next)
        next_value = q_min(agent.target.critic, z_next, np.tanh(mean + np.exp(log_std) * array(noise)))
    expected = array(batch.reward) + 0.99 * (1 - array(batch.terminated)) * next_value
    assert np.allclose(array(agent.td_target(batch, noise)), expected, atol=1e-5)
    assert expected[0, -1] == array(batch.reward)[0, -1]


@pytest.mark.parametrize("critic_loss", ["iql", "tdmpc"])
def test_the_model_loss_is_the_papers_in_numpy(critic_loss):
    agent = make(critic_loss=critic_loss, reward_scale=2.0, reward_shift=-1.0)
    batch, noise = random_batch(B, H, O, A), torch.randn(B, H, A)
    expected, parts = latent_model_loss(agent, batch, array(agent.td_target(batch, noise)))
    loss, zs, info = agent.model_loss(batch, noise)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for name, part in parts.items():
        assert info[f"loss/{name}"].item() == pytest.approx(part, rel=1e-5), name
    q = agent.model.q(zs[:, :-1], batch.action).mean(0)[batch.valid].mean().item()
    assert info["q/mean"].item() == pytest.approx(q, rel=1e-5)
    assert zs.shape == (B, H + 1, Z) and not zs.requires_grad


def test_each_windows_part_of_the_model_loss_is_clamped():
    agent, batch = make(loss_clip=50.0), random_batch(B, H, O, A)
    batch.reward[0] = 1e3
    expected, parts = latent_model_loss(agent, batch, array(agent.td_target(batch, torch.zeros(B, H, A))))
    loss, _, info = agent.model_loss(batch, torch.zeros(B, H, A))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts["reward"] < 50.0 and info["loss/reward"].item() == pytest.approx(parts["reward"], rel=1e-5)


def test_the_actor_loss_is_equation_3_in_numpy():
    agent = make(beta=2.0, largest_weight=3.0)
    zs, action = torch.randn(B, H, Z), torch.rand(B, H, A) * 1.8 - 0.9
    advantage = torch.tensor([[0.1, -0.5, -2.4], [5.0, 0.0, -3.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    weight = np.minimum(np.exp(2.0 * array(advantage)), 3.0)
    mean, log_std = numpy_distribution(agent, array(zs))
    u = np.arctanh(array(action))
    log_prob = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - array(action) ** 2)
    expected = -(array(valid) * rollout_weights() * weight * log_prob.sum(-1)).sum(1).mean()
    loss, info = agent.actor_loss(zs, action, advantage, valid)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert info["advantage/weight_mean"].item() == pytest.approx(weight[array(valid) > 0].mean(), rel=1e-5)
    assert info["advantage/clipped_frac"].item() == pytest.approx(1 / 5)  # 5.0
    assert info["advantage/ignored_frac"].item() == pytest.approx(1 / 5)  # -2.4; -3.0 is after the end


def test_each_loss_reaches_its_own_modules():
    agent = make()
    batch, noise = random_batch(B, H, O, A), torch.randn(B, H, A)

    def reached(loss):
        agent.model.zero_grad(set_to_none=True)
        loss.backward()
        return {
            name.split(".")[0] for name, p in agent.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }

    loss, zs, _ = agent.model_loss(batch, noise)
    assert reached(loss) == {"encoder", "dynamics", "reward_head", "critic"}
    value_loss, advantage, _ = agent.value_loss(zs[:, :-1], batch.action, batch.valid)
    assert reached(value_loss) == {"value_head"}
    assert reached(agent.actor_loss(zs[:, :-1], batch.action, advantage, batch.valid)[0]) == {"actor"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_an_update_moves_every_module_and_reports_finite_metrics():
    agent = make()
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    metrics = agent.update(random_batch(B, H, O, A))
    assert all(not torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())
    assert {"loss/consistency", "loss/reward", "loss/critic", "loss/value", "loss/actor", "grad_norm/model"} <= set(metrics)


def test_every_second_update_moves_the_targets_by_tau():
    agent = make(tau=0.25)
    batch, before = random_batch(B, H, O, A), [p.clone() for p in agent.target.parameters()]
    agent.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.target.parameters(), strict=True))
    agent.update(batch)
    online = [*agent.model.encoder.parameters(), *agent.model.critic.parameters()]
    target = [*agent.target.encoder.parameters(), *agent.target.critic.parameters()]
    assert len(before) == len(target)
    for old, p, new in zip(before, online, target, strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * p, atol=1e-6) and not torch.equal(new, old)


def test_planning_takes_only_actions_that_the_policy_sampled():
    agent = make()
    obs, first = torch.randn(4, O), torch.ones(4, dtype=torch.bool)
    state = agent.act_generator.get_state()
    action, _, _ = agent.act(obs, None, first)
    agent.act_generator.set_state(state)
    noise = torch.randn(4 * 12, H + 1, A, generator=agent.act_generator)  # the planner's first draw
    z = agent.model.encode(obs).repeat_interleave(12, 0)
    sampled = agent.policy(z, noise[:, 0]).view(4, 12, A)
    assert all((action[w] == sampled[w]).all(-1).any() for w in range(4))


def test_the_policys_spread_is_learned_per_state():
    agent = make()
    _, log_std = agent.distribution(agent.model.actor(torch.randn(50, Z)))
    assert log_std.std(0).min() > 0 and log_std.min() >= -5 and log_std.max() <= 2


def test_an_update_is_a_clipped_step_down_each_loss_over_the_steps_that_count():
    clip, lr = 0.05, 0.5
    agent, batch = make(grad_clip=clip, beta=0.1), random_batch(B, H, O, A)  # its second window is cut after two steps
    counts = torch.tensor([[True, True, True], [True, True, False]])
    groups = {name: [p for group in o.param_groups for p in group["params"]] for name, o in agent.optimizers.items()}
    agent.optimizers = {name: torch.optim.SGD(group, lr) for name, group in groups.items()}
    start = agent.update_generator.get_state()
    noise = torch.randn(B, H, A, generator=agent.update_generator)
    agent.update_generator.set_state(start)

    zs = agent.model.rollout(agent.model.encode(batch.obs[:, 0]), batch.action)[:, :H].detach()  # where each action is taken
    value_loss, advantage, _ = agent.value_loss(zs, batch.action, counts)
    expected = {
        "model": agent.model_loss(batch, noise)[0],
        "value": value_loss,
        "actor": agent.actor_loss(zs, batch.action, advantage, counts)[0],
    }
    after = {}
    for name, loss in expected.items():
        grads = torch.autograd.grad(loss, groups[name])
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        assert norm > 2 * clip, name
        after[name] = [p.detach() - lr * grad * clip / norm for p, grad in zip(groups[name], grads, strict=True)]

    agent.update(batch)
    for name, group in groups.items():
        for p, reference in zip(group, after[name], strict=True):
            torch.testing.assert_close(p.detach(), reference, rtol=1e-5, atol=1e-5, msg=name)
