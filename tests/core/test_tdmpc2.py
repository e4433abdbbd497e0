"""TD-MPC2's losses and targets in numpy, what each of them reaches, its planner's returns, its bfloat16 copy."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import array, normal_log_prob, random_batch, reached, shake, spy_on
from tests.core.test_simplicial import apply_head, apply_normed, decoded
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import AGENTS, make_agent
from wmrl_ray.core.agents.base import frozen
from wmrl_ray.core.blocks import dropout_mask
from wmrl_ray.core.math import sample_pair, symlog
from wmrl_ray.core.planner import plan

B, H, O, A, Z, Q, C = 2, 3, 5, 6, 8, 5, 11  # noqa: E741
MODEL = {"latent_dim": Z, "encoder_dim": 16, "mlp_dim": 12, "simnorm_dim": 4, "num_bins": C}
PLAN = {"num_samples": 16, "num_policy": 4, "num_elites": 4, "iterations": 2}
LATENT = {"latent_dim": 512, "mlp_dim": 8, "encoder_dim": 8}


def make(model=None, **config):
    values = {"model": {**MODEL, **(model or {})}, "plan": PLAN, "episode_len": 500}
    agent = make_agent("tdmpc2", {**values, **config}, O, A)
    shake(agent.model)
    shake(agent.target, seed=1)
    agent.target.scale.fill_(2.0)
    return agent


@pytest.fixture
def agent():
    return make()


def policy(agent, z, noise):
    """action, mean, std before the tanh."""
    mean, raw = np.split(apply_normed(agent.model.actor, z), 2, -1)
    std = np.exp(-10 + 6 * (np.tanh(raw) + 1))
    return np.tanh(mean + std * noise), mean, std


def two_of(critic, pair, z, action, mask=None):
    """[2, ...] values of the two critics with the largest noise."""
    za, heads = np.concatenate([z, action], -1), np.argsort(-array(pair))[:2]
    return np.stack([decoded(apply_head(critic, h, za, None if mask is None else mask[i])) for i, h in enumerate(heads)])


def cross_entropy(logits, target):
    place = (np.clip(array(symlog(torch.tensor(target))), -10, 10) + 10) / 20 * (C - 1)
    below = np.minimum(np.floor(place).astype(int), C - 2)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(len(logits))
    return -((1 - place + below) * log_probs[rows, below] + (place - below) * log_probs[rows, below + 1])


def numpy_model_loss(agent, batch, noise, pair, mask):
    m, obs, action, reward = agent.model, array(batch.obs), array(batch.action), array(batch.reward)
    noise, valid, terminated = array(noise), array(batch.valid), array(batch.terminated)
    z, parts, targets = apply_normed(m.encoder, obs[:, 0]), np.zeros(3), []
    for t in range(H):
        z_next = apply_normed(m.encoder, obs[:, t + 1])
        smaller = two_of(agent.target.critic, pair, z_next, policy(agent, z_next, noise[:, t])[0]).min(0)
        target = reward[:, t] + 0.99 * (1 - terminated[:, t]) * smaller
        targets.append(target)
        za = np.concatenate([z, action[:, t]], -1)
        weight = valid[:, t] * 0.5**t / H
        parts[1] += (weight * cross_entropy(apply_normed(m.reward_head, za), reward[:, t])).mean()
        for head in range(Q):
            logits = apply_head(m.critic, head, za, array(mask).reshape(Q, B, H, 12)[head, :, t])
            parts[2] += (weight * cross_entropy(logits, target)).mean() / Q
        z = apply_normed(m.dynamics, za)
        parts[0] += (weight * ((z - z_next) ** 2).mean(-1)).mean()
    return parts, np.stack(targets, 1)


def loss_inputs():
    mask = dropout_mask((Q, B * H, 12), 0.3, torch.Generator().manual_seed(2))
    return random_batch(B, H, O, A), torch.randn(B, H, A), torch.randn(Q), mask


def test_the_model_loss_is_the_papers_in_numpy(agent):
    batch, noise, pair, mask = loss_inputs()
    loss, zs, info = agent.model_loss(batch.obs, batch, noise, pair, mask)
    (consistency, reward, critic), _ = numpy_model_loss(agent, batch, noise, pair, mask)
    assert info["loss/consistency"].item() == pytest.approx(consistency, rel=1e-4)
    assert info["loss/reward"].item() == pytest.approx(reward, rel=1e-4)
    assert info["loss/critic"].item() == pytest.approx(critic, rel=1e-4)
    assert loss.item() == pytest.approx(20 * consistency + 0.1 * reward + 0.1 * critic, rel=1e-4)
    assert zs.shape == (B, H + 1, Z) and not zs.requires_grad


def test_the_td_target_is_the_papers_in_numpy_and_only_a_terminal_step_does_not_bootstrap(agent):
    batch, noise, pair, mask = loss_inputs()
    target = agent.td_target(agent.model.encode(batch.obs[:, 1:]), batch, noise, pair)
    assert np.allclose(array(target), numpy_model_loss(agent, batch, noise, pair, mask)[1], rtol=1e-4, atol=1e-4)
    assert target[0, -1] == batch.reward[0, -1]  # terminated
    truncated = dataclasses.replace(batch, terminated=torch.zeros(B, H, dtype=torch.bool))
    assert agent.td_target(agent.model.encode(batch.obs[:, 1:]), truncated, noise, pair)[0, -1] != batch.reward[0, -1]


@pytest.mark.parametrize("entropy", ["gaussian", "squashed"])
def test_the_actor_loss_is_the_papers_in_numpy(entropy):
    agent = make(entropy=entropy, entropy_coef=0.1)
    zs, noise, pair = torch.rand(B, H + 1, Z), torch.randn(B, H + 1, A), torch.randn(Q)
    alive = torch.tensor([[True, True, True, False], [True, True, False, False]])
    mask = dropout_mask((2, B * (H + 1), 12), 0.3, torch.Generator().manual_seed(2))
    loss, scale, info = agent.actor_loss(zs, alive, noise, pair, mask, agent.target.scale)
    action, mean, std = policy(agent, array(zs), array(noise))
    q = two_of(agent.model.critic, pair, array(zs), action, array(mask).reshape(2, B, H + 1, 12)).mean(0)
    low, high = np.percentile(q[:, 0], [5, 95])
    expected_scale = 0.99 * 2.0 + 0.01 * max(high - low, 1.0)
    bonus = -A * normal_log_prob(mean, std, mean + std * array(noise))
    if entropy == "squashed":
        bonus = bonus + np.log(1 - action**2).sum(-1)
    per_latent = 0.1 * bonus + q / expected_scale
    assert scale.item() == pytest.approx(expected_scale, rel=1e-5)
    assert info["q/mean"].item() == pytest.approx(q[array(alive) > 0].mean(), rel=1e-4)
    assert info["actor/entropy"].item() == pytest.approx(bonus[array(alive) > 0].mean() / A, rel=1e-4)
    assert loss.item() == pytest.approx(-(0.5 ** np.arange(H + 1) * array(alive) * per_latent).mean(), rel=1e-4)


def test_the_model_loss_reaches_the_model_and_neither_the_actor_nor_the_targets(agent):
    batch, noise, pair, mask = loss_inputs()
    loss, _, _ = agent.model_loss(batch.obs, batch, noise, pair, mask)
    assert reached(agent.model, loss) == {"encoder", "dynamics", "reward_head", "critic"}
    assert all(p.grad is None for p in agent.target.parameters())


def test_the_consistency_target_takes_no_gradient(agent):
    """Of the later observations only their latents' gradient could reach the encoder: it reaches none of it."""
    batch, noise, pair, mask = loss_inputs()
    obs = batch.obs.clone().requires_grad_()
    agent.model_loss(obs, batch, noise, pair, mask)[0].backward()
    assert obs.grad is not None
    assert obs.grad[:, 0].abs().sum() > 0 and obs.grad[:, 1:].abs().sum() == 0


def test_the_actor_loss_reaches_the_actor_only(agent):
    zs, alive = torch.rand(B, H + 1, Z), torch.ones(B, H + 1, dtype=torch.bool)
    with frozen(agent.model.critic):
        loss = agent.actor_loss(zs, alive, torch.randn(B, H + 1, A), torch.randn(Q), None, torch.ones(()))[0]
        assert reached(agent.model, loss) == {"actor"}


def test_an_update_moves_every_network_and_the_target_critics_by_a_hundredth_and_the_scale(agent):
    before = {name: p.clone() for name, p in [*agent.model.named_parameters(), *agent.target.named_parameters("target")]}
    agent.update(random_batch(B, H, O, A))
    assert not any(torch.equal(p, before[name]) for name, p in agent.model.named_parameters())
    for (name, new), online in zip(agent.target.named_parameters("target"), agent.model.critic.parameters(), strict=True):
        assert torch.allclose(new, 0.99 * before[name] + 0.01 * online, atol=1e-6)
    assert agent.target.scale.item() != 2.0
    assert not hasattr(agent.target, "encoder")


def test_the_policys_part_of_an_update_has_noise_critics_and_dropout_of_its_own():
    agent = make(model={"dropout": 0.5})
    seen = spy_on(agent, "model_loss", "actor_loss")
    agent.update(random_batch(B, H, O, A))
    ((_, _, noise, pair, mask),), ((zs, _, own_noise, own_pair, own_mask, _),) = seen.values()
    assert own_noise.shape == (*zs.shape[:2], A) and not torch.isin(own_noise, noise).any()
    assert own_pair.shape == (Q,) and not torch.isin(own_pair, pair).any()
    assert mask.shape == (Q, B * H, 12) and own_mask.shape == (2, B * (H + 1), 12)
    assert 0 < (own_mask == 0).sum() < own_mask.numel()


def test_the_encoder_learns_more_slowly(agent):
    rates = [group["lr"] for group in agent.optimizers["model"].param_groups]
    assert rates == pytest.approx([9e-5, 3e-4]) and agent.optimizers["actor"].param_groups[0]["eps"] == 1e-5


def test_targets_and_acting_drop_nothing_and_updates_do():
    """With half of the critics' features dropped, targets and plans are those of a model without dropout."""
    plain, dropping, batch = make({"dropout": 0.0}), make({"dropout": 0.5}), random_batch(B, H, O, A)
    a, b = plain.update(batch), dropping.update(batch)
    assert a["q/target_mean"] == b["q/target_mean"] and a["loss/critic"] != b["loss/critic"]
    assert a["q/mean"] != b["q/mean"]
    plain, dropping = make({"dropout": 0.0}), make({"dropout": 0.5})
    obs, first = torch.randn(4, O), torch.ones(4, dtype=torch.bool)
    assert torch.equal(plain.act(obs, None, first)[0], dropping.act(obs, None, first)[0])


# -- the discount, and what a configuration decides ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "discount"),
    [
        ({"episode_len": 500}, 0.99),
        ({"episode_len": 100}, 0.95),
        ({"episode_len": 20}, 0.95),
        ({"episode_len": 5000}, 0.995),
        ({"gamma": 0.9}, 0.9),
    ],
)
def test_the_discount_follows_the_episodes_length_unless_it_is_given(values, discount):
    assert AGENTS["tdmpc2"].Config(**values).discount == pytest.approx(discount)


@pytest.mark.parametrize("name", ["tdmpc2", "iq_mpc"])
def test_without_a_discount_and_an_episodes_length_no_agent_is_built(name):
    with pytest.raises(ConfigError, match=r"episode_len = None and gamma = None"):
        make_agent(name, {}, O, A)


def test_many_action_dimensions_are_refined_more_often():
    small = {"model": MODEL, "gamma": 0.99}
    assert make_agent("tdmpc2", small, O, 19).plan_config.iterations == 6
    assert make_agent("tdmpc2", small, O, 20).plan_config.iterations == 8


def test_it_learns_online_and_its_predecessor_does_not():
    assert AGENTS["tdmpc2"].learns_online and not AGENTS["tdmpc"].learns_online


def test_images_are_refused_by_agents_that_take_none():
    with pytest.raises(ConfigError, match="TDMPC takes vectors only"):
        make_agent("tdmpc", {}, (9, 64, 64), A)


# -- planning -----------------------------------------------------------------------------------------------------------------


def test_returns_are_discounted_rewards_and_the_mean_of_two_critics_in_numpy(agent):
    z, actions, noise, pair = torch.rand(7, Z), torch.rand(7, H, A) * 2 - 1, torch.randn(7, A), torch.randn(Q)
    x, total = array(z), 0.0
    for t in range(H):
        xa = np.concatenate([x, array(actions)[:, t]], -1)
        total = total + 0.99**t * decoded(apply_normed(agent.model.reward_head, xa))
        x = apply_normed(agent.model.dynamics, xa)
    total = total + 0.99**H * two_of(agent.model.critic, pair, x, policy(agent, x, array(noise))[0]).mean(0)
    returns = agent.returns(agent.start(z), actions, noise, pair)
    assert np.allclose(array(returns), total, rtol=1e-4, atol=1e-4)


def test_the_policys_actions_follow_its_own_rollout_in_numpy(agent):
    z, noise = torch.rand(7, Z), torch.randn(7, H, A)
    actions, x = array(agent.policy_actions(z, noise)), array(z)
    for t in range(H):
        action = policy(agent, x, array(noise)[:, t])[0]
        assert np.allclose(actions[:, t], action, atol=1e-4)
        x = apply_normed(agent.model.dynamics, np.concatenate([x, action], -1))


def test_each_iteration_draws_two_critics_anew_and_evaluates_every_trajectory_with_them(agent):
    seen, returns = [], agent.returns
    agent.returns = lambda start, actions, noise, shared: (
        seen.append((len(actions), shared)) or returns(start, actions, noise, shared)
    )
    action, state, info = agent.act(torch.randn(3, O), None, torch.ones(3, dtype=torch.bool))
    assert action.shape == (3, A) and state.shape == (3, H, A) and (action.abs() <= 1).all()
    assert [rows for rows, _ in seen] == [3 * (16 + 4)] * 2 and not torch.equal(seen[0][1], seen[1][1])
    assert set(info) == {"plan/nan_frac", "plan/value_mean", "plan/std_mean"}
    assert len({tuple(sample_pair(torch.randn(Q)).sort().values.tolist()) for _ in range(200)}) == 10


def test_rows_that_share_a_draw_take_one_generator(agent):
    z, first = torch.rand(2, Z), torch.ones(2, dtype=torch.bool)
    streams = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="one generator"):
        plan(agent, z, None, first, agent.plan_config, A, streams)


def test_in_bfloat16_returns_are_close_to_those_of_float32():
    exact, rough = make(), make(precision="bfloat16")
    z, actions, noise, pair = torch.rand(200, Z), torch.rand(200, H, A) * 2 - 1, torch.randn(200, A), torch.randn(Q)
    rough.planned = rough.low_precision.of(rough.model)
    a, b = (agent.returns(agent.start(z), actions, noise, pair) for agent in (exact, rough))
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert (symlog(a) - symlog(b)).abs().max() < 0.15 * symlog(a).std() + 0.1


def test_a_plan_in_bfloat16_reads_the_weights_of_now():
    agent = make(precision="bfloat16")
    obs, first = torch.randn(1, O), torch.ones(1, dtype=torch.bool)

    def plans_with_the_models_weights():
        agent.act(obs, None, first)
        pairs = zip(agent.model.parameters(), agent.planned.parameters(), strict=True)
        return all(torch.equal(p.bfloat16(), q) for p, q in pairs)

    assert plans_with_the_models_weights() and agent.planned is not agent.model
    agent.update(random_batch(B, H, O, A))  # a fused optimiser's step, which torch's version counter does not see
    assert plans_with_the_models_weights()
    agent.set_state(make(precision="bfloat16", gamma=0.5).get_state())
    assert plans_with_the_models_weights()
    agent.model.get_parameter("actor.0.linear.bias").data.fill_(3.0)
    assert plans_with_the_models_weights()
    assert agent.model.dtype == torch.float32


# -- images -------------------------------------------------------------------------------------------------------------------


def image_agent(**config):
    return make_agent("tdmpc2", {"model": LATENT, "plan": PLAN, "gamma": 0.99, **config}, (9, 64, 64), A)


def image_batch():
    plain = random_batch(B, H, O, A)
    images = torch.randint(0, 256, (B, H + 1, 9, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(plain, obs=images)


def test_it_learns_from_and_acts_on_images():
    agent = image_agent()
    info = agent.update(image_batch())
    assert all(value.isfinite() for value in info.values())
    action, state, _ = agent.act(image_batch().obs[:, 0], None, torch.ones(B, dtype=torch.bool))
    assert action.shape == (B, A) and state.shape == (B, H, A)


def test_images_are_shifted_each_by_its_own_offset_in_updates_and_not_when_acting():
    agent, images = image_agent(), image_batch().obs
    shifted = agent.shifted(images)
    same = [torch.equal(a, b) for a, b in zip(shifted.flatten(0, 1), images.flatten(0, 1), strict=True)]
    assert shifted.shape == images.shape and sum(same) <= 2
    found = set()
    for moved, image in zip(shifted.flatten(0, 1), images.flatten(0, 1), strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (3, 3), (3, 3)), mode="edge")
        found |= {
            (i, j) for i in range(7) for j in range(7) if np.array_equal(padded[:, i : i + 64, j : j + 64], moved.numpy())
        }
    assert len(found) >= 4
    assert torch.equal(image_agent(shift=0).shifted(images), images)
    assert not torch.equal(image_agent(shift=1).shifted(images), images)
