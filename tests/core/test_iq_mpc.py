"""IQ-MPC's losses in numpy. The gradient penalty: test_iq_mpc_penalty.py; planning and imitation: test_iq_mpc_planning.py."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import array, random_batch, shake, spy_on
from tests.core.test_simplicial import apply_head, apply_normed
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.math import sample_pair

B, H, O, A, Z, Q = 4, 3, 5, 6, 8, 5  # noqa: E741
SMALL = {
    "model": {"latent_dim": Z, "encoder_dim": 16, "mlp_dim": 12, "simnorm_dim": 4},
    "plan": {"horizon": H, "num_samples": 20, "num_policy": 4, "num_elites": 5, "iterations": 2},
    "gamma": 0.9,
    "entropy_coef": 0.02,
}
EXPERT, BEHAVIOUR = torch.tensor([0, 2]), torch.tensor([1, 3])
WEIGHTS = 0.5 ** np.arange(H) / H


def make(**config):
    agent = make_agent("iq_mpc", {**SMALL, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    return agent


def rows():
    """A batch whose first window ends in a terminal step, and whose second is padded after two."""
    return random_batch(B, H, O, A)


def test_the_papers_sizes_have_its_number_of_parameters():
    """ "Learnable parameters" in its listing of the architecture, which 91 observations and 39 actions (Object Hold) give; the
    target critic has none.
    """
    agent = make_agent("iq_mpc", {"episode_len": 100}, 91, 39)
    assert sum(p.numel() for p in agent.model.parameters()) == 4_274_259


# -- numpy --------------------------------------------------------------------------------------------------------------------


def parameters(agent, z):
    mean, raw = np.split(apply_normed(agent.model.actor, z), 2, -1)
    return mean, -10 + 6 * (np.tanh(raw) + 1)


def density(mean, log_std, before, scale=A):
    """log pi of tanh(before), the Gaussian's part times `scale`."""
    normal = (-0.5 * ((before - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)).sum(-1)
    return scale * normal - np.log(1 - np.tanh(before) ** 2).sum(-1)


def policy(agent, z, noise, scale=A):
    mean, log_std = parameters(agent, z)
    before = mean + np.exp(log_std) * array(noise)
    return np.tanh(before), density(mean, log_std, before, scale)


def q_of(critic, heads, z, action, mask=None):
    za = np.concatenate([z, action], -1)
    flat = za.reshape(-1, za.shape[-1])
    masks = [None] * len(heads) if mask is None else array(mask)
    return np.stack([apply_head(critic, h, flat, m)[:, 0].reshape(za.shape[:-1]) for h, m in zip(heads, masks, strict=True)])


def value(agent, critic, heads, z, noise, mask=None):
    action, log_prob = policy(agent, z, noise)
    return q_of(critic, heads, z, action, mask).min(0) - 0.02 * log_prob


def rollout(agent, batch):
    zs = [apply_normed(agent.model.encoder, array(batch.obs[:, 0]))]
    for t in range(H):
        zs.append(apply_normed(agent.model.dynamics, np.concatenate([zs[-1], array(batch.action[:, t])], -1)))
    return np.stack(zs, 1)


def over_rollout(error, valid, weights=WEIGHTS):
    """Each step's mean over its valid rows [..., B, H], then the weighted sum over steps."""
    of_step = [error[..., array(valid)[:, t] > 0, t].mean() for t in range(error.shape[-1])]
    return float(weights @ np.array(of_step))


def pair_of(noise):
    return np.argsort(-array(noise))[:2]


def draws(objective="initial", dropout=True):
    """noise, value_noise, pairs, mask, value_mask of `model_loss`."""
    shape = (2,) if objective == "initial" else (2, H)
    masks = (torch.rand(Q, B * H, 12) * 2, torch.rand(2, int(np.prod(shape)), 12) * 2) if dropout else (None, None)
    return torch.randn(B, H, A), torch.randn(*shape, A), torch.randn(2, Q), *masks


# -- losses -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["initial", "td"])
@pytest.mark.parametrize("dropout", [True, False])
def test_the_model_loss_is_equations_11_and_12_in_numpy(objective, dropout):
    agent, batch = make(objective=objective, alpha=0.7), rows()
    noise, value_noise, pairs, mask, value_mask = drawn = draws(objective, dropout)
    m, valid, zs = agent.model, batch.valid, rollout(agent, batch)
    z_target = apply_normed(m.encoder, array(batch.obs[:, 1:]))
    discounted = 0.9 * value(agent, agent.target.critic, pair_of(pairs[0]), z_target, noise)
    discounted[0, -1] = 0.0  # after the terminal step
    reward = q_of(m.critic, range(Q), zs[:, :-1], array(batch.action), mask) - discounted
    consistency = over_rollout(((zs[:, 1:] - z_target) ** 2).mean(-1), valid)
    if objective == "initial":
        v = value(agent, m.critic, pair_of(pairs[1]), zs[EXPERT, 0], value_noise, value_mask)
        second = WEIGHTS.sum() * 0.1 * v.mean()
    else:
        v = value(agent, m.critic, pair_of(pairs[1]), zs[BEHAVIOUR, :-1], value_noise, value_mask)
        second = over_rollout(v - discounted[BEHAVIOUR], valid[BEHAVIOUR])
    first = np.mean([over_rollout(r[EXPERT], valid[EXPERT]) for r in reward])
    chi2 = np.mean([over_rollout(r**2, valid) for r in reward]) / (4 * 0.7)
    critic = -first + second + chi2

    loss, latents, info = agent.model_loss(batch.obs, batch, EXPERT, BEHAVIOUR, *drawn)
    assert not valid[1, -1] and batch.terminated[0, -1]
    assert info["loss/value"].item() == pytest.approx(second, rel=1e-4)
    assert info["loss/chi2"].item() == pytest.approx(chi2, rel=1e-4)
    assert info["loss/critic"].item() == pytest.approx(critic, rel=1e-4)
    assert loss.item() == pytest.approx(20 * consistency + 0.1 * critic, rel=1e-4)
    assert np.allclose(array(latents), zs, atol=1e-5) and not latents.requires_grad
    q = reward + discounted
    difference = q.mean(0)[EXPERT].mean() - q.mean(0)[BEHAVIOUR][array(valid[BEHAVIOUR]) > 0].mean()
    assert info["q/difference"].item() == pytest.approx(difference, rel=1e-3)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_actor_loss_is_equation_13_in_numpy(scaled):
    agent, batch = make(scaled_log_prob=scaled), rows()
    zs, noise, pair, mask = torch.rand(B, H + 1, Z), torch.randn(B, H + 1, A), torch.randn(Q), torch.rand(2, B * (H + 1), 12)
    action, log_prob = policy(agent, array(zs), noise, A if scaled else 1)
    q = q_of(agent.model.critic, pair_of(pair), array(zs), action, mask).min(0)
    expected = over_rollout(0.02 * log_prob - q, batch.alive, 0.5 ** np.arange(H + 1) / (H + 1))
    assert not batch.alive[0, -1] and not batch.alive[1, -1]
    assert agent.actor_loss(zs, batch.alive, noise, pair, mask)[0].item() == pytest.approx(expected, rel=1e-4)


# -- what learns from what ----------------------------------------------------------------------------------------------------


def reached(agent, loss):
    names, every = zip(*agent.model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, every, allow_unused=True, retain_graph=True)
    return {n.split(".")[0] for n, g in zip(names, grads, strict=True) if g is not None and g.abs().sum() > 0}


def test_each_loss_reaches_its_own_modules():
    agent, batch = make(), rows()
    loss, zs, _ = agent.model_loss(batch.obs, batch, EXPERT, BEHAVIOUR, *draws())
    assert reached(agent, loss) >= {"encoder", "dynamics", "critic"}
    owned = {p for group in agent.optimizers["model"].param_groups for p in group["params"]}
    assert owned == {p for name, p in agent.model.named_parameters() if not name.startswith("actor.")}
    penalty, _ = agent.penalty_loss(zs[:, :-1], batch.action, batch.valid, EXPERT, BEHAVIOUR, torch.rand(2, H, 1), EXPERT)
    assert reached(agent, penalty) == {"critic"}
    actor_loss, _ = agent.actor_loss(zs, batch.alive, torch.randn(B, H + 1, A), torch.randn(Q), None)
    assert reached(agent, actor_loss) == {"actor", "critic"}
    assert {p for group in agent.optimizers["actor"].param_groups for p in group["params"]} == set(
        agent.model.actor.parameters()
    )
    assert all(p.grad is None for p in agent.target.parameters())


def test_the_value_of_the_initial_states_is_learned_through_critics_and_encoder():
    """V0 alone: the loss's gradient with V0 in it differs from that without it, in the critics and in the encoder."""
    agent, batch = make(consistency_coef=0.0), rows()
    drawn, value = draws(dropout=False), agent.value
    found = []
    for weight in (1.0, 0.0):
        agent.value = lambda *args, weight=weight: weight * value(*args)
        loss = agent.model_loss(batch.obs, batch, EXPERT, BEHAVIOUR, *drawn)[0]
        modules = {name: list(getattr(agent.model, name).parameters()) for name in ("encoder", "critic", "dynamics")}
        found.append({name: torch.autograd.grad(loss, every, retain_graph=True) for name, every in modules.items()})
    moved = {
        name: any(not torch.allclose(a, b) for a, b in zip(found[0][name], found[1][name], strict=True)) for name in modules
    }
    assert moved == {"encoder": True, "critic": True, "dynamics": False}  # the first latent is not of the dynamics


@pytest.mark.parametrize("objective", ["initial", "td"])
def test_targets_take_no_gradient(objective):
    """Of the later observations only the targets' latents could send a gradient: none of them does."""
    agent, batch = make(objective=objective), rows()
    obs = batch.obs.clone().requires_grad_()
    agent.model_loss(obs, batch, EXPERT, BEHAVIOUR, *draws(objective))[0].backward()
    assert obs.grad is not None
    assert (obs.grad[:, 0].abs().sum(-1) > 0).all() and obs.grad[:, 1:].abs().sum() == 0
    assert all(p.grad is None for p in agent.target.parameters())


def test_targets_and_planning_drop_nothing_and_updates_do():
    """With half of the critics' features dropped, the targets' part and plans are those of a model without dropout."""
    plain, dropping = (make(model={**SMALL["model"], "dropout": rate}) for rate in (0.0, 0.5))
    batch, obs, first = rows(), torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    assert torch.equal(plain.act(obs, None, first)[0], dropping.act(obs, None, first)[0])
    z, noise, pair = torch.rand(B, H, Z), torch.randn(B, H, A), torch.tensor([3, 1])
    assert torch.equal(plain.next_value(z, noise, pair), dropping.next_value(z, noise, pair))
    seen = []
    for agent in (plain, dropping):
        next_value = agent.next_value
        agent.next_value = lambda *args, of=next_value: seen.append(of(*args)) or seen[-1]
    a, b = plain.update(batch), dropping.update(batch)
    assert torch.equal(*seen) and a["loss/consistency"] == b["loss/consistency"]
    for name in ("loss/critic", "loss/value", "loss/chi2", "q/mean", "q/policy_mean"):
        assert a[name] != b[name], name


@pytest.mark.parametrize("penalty", [True, False])
def test_an_update_moves_every_module_and_reports_finite_metrics(penalty):
    agent = make(gradient_penalty=penalty)
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    old = [p.clone() for p in agent.target.critic.parameters()]
    metrics = agent.update(rows())
    assert all(not torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())
    assert ("loss/penalty" in metrics) == penalty
    for target, was, online in zip(agent.target.critic.parameters(), old, agent.model.critic.parameters(), strict=True):
        assert torch.allclose(target, 0.99 * was + 0.01 * online, atol=1e-6)


def test_each_part_of_an_update_has_noise_critics_and_dropout_of_its_own():
    agent = make(gradient_penalty=True, model={**SMALL["model"], "dropout": 0.5})
    seen = spy_on(agent, "model_loss", "penalty_loss", "actor_loss")
    for _ in range(8):
        agent.update(rows())
    asked = set()  # how the penalty's critics differ from those of targets, V and the policy
    for (_, _, _, _, noise, value_noise, pairs, mask, value_mask), penalty, (zs, _, own_noise, own_pair, own_mask) in zip(
        *seen.values(), strict=True
    ):
        assert own_noise.shape == (*zs.shape[:2], A)
        numbers = [part.flatten() for part in (noise, value_noise, own_noise, pairs, own_pair)]
        assert len(torch.cat(numbers).unique()) == sum(map(len, numbers))  # no number twice
        shapes = (Q, B * H, 12), (2, len(value_noise), 12), (2, B * (H + 1), 12)
        for one, shape in zip((mask, value_mask, own_mask), shapes, strict=True):
            assert one.shape == shape and 0.3 < (one == 0).float().mean() < 0.7
        heads = [set(sample_pair(pair).tolist()) for pair in (*pairs, own_pair)]
        asked |= {k for k in range(3) if heads[k] != set(penalty[-1].tolist())}
    assert asked == {0, 1, 2}


def test_rewards_do_not_change_the_objective():
    agent, batch, drawn = make(), rows(), draws(dropout=False)
    other = dataclasses.replace(batch, reward=batch.reward + 7)
    a, b = (agent.model_loss(one.obs, one, EXPERT, BEHAVIOUR, *drawn)[0] for one in (batch, other))
    assert a == b


@pytest.mark.parametrize("objective", ["initial", "td"])
def test_the_order_of_the_rows_does_not_change_the_objective(objective):
    """Rows move with their noise; those of the second term stay in the order in which its noise counts them."""
    agent, batch, order = make(objective=objective), rows(), torch.tensor([1, 0, 3, 2])
    noise, *rest = draws(objective, dropout=False)
    moved = dataclasses.replace(
        batch, **{f.name: v[order] for f in dataclasses.fields(batch) if (v := getattr(batch, f.name)) is not None}
    )
    expert, behaviour = torch.tensor([1, 3]), torch.tensor([0, 2])
    assert torch.equal(moved.obs[expert], batch.obs[EXPERT]) and not torch.equal(moved.obs, batch.obs)
    a = agent.model_loss(batch.obs, batch, EXPERT, BEHAVIOUR, noise, *rest)[0]
    b = agent.model_loss(moved.obs, moved, expert, behaviour, noise[order], *rest)[0]
    assert a.item() == pytest.approx(b.item(), rel=1e-5)


def test_images_come_through_the_same_model():
    config = {
        **SMALL,
        "model": {"latent_dim": 32, "num_channels": 2, "mlp_dim": 12, "simnorm_dim": 4},
        "gradient_penalty": True,
    }
    agent = make_agent("iq_mpc", config, (9, 64, 64), A)
    images = torch.randint(0, 256, (B, H + 1, 9, 64, 64), dtype=torch.uint8)
    metrics = agent.update(dataclasses.replace(rows(), obs=images))
    action, state, _ = agent.act(images[:2, 0], None, torch.ones(2, dtype=torch.bool))
    assert all(value.isfinite() for value in metrics.values()) and action.shape == (2, A) and state.shape == (2, H, A)


@pytest.mark.parametrize(("episode_len", "gamma"), [(500, 0.99), (100, 0.95), (5, 0.95), (10_000, 0.995)])
def test_the_discount_is_the_heuristic_of_the_episodes_length(episode_len, gamma):
    assert make(gamma=None, episode_len=episode_len).config.discount == pytest.approx(gamma)


def test_a_batch_without_an_experts_rows_is_refused():
    with pytest.raises(ConfigError, match="is_expert.*demonstrations"):
        make().update(dataclasses.replace(rows(), is_expert=None))
