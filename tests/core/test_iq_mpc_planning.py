"""IQ-MPC's two ways of scoring plans in numpy, planning in bfloat16, decoded rewards, and that it imitates."""

import numpy as np
import pytest
import torch

from tests.core.reference import array
from tests.core.test_iq_mpc import SMALL, A, B, H, O, Q, density, make, pair_of, parameters, policy, q_of, rows
from tests.core.test_simplicial import apply_normed
from tests.fakes import distance, drift, imitate, policy_of
from wmrl_ray.core.agents import make_agent


def score(agent, z, actions, shared):
    start = agent.start(z).expand(len(actions), -1)
    return array(agent.returns(start, actions, torch.randn(len(actions), A), shared))


def numpy_scores(agent, z, actions, shared, planned):
    """Algorithm 1 line by line, and its telescoped form with all its terms."""
    heads, noise = pair_of(shared[:Q]), array(shared[Q:]).reshape(H + 1, A)
    m, N, a = agent.model, len(actions), array(actions)
    z, listed, telescoped = np.repeat(array(z), N, 0), np.zeros(N), np.zeros(N)

    def q(z, action):
        return q_of(m.critic, heads, z, action).min(0)

    for t in range(H):
        chosen, sampled = policy(agent, z, torch.from_numpy(noise[t]))
        log_prob = density(*parameters(agent, z), np.arctanh(a[:, t])) if planned else sampled
        gain = q(z, a[:, t]) - (q(z, chosen) - 0.02 * sampled if t > 0 else 0.0)
        telescoped += 0.9**t * (gain - 0.02 * log_prob)
        z_next = apply_normed(m.dynamics, np.concatenate([z, a[:, t]], -1))
        chosen, sampled = policy(agent, z_next, torch.from_numpy(noise[t + 1]))
        v = q(z_next, chosen) - 0.02 * sampled
        listed += 0.9**t * (q(z, a[:, t]) - 0.9 * v - 0.02 * log_prob)
        z = z_next
    return listed + 0.9**H * v, telescoped


@pytest.mark.parametrize("planned", [False, True])
def test_both_scores_are_algorithm_1_and_rank_plans_alike(planned):
    listed, telescoped = (
        make(plan_score=name, planned_log_prob=planned, action_margin=1e-6) for name in ("algorithm_1", "telescoped")
    )
    z, actions = listed.model.encode(torch.randn(1, O)).detach(), torch.rand(7, H, A) * 1.8 - 0.9
    shared = torch.randn(listed.shared_draws)
    expected, also_expected = numpy_scores(listed, z, actions, shared, planned)
    assert np.allclose(expected, also_expected, rtol=1e-6) and np.ptp(expected) > 0.1
    assert np.allclose(score(listed, z, actions, shared), expected, rtol=1e-3, atol=1e-3)
    ours = score(telescoped, z, actions, shared)
    assert np.allclose(ours - ours.mean(), expected - expected.mean(), rtol=1e-3, atol=1e-3)  # a constant may differ
    assert (np.argsort(ours) == np.argsort(expected)).all()


def test_both_scores_choose_the_same_action():
    obs, first = torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    a, b = (make(plan_score=name).act(obs, None, first)[0] for name in ("telescoped", "algorithm_1"))
    assert torch.allclose(a, b, atol=1e-4)


def test_a_horizon_of_one_plans_by_q_alone():
    agent = make(plan={**SMALL["plan"], "horizon": 1})
    z, actions, shared = agent.model.encode(torch.randn(1, O)).detach(), torch.rand(7, 1, A), torch.randn(agent.shared_draws)
    q = q_of(agent.model.critic, pair_of(shared[:Q]), np.repeat(array(z), 7, 0), array(actions[:, 0])).min(0)
    assert np.allclose(score(agent, z, actions, shared), q, atol=1e-4)


def test_large_actions_get_two_iterations_more():
    assert make().plan_config.iterations == 2
    assert make_agent("iq_mpc", SMALL, O, 20).plan_config.iterations == 4
    assert make_agent("iq_mpc", {**SMALL, "extra_iterations": 0}, O, 20).plan_config.iterations == 2


def test_bfloat16_plans_about_as_float32():
    exact, rough = make(), make(precision="bfloat16")
    obs = torch.randn(1, O)
    rough.act(obs, None, torch.ones(1, dtype=torch.bool))  # makes the copy of the weights
    z, actions = exact.model.encode(obs).detach(), torch.rand(20, H, A) * 2 - 1
    shared = torch.randn(exact.shared_draws)
    a, b = score(exact, z, actions, shared), score(rough, z, actions, shared)
    assert np.abs(a - b).max() < 0.2 * a.std()


def test_bfloat16_tells_actions_apart_however_large_q_is():
    """Near 100, numbers of 8 bits are 0.5 apart: more than these actions are."""
    exact, rough = (make(precision=precision, plan={**SMALL["plan"], "horizon": 1}) for precision in ("float32", "bfloat16"))
    for agent in (exact, rough):
        for critic in (agent.model.critic, agent.target.critic):
            critic.weights[-1].data.mul_(0.1)  # type: ignore[index]
            critic.biases[-1].data.fill_(100.3)  # type: ignore[index]
    obs = torch.randn(1, O)
    rough.act(obs, None, torch.ones(1, dtype=torch.bool))  # makes the copy of the weights
    z, actions, shared = exact.model.encode(obs).detach(), torch.rand(6, 1, A) * 2 - 1, torch.randn(exact.shared_draws)
    zs, found = z.expand(6, -1), []
    for agent in (exact, rough):
        with torch.no_grad(), agent.autocast():
            values = [agent.model.q(zs, actions[:, 0]), agent.target.q(zs, actions[:, 0])]
        values.append(agent.returns(agent.start(z).expand(6, -1), actions, torch.randn(6, A), shared)[None])
        assert all(value.dtype == torch.float32 for value in values)
        found.append(torch.cat(values))
    a, b = found
    assert (a - a.mean(-1, keepdim=True)).abs().max() < 0.5
    assert (a - b).abs().max() < 0.2 * a.std(-1).min()  # the level too: the last bias is not rounded
    assert torch.equal(a.argsort(-1), b.argsort(-1))


def test_without_planning_it_acts_by_the_policy_prior():
    agent, obs, first = make(use_planning=False), torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    mean, log_std = parameters(agent, apply_normed(agent.model.encoder, array(obs)))
    assert np.allclose(array(agent.act(obs, None, first)[0]), np.tanh(mean), atol=1e-5)
    noise = torch.randn(3, A, generator=torch.Generator().manual_seed(1))
    agent.act_generator.manual_seed(1)
    explored = agent.act(obs, None, first, explore=True)[0]
    assert np.allclose(array(explored), np.tanh(mean + np.exp(log_std) * array(noise)), atol=1e-5)


# -- rewards, and imitation ---------------------------------------------------------------------------------------------------


def test_decoded_rewards_are_q_minus_the_next_latents_value_in_numpy():
    agent, batch = make(), rows()
    reward = agent.decoded_reward(batch, num_actions=7)
    noise = torch.randn(7, B, H, A, generator=torch.Generator().manual_seed(0))
    z = apply_normed(agent.model.encoder, array(batch.obs[:, :-1]))
    z_next = apply_normed(agent.model.dynamics, np.concatenate([z, array(batch.action)], -1))
    sampled = [policy(agent, z_next, one) for one in noise]
    v = np.mean([q_of(agent.model.critic, range(Q), z_next, a).mean(0) - 0.02 * log_prob for a, log_prob in sampled], 0)
    expected = q_of(agent.model.critic, range(Q), z, array(batch.action)).mean(0) - 0.9 * (1 - array(batch.terminated)) * v
    assert reward.shape == (B, H) and np.allclose(array(reward), expected, atol=1e-4)
    assert torch.equal(reward, agent.decoded_reward(batch, num_actions=7))


@pytest.mark.parametrize("penalty", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_learns_to_imitate_without_rewards(penalty):
    """With the gradient penalty as it is by default, too: in the paper's form no seed of three learns."""
    config = {
        "gradient_penalty": penalty,
        "model": {"latent_dim": 32, "encoder_dim": 32, "mlp_dim": 32, "simnorm_dim": 4},
        "plan": {"horizon": 2, "num_samples": 28, "num_policy": 4, "num_elites": 4, "iterations": 2, "temperature": 10.0},
        **{"lr": 1e-3, "encoder_lr_scale": 1.0, "tau": 0.1, "gamma": 0.9, "entropy_coef": 3e-3},
    }
    agent = make_agent("iq_mpc", config, 2, 2)

    def result():
        return distance(drift(policy_of(agent, explore=False), 32, torch.Generator().manual_seed(5))[0])

    before = result()
    imitate(agent, rounds=12, updates=25)
    assert before > 0.7 and result() < 0.2, (
        before,
        result(),
    )  # standing still: 0.77; the expert: 0.0002; 3 seeds: 0.03 to 0.12, with the penalty 0.03 to 0.05
