import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import erf

from tests.core.reference import array, random_batch, shake
from wmrl_ray.core.agents import make_agent

B, K, O, A = 2, 4, 5, 6  # noqa: E741
SMALL = {"embedding_dim": 8, "num_layers": 2, "sequence": K, "episode_len": 30, "reward_scale": 0.1, "target_return": 20.0}


def make(**config):
    agent = make_agent("dt", {**SMALL, **config}, O, A)
    shake(agent.model)
    return agent


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, action = torch.randn(B, K, O, generator=g), torch.rand(B, K, A, generator=g) * 2 - 1
    return obs, action, torch.randn(B, K, generator=g), torch.tensor([0, 7])


# -- plain numpy, one sequence at a time -------------------------------------------------------------------------------------


def linear(layer, x):
    return x @ array(layer.weight).T + array(layer.bias)


def norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps) * array(layer.weight) + array(layer.bias)


def numpy_predictions(model, obs, action, returns, start, keep=None):
    """[K, A] for one sequence, with all outputs of all layers; keep: factors of dropout of every place, or None."""
    keep = iter(keep) if keep is not None else None
    drop = (lambda x: x * next(keep)) if keep is not None else (lambda x: x)
    at = array(model.embed_time.weight)[start + np.arange(len(obs))]
    tokens = [linear(model.embed_return, returns[:, None]), linear(model.embed_obs, obs), linear(model.embed_action, action)]
    x = np.stack([token + at for token in tokens], 1).reshape(3 * len(obs), -1)
    x = drop(norm(model.norm_in, x))
    for block in model.blocks:
        n = norm(block.norm1, x)
        q, (k, v) = linear(block.query, n), np.split(linear(block.key_value, n), 2, -1)
        heads = []
        for a, b, c in zip(*(np.split(part, block.num_heads, -1) for part in (q, k, v)), strict=True):
            scores = np.where(np.tri(len(a)) > 0, a @ b.T / np.sqrt(a.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(drop(weights / weights.sum(-1, keepdims=True)) @ c)
        x = x + drop(linear(block.out, np.concatenate(heads, -1)))
        hidden = linear(block.mlp[0], norm(block.norm2, x))
        x = x + drop(linear(block.mlp[2], hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))))
    return np.tanh(linear(model.head, norm(model.norm_out, x)[1::3]))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_transformer_is_that_of_numpy(num_heads):
    agent = make(num_heads=num_heads)
    obs, action, returns, time = inputs()
    predicted = agent.model(obs, action, returns, time)
    for b in range(B):
        expected = numpy_predictions(agent.model, *(array(x[b]) for x in (obs, action, returns)), int(time[b]))
        assert np.allclose(array(predicted[b]), expected, atol=1e-5)


def test_with_dropout_it_is_that_of_numpy_with_the_same_masks():
    agent = make(dropout=0.5)
    obs, action, returns, time = inputs()
    masks = agent.draw_masks(B, K)
    predicted = agent.model(obs, action, returns, time, iter(masks))
    keep = []  # of one sequence; the last block's masks are for the tokens of observations only
    for mask in masks:
        one = array(mask[0, 0] if mask.dim() == 4 else mask[0])
        if len(one) == K:
            whole = np.zeros((3 * K, one.shape[-1]))
            whole[1::3] = one
            one = whole
        keep.append(one)
    expected = numpy_predictions(agent.model, *(array(x[0]) for x in (obs, action, returns)), 0, keep)
    assert np.allclose(array(predicted[0]), expected, atol=1e-5)


def test_dropout_keeps_the_share_and_the_mean_that_it_should():
    masks = make_agent("dt", {"embedding_dim": 32}, O, A).draw_masks(64, 20)
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.9], rel=1e-4)
        assert (mask == 0).float().mean().item() == pytest.approx(0.1, abs=0.006)
    assert make(dropout=0.0).draw_masks(B, K) is None


def test_a_prediction_sees_nothing_that_comes_later():
    agent = make()
    obs, action, returns, time = inputs()
    before = agent.model(obs, action, returns, time)
    for t in range(K):
        later = [x.clone() for x in (obs, action, returns)]
        later[0][:, t + 1 :], later[1][:, t:], later[2][:, t + 1 :] = 5.0, -0.5, -3.0  # a_t itself follows the token s_t
        after = agent.model(*later, time)
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1])
        assert t == K - 1 or not torch.allclose(after[:, t + 1 :], before[:, t + 1 :])
        earlier = [x.clone() for x in (obs, action, returns)]
        earlier[2][:, t] += 1.0
        assert not torch.allclose(agent.model(*earlier, time)[:, t], before[:, t])


@pytest.mark.parametrize("average_over_padding", [True, False])
def test_the_loss_is_the_squared_error_of_the_valid_steps_in_numpy(average_over_padding):
    agent = make(average_over_padding=average_over_padding)
    batch = random_batch(B, K, O, A)
    batch = dataclasses.replace(batch, valid=torch.tensor([[True] * K, [True] + [False] * (K - 1)]))
    predicted = agent.model(batch.obs[:, :-1], batch.action, 0.1 * batch.return_to_go, batch.time)
    error = ((array(predicted) - array(batch.action)) ** 2).mean(-1) * array(batch.valid)
    count = B * K if average_over_padding else K + 1
    assert agent.actor_loss(batch, None).item() == pytest.approx(error.sum() / count, rel=1e-5)


def test_the_learning_rate_warms_up_and_survives_a_resume():
    agent, batch = make(warmup=4, lr=1e-3), random_batch(B, K, O, A)
    rates = [agent.update(batch)["actor/lr"].item() for _ in range(2)]
    other = make(warmup=4, lr=1e-3)
    other.set_state(agent.get_state())
    rates += [other.update(batch)["actor/lr"].item() for _ in range(4)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_an_update_moves_every_parameter_and_reports_finite_metrics():
    agent = make(warmup=1)
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    metrics = agent.update(random_batch(B, K, O, A))
    assert all(not torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    assert all(value.dim() == 0 and value.isfinite() and not value.requires_grad for value in metrics.values())


# -- acting ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, K, 2 * K + 3])
def test_acting_with_a_history_equals_running_the_whole_sequence(steps):
    agent, g = make(), torch.Generator().manual_seed(3)
    obs, reward = torch.randn(B, steps, O, generator=g), torch.randn(B, steps, generator=g)
    state, actions = None, []
    for t in range(steps):
        first = torch.full((B,), t == 0)
        action, state, _ = agent.act(obs[:, t], state, first, reward=reward[:, t - 1] if t else None)
        actions.append(action)
    returns = 0.1 * (20.0 - torch.cat([torch.zeros(B, 1), reward[:, :-1].cumsum(1)], 1))  # what is still to be earned
    begin = max(0, steps - K)
    taken = torch.stack(actions, 1)
    whole = agent.model(obs[:, begin:], taken[:, begin:], returns[:, begin:], torch.full((B,), begin))
    torch.testing.assert_close(taken[:, -1], whole[:, -1])


def test_environments_that_start_at_different_times_do_not_disturb_each_other():
    agent, g = make(), torch.Generator().manual_seed(3)
    obs, reward = torch.randn(2, 12, O, generator=g), torch.randn(2, 12, generator=g)
    resets = {0: [0, 5], 1: [0, 2, 9]}

    def run(rows):
        state, out = None, []
        for t in range(12):
            first = torch.tensor([t in resets[row] for row in rows])
            action, state, _ = agent.act(obs[rows, t], state, first, reward=reward[rows, t - 1])
            out.append(action)
        return torch.stack(out, 1)

    together = run([0, 1])
    torch.testing.assert_close(together[:1], run([0]))
    torch.testing.assert_close(together[1:], run([1]))
    fresh = agent.act(obs[:1, 5], None, torch.ones(1, dtype=torch.bool))[0]  # the episode that begins at step 5
    torch.testing.assert_close(together[:1, 5], fresh)


def test_an_episode_longer_than_the_table_of_times_goes_on():
    agent, state = make(episode_len=3), None
    for t in range(12):
        action, state, _ = agent.act(torch.randn(B, O), state, torch.full((B,), t == 0))
    assert state is not None
    assert action.isfinite().all() and state.shape == (B, K, O + A + 2) and state[:, -1, -1].tolist() == [11.0] * B


def test_the_reward_that_was_earned_is_taken_off_the_return_that_is_asked_for():
    agent, obs = make(), torch.randn(2, B, O)
    _, state, _ = agent.act(obs[0], None, torch.ones(B, dtype=torch.bool))
    assert state is not None
    _, after, _ = agent.act(obs[1], state, torch.zeros(B, dtype=torch.bool), reward=torch.tensor([5.0, 0.0]))
    assert after is not None
    assert torch.allclose(after[:, 0, -2], torch.tensor([2.0, 2.0]))
    assert torch.allclose(after[:, 1, -2], torch.tensor([1.5, 2.0]))
