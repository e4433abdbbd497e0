"""The Manager's steps, losses and intents; B, H, k, O, A, Z are all different."""

import numpy as np
import pytest
import torch

from tests.core.reference import apply, array, q_min, random_batch, shake
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.agents.manager import Manager, coarse
from wmrl_ray.core.batch import Batch

B, H, K, O, Z, G, C = 2, 3, 4, 5, 10, 2, 3  # noqa: E741
A = G * C
SMALL = {
    "model": {"latent_dim": Z, "encoder_dim": 16, "hidden_dim": 16},
    "plan": {"horizon": H, "num_samples": 0, "num_policy": 12, "num_elites": 4, "iterations": 1},
    "skip": K,
    "num_groups": G,
    "num_classes": C,
}


def make(**config) -> Manager:
    agent = make_agent("manager", {**SMALL, **config}, O, 7)  # 7: the environment's actions, which a Manager does not read
    shake(agent.model)
    shake(agent.target, seed=1)
    assert isinstance(agent, Manager)
    return agent


def window(terminal: int | None = None, length: int = H * K) -> Batch:
    """One window whose step t has reward 2^t and observation t; the episode is `length` steps long from the window's start."""
    steps = torch.arange(H * K)
    return Batch(
        obs=torch.arange(H * K + 1.0).clamp(max=length).view(1, -1, 1).expand(1, -1, O),
        action=torch.zeros(1, H * K, 7),
        reward=(2.0**steps * (steps < length))[None],
        terminated=(steps == (-1 if terminal is None else terminal))[None],
        valid=(steps < length)[None],
    )


def whole_steps(batch: Batch, shift: float = 0.0) -> Batch:
    return coarse(batch, torch.zeros(1, H, A), K, batch.reward + shift)


def test_a_managers_step_sums_k_rewards_and_ends_k_observations_later():
    steps = whole_steps(window())
    assert steps.obs[0, :, 0].tolist() == [0, 4, 8, 12]
    assert steps.reward.tolist() == [[2**4 - 1, 2**8 - 2**4, 2**12 - 2**8]]
    assert steps.valid.all() and not steps.terminated.any()


def test_a_terminal_step_ends_the_managers_step_and_masks_what_follows():
    steps = whole_steps(window(terminal=5, length=6))
    assert steps.reward.tolist() == [[2**4 - 1, 2**4 + 2**5, 0]]
    assert steps.terminated.tolist() == [[False, True, False]]
    assert steps.valid.tolist() == [[True, True, False]]
    assert steps.obs[0, 2, 0] == 6  # the terminal observation
    shifted = whole_steps(window(terminal=5, length=6), shift=-1.0)
    assert shifted.reward.tolist() == [[2**4 - 1 - 4, 2**4 + 2**5 - 2, 0]]  # of its own environment steps only


@pytest.mark.parametrize(("length", "valid"), [(3, [False] * 3), (4, [True, False, False]), (7, [True, False, False])])
def test_a_step_that_the_episodes_cut_leaves_incomplete_counts_for_nothing(length, valid):
    steps = whole_steps(window(length=length))
    assert steps.valid.tolist() == [valid] and not steps.terminated.any()


def numpy_log_probs(agent, logits):
    logits = logits.reshape(*logits.shape[:-1], G, C)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    mix = agent.config.uniform_mix
    return np.log((1 - mix) * e / e.sum(-1, keepdims=True) + mix / C)


def numpy_sample(log_probs, noise):
    """Gumbel's trick on the normal noise's own quantiles."""
    from math import erf, sqrt

    uniform = np.vectorize(lambda x: 0.5 * (1 + erf(x / sqrt(2))))(noise.reshape(log_probs.shape))
    choice = (log_probs - np.log(-np.log(uniform))).argmax(-1)
    return np.eye(C)[choice].reshape(*log_probs.shape[:-2], A)


def test_actions_are_one_class_per_group_drawn_with_the_policys_probabilities():
    agent, z = make(), torch.randn(1, Z)
    draws = agent.policy(z.expand(20_000, Z), torch.randn(20_000, A)).view(-1, G, C)
    assert torch.equal(draws.sum(-1), torch.ones(20_000, G))
    expected = agent.log_probs(agent.model.actor(z)).exp()[0]
    assert (draws.mean(0) - expected).abs().max() < 0.015
    assert expected.min() >= agent.config.uniform_mix / C - 1e-6


@pytest.mark.parametrize("critic_loss", ["iql", "tdmpc"])
def test_the_model_loss_is_the_papers_in_numpy(critic_loss):
    agent = make(critic_loss=critic_loss, reward_shift=-0.5)
    c, m = agent.config, agent.model
    batch = random_batch(B, H * K, O, 7)
    batch.terminated.zero_()
    batch.terminated[0, 5] = True  # in the first window's second step
    batch.valid[0, 6:] = False
    noise, action_noise = torch.randn(B, H, A), torch.randn(B, H, A)
    loss, steps, zs, info = agent.model_loss(batch, noise, action_noise)

    z_true = apply(m.encoder, array(batch.obs)[:, ::K])
    ends = np.concatenate([z_true[:, :-1], z_true[:, 1:]], -1)
    action = numpy_sample(numpy_log_probs(agent, apply(m.inverse_dynamics, ends)), array(action_noise))  # Eq. 4
    z, valid = z_true[:, 0], np.array([[1, 1, 0], [1, 1, 0]])  # random_batch cuts the second window's last step
    consistency, reward_loss, critic = np.zeros(B), np.zeros(B), np.zeros(B)
    for t in range(H):
        z_next = z_true[:, t + 1]
        if critic_loss == "iql":
            value = apply(m.value_head, z_next)[..., 0]
        else:
            pi = numpy_sample(numpy_log_probs(agent, apply(m.actor, z_next)), array(noise)[:, t])
            value = q_min(agent.target.critic, z_next, pi)
        inside = array(batch.valid)[:, t * K : (t + 1) * K]
        r = (inside * (array(batch.reward)[:, t * K : (t + 1) * K] - 0.5)).sum(1)
        bootstrap = np.array([t != 1, True])
        td_target = r + c.gamma * bootstrap * value
        za = np.concatenate([z, action[:, t]], -1)
        weight = valid[:, t] * c.rho**t
        critic += weight * sum((apply(member, za)[:, 0] - td_target) ** 2 for member in m.critic)
        reward_loss += weight * (apply(m.reward_head, za)[:, 0] - r) ** 2
        z = apply(m.dynamics, za)
        consistency += weight * ((z - apply(agent.target.encoder, array(batch.obs)[:, (t + 1) * K])) ** 2).mean(-1)

    assert np.allclose(array(steps.action), action, atol=1e-6) and not steps.action.requires_grad
    assert info["loss/consistency"].item() == pytest.approx(consistency.mean(), rel=1e-4)
    assert info["loss/reward"].item() == pytest.approx(reward_loss.mean(), rel=1e-4)
    assert info["loss/critic"].item() == pytest.approx(critic.mean(), rel=1e-4)
    expected = c.consistency_coef * consistency.mean() + c.reward_coef * reward_loss.mean() + c.critic_coef * critic.mean()
    assert loss.item() == pytest.approx(expected / H, rel=1e-4)
    assert zs.shape == (B, H + 1, Z) and not zs.requires_grad


def test_the_value_and_the_actor_loss_are_equations_1_and_3_in_numpy():
    agent = make(expectile=0.9, beta=2.0, largest_weight=3.0)
    zs, valid = torch.randn(B, H, Z), torch.tensor([[True, True, True], [True, False, False]])
    action = torch.nn.functional.one_hot(torch.randint(C, (B, H, G)), C).float().flatten(-2)
    weights = array(valid) * 0.5 ** np.arange(H) / (0.5 ** np.arange(H)).sum()
    u = q_min(agent.target.critic, array(zs), array(action)) - apply(agent.model.value_head, array(zs))[..., 0]
    loss, advantage, _ = agent.value_loss(zs, action, valid)
    assert loss.item() == pytest.approx((weights * np.where(u >= 0, 0.9, 0.1) * u**2).sum(1).mean(), rel=1e-4)
    assert np.allclose(array(advantage), u, atol=1e-5)

    log_probs = numpy_log_probs(agent, apply(agent.model.actor, array(zs)))
    log_prob = (log_probs * array(action).reshape(B, H, G, C)).sum((-2, -1))
    expected = -(weights * np.minimum(np.exp(2 * u), 3) * log_prob).sum(1).mean()
    assert agent.actor_loss(zs, action, advantage, valid)[0].item() == pytest.approx(expected, rel=1e-4)


def test_it_reports_the_share_of_weights_at_their_bound_and_of_those_that_are_next_to_nothing():
    agent = make(beta=2.0, largest_weight=3.0)
    zs, action = torch.randn(2, H, Z), torch.nn.functional.one_hot(torch.randint(C, (2, H, G)), C).float().flatten(-2)
    advantage = torch.tensor([[0.6, -2.2, -2.4], [5.0, -3.0, 4.0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    info = agent.actor_loss(zs, action, advantage, valid)[1]
    weights = np.minimum(np.exp(2 * np.array([0.6, -2.2, -2.4, 5.0])), 3)  # exp 1.2 = 3.32 and exp 10: at the bound
    assert info["advantage/weight_mean"].item() == pytest.approx(weights.mean(), rel=1e-5)
    assert info["advantage/clipped_frac"].item() == pytest.approx(2 / 4)
    assert info["advantage/ignored_frac"].item() == pytest.approx(1 / 4)  # exp -4.8 = 0.0082; exp -4.4 = 0.0123


def test_each_loss_reaches_its_own_modules():
    agent = make()
    batch, noise = random_batch(B, H * K, O, 7), torch.randn(2, B, H, A)

    def reached(loss):
        agent.model.zero_grad(set_to_none=True)
        loss.backward()
        return {
            name.split(".")[0] for name, p in agent.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }

    loss, steps, zs, _ = agent.model_loss(batch, *noise)
    assert reached(loss) == {"encoder", "dynamics", "reward_head", "critic", "inverse_dynamics"}
    value_loss, advantage, _ = agent.value_loss(zs[:, :-1], steps.action, steps.valid)
    assert reached(value_loss) == {"value_head"}
    assert reached(agent.actor_loss(zs[:, :-1], steps.action, advantage, steps.valid)[0]) == {"actor"}
    assert reached(agent.decoder_loss(steps.obs, steps.alive)[0]) == {"decoder"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_an_intent_is_the_predicted_step_in_latent_space():
    agent, m = make(), make().model
    obs, later = torch.randn(6, O), torch.randn(6, O)
    z, z_later = apply(m.encoder, array(obs)), apply(m.encoder, array(later))
    log_probs = numpy_log_probs(agent, apply(m.inverse_dynamics, np.concatenate([z, z_later], -1)))
    action = np.eye(C)[log_probs.argmax(-1)].reshape(6, A)
    expected = apply(m.dynamics, np.concatenate([z, action], -1)) - z  # Eq. 5
    assert np.allclose(array(agent.intent(obs, later)), expected, atol=1e-5)


def test_acting_plans_an_abstract_action_and_its_intent():
    agent, first = make(), torch.ones(4, dtype=torch.bool)
    state = agent.act_generator.get_state()
    action, _, _ = agent.act(obs := torch.randn(4, O), None, first)
    assert action.shape == (4, A) and torch.equal(action.view(4, G, C).sum(-1), torch.ones(4, G))
    agent.act_generator.set_state(state)
    intent = agent.act_intent(obs, agent.act_generator)
    assert intent.shape == (4, Z)
    z = agent.model.encode(obs)
    assert torch.allclose(intent, agent.model.next(z, action) - z, atol=1e-6)


def test_the_decoder_answers_in_the_units_of_observations():
    agent = make(lr=3e-3, model={**SMALL["model"], "normalize_obs": True})
    agent.set_obs_stats(torch.full((O,), 100.0), torch.full((O,), 10.0))
    obs = 100 + 10 * torch.randn(64, O)
    for _ in range(400):
        agent.optimize("decoder", agent.decoder_loss(obs, torch.ones(64, dtype=torch.bool))[0], None)
    decoded = agent.decode_intent(obs, torch.zeros(64, Z))
    assert (decoded - obs).abs().mean() < 0.3 * 10


def cut_and_ended() -> Batch:
    """The first window ends in a terminal step in the Manager's second, the second one is cut in the Manager's second."""
    batch = random_batch(B, H * K, O, 7)
    batch.terminated.zero_()
    batch.terminated[0, 5] = True
    batch.valid[0, 6:], batch.valid[1, 7:] = False, False
    return batch


COUNTS = torch.tensor([[True, True, False], [True, False, False]])  # its steps [B, H]
IS_REAL = torch.tensor([[True, True, True, False], [True, True, False, False]])  # the observations between them [B, H+1]
OPTIMIZED = {
    "model": ["encoder", "dynamics", "reward_head", "critic", "inverse_dynamics"],
    "value": ["value_head"],
    "actor": ["actor"],
    "decoder": ["decoder"],
}


def parameters(agent: Manager, name: str) -> list[torch.nn.Parameter]:
    return [p for module in OPTIMIZED[name] for p in getattr(agent.model, module).parameters()]


@pytest.mark.parametrize("critic_loss", ["iql", "tdmpc"])
def test_the_gradient_passes_an_abstract_action_as_if_it_were_its_probabilities(critic_loss):
    """Straight-through: the loss' gradient at the sample, pulled back through the softmax of b into b and the encoder."""
    agent, batch = make(critic_loss=critic_loss, reward_shift=-0.5), cut_and_ended()
    c, m = agent.config, agent.model
    noise, action_noise = torch.randn(2, B, H, A)
    z = m.encode(batch.obs[:, ::K])
    steps = coarse(batch, torch.zeros(B, H, A), K, batch.reward - 0.5)
    with torch.no_grad():
        z_target, td_target = agent.target.encode(steps.obs[:, 1:]), agent.td_target(steps, z[:, 1:], noise)
    action = agent.inverse(z[:, :-1], z[:, 1:], action_noise).detach().requires_grad_()

    zs, loss = z[:, 0], torch.zeros(())
    for t in range(H):
        za = torch.cat([zs, action[:, t]], -1)
        critic = sum((member(za)[:, 0] - td_target[:, t]) ** 2 for member in m.critic)
        reward = (m.reward_head(za)[:, 0] - steps.reward[:, t]) ** 2
        zs = m.dynamics(za)
        consistency = ((zs - z_target[:, t]) ** 2).mean(-1)
        error = c.consistency_coef * consistency + c.reward_coef * reward + c.critic_coef * critic
        loss = loss + (c.rho**t * COUNTS[:, t] * error).mean() / H
    (at_sample,) = torch.autograd.grad(loss, action, retain_graph=True)
    logits = m.inverse_dynamics(torch.cat([z[:, :-1], z[:, 1:]], -1)).view(B, H, G, C)
    probs = ((1 - c.uniform_mix) * logits.softmax(-1) + c.uniform_mix / C).flatten(-2)
    world = parameters(agent, "model")
    expected = torch.autograd.grad([loss, probs], world, [torch.ones(()), at_sample])

    grads = torch.autograd.grad(agent.model_loss(batch, noise, action_noise)[0], world)
    for grad, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


def test_an_update_is_a_clipped_step_down_each_loss_over_the_steps_that_count():
    agent, batch, clip, lr = make(grad_clip=0.1), cut_and_ended(), 0.1, 0.5
    agent.optimizers = {name: torch.optim.SGD(parameters(agent, name), lr) for name in OPTIMIZED}
    start, m = agent.update_generator.get_state(), agent.model
    noise, action_noise = torch.randn(2, B, H, A, generator=agent.update_generator)  # of the policy, of b
    agent.update_generator.set_state(start)

    z = m.encode(batch.obs[:, ::K])  # [B, H+1, Z]
    action = agent.inverse(z[:, :-1], z[:, 1:], action_noise).detach()
    zs = m.rollout(z[:, 0], action)[:, :H].detach()  # a step's action belongs to the latent that it starts from
    model_loss, _, _, info = agent.model_loss(batch, noise, action_noise)
    other = agent.model_loss(batch, action_noise, action_noise)[3]
    assert other["q/target_mean"] != info["q/target_mean"]  # the policy's noise matters here
    value_loss, advantage, _ = agent.value_loss(zs, action, COUNTS)
    expected = {
        "model": model_loss,
        "value": value_loss,
        "actor": agent.actor_loss(zs, action, advantage, COUNTS)[0],
        "decoder": (m.decoder(z.detach()) - batch.obs[:, ::K])[IS_REAL].square().mean(),
    }
    after, norms = {}, {}
    for name, loss in expected.items():
        group = parameters(agent, name)
        grads = torch.autograd.grad(loss, group)
        norms[name] = torch.cat([grad.flatten() for grad in grads]).norm().item()
        assert norms[name] > 2 * clip, name
        after[name] = [p.detach() - lr * grad * clip / norms[name] for p, grad in zip(group, grads, strict=True)]

    metrics = agent.update(batch)
    assert all(metrics[key].item() == pytest.approx(value.item(), rel=1e-5) for key, value in info.items())
    for name, loss in expected.items():
        assert metrics[f"grad_norm/{name}"].item() == pytest.approx(norms[name], rel=1e-4)
        if name != "model":  # whose loss is reported without TD-MPC's 1/H
            assert metrics[f"loss/{name}"].item() == pytest.approx(loss.item(), rel=1e-4)
        for p, reference in zip(parameters(agent, name), after[name], strict=True):
            torch.testing.assert_close(p.detach(), reference, rtol=1e-5, atol=1e-5, msg=name)


def test_every_third_update_moves_the_targets_by_tau():
    agent, batch = make(tau=0.25, target_every=3), cut_and_ended()
    online = [*agent.model.encoder.parameters(), *agent.model.critic.parameters()]
    target = [*agent.target.encoder.parameters(), *agent.target.critic.parameters()]
    assert len(target) == len(list(agent.target.parameters()))
    for update in range(1, 7):
        before = [p.clone() for p in target]
        agent.update(batch)
        rate = 0.25 if update % 3 == 0 else 0.0
        for old, p, new in zip(before, online, target, strict=True):
            torch.testing.assert_close(new, (1 - rate) * old + rate * p, rtol=1e-6, atol=1e-6 * (rate > 0))
            assert torch.equal(new, old) == (rate == 0)


def test_an_update_moves_every_module_and_reports_finite_metrics():
    agent = make()
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    metrics = agent.update(random_batch(B, H * K, O, 7))
    assert all(not torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())


def test_the_window_is_k_times_the_horizon_and_a_wrong_setting_is_refused():
    assert make().config.window == 12
    with pytest.raises(ConfigError, match="skip = 0"):
        make(skip=0)
    with pytest.raises(ConfigError, match="num_classes = 1"):
        make(num_classes=1)
    with pytest.raises(ConfigError, match=r"plan\.num_samples = 9"):
        make(plan={**SMALL["plan"], "num_samples": 9})


def test_a_batch_without_one_whole_step_has_finite_metrics():
    batch = random_batch(B, H * K, O, 7)
    batch.terminated.zero_()
    batch.valid[:, 2:] = False
    assert all(value.isfinite() for value in make().update(batch).values())


def test_intents_are_differences_in_float32_whatever_the_precision():
    agent, other = make(), make(precision="bfloat16")
    other.model.load_state_dict(agent.model.state_dict())
    obs, later = torch.randn(6, O), torch.randn(6, O)
    assert torch.equal(agent.intent(obs, later), other.intent(obs, later))
