import math

import numpy as np
import pytest
import torch

from tests.core.reference import two_hot
from wmrl_ray.core import math as m


def test_the_expectile_loss_weighs_positive_errors_by_tau_and_negative_ones_by_one_minus_tau():
    loss = m.expectile_loss(torch.tensor([2.0, 0.0, -3.0]), 0.9)
    assert torch.allclose(loss, torch.tensor([0.9 * 4, 0.0, 0.1 * 9]))


def test_the_minimiser_of_the_expectile_loss_is_the_expectile():
    samples = torch.tensor([0.0, 1.0, 5.0, 10.0])
    grid = torch.linspace(0, 10, 2001)
    best = grid[m.expectile_loss(samples[:, None] - grid, 0.8).sum(0).argmin()]
    above = (samples - best).clamp(min=0).sum()
    below = (best - samples).clamp(min=0).sum()
    assert above / (above + below) == pytest.approx(1 - 0.8, abs=1e-2)


def test_the_squashed_density_integrates_to_one():
    mean, log_std = torch.tensor([0.4]), torch.tensor([-0.3])
    a = torch.linspace(-1 + 1e-4, 1 - 1e-4, 200_001)[:, None]
    density = m.squashed_log_prob(mean, log_std, a, margin=1e-6).exp()
    assert torch.trapezoid(density, a[:, 0]).item() == pytest.approx(1.0, abs=1e-3)


def test_the_squashed_log_probability_is_the_change_of_variables_in_numpy():
    rng = np.random.default_rng(0)
    mean, log_std, action = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.uniform(-0.95, 0.95, size=(7, 3))
    u = np.arctanh(action)
    expected = (-0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi) - np.log(1 - action**2)).sum(
        -1
    )
    actual = m.squashed_log_prob(torch.tensor(mean), torch.tensor(log_std), torch.tensor(action), margin=1e-3)
    assert np.allclose(actual.numpy(), expected, atol=1e-6)


def test_the_gaussian_log_probability_is_numpys_with_one_spread_or_one_per_row():
    mean, action, log_std = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([-1.0, 0.5])
    std = log_std.exp().numpy()
    error = (action - mean).numpy() / std
    expected = (-0.5 * error**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
    assert np.allclose(m.gaussian_log_prob(mean, log_std, action).numpy(), expected, atol=1e-5)
    assert np.allclose(m.gaussian_log_prob(mean, log_std.expand(3, 2), action).numpy(), expected, atol=1e-5)


def test_an_action_on_the_bound_has_a_finite_log_probability_and_gradient():
    mean = torch.zeros(2, requires_grad=True)
    log_prob = m.squashed_log_prob(mean, torch.zeros(2), torch.tensor([1.0, -1.0]), margin=1e-3)
    log_prob.backward()
    assert log_prob.isfinite() and mean.grad.isfinite().all()


def test_samples_have_the_log_std_range_of_the_rescaling():
    raw = torch.tensor([-100.0, 0.0, 100.0])
    assert torch.allclose(m.rescale_log_std(raw, -5, 2), torch.tensor([-5.0, -1.5, 2.0]))


def test_advantage_weights_are_clipped_and_carry_no_gradient():
    advantage = torch.tensor([0.0, 1.0, 100.0], requires_grad=True)
    weight = m.advantage_weight(advantage, beta=2.0, largest=50.0)
    assert torch.allclose(weight, torch.tensor([1.0, math.exp(2), 50.0])) and not weight.requires_grad


def test_truncated_noise_is_clipped_stays_inside_the_bounds_and_passes_the_gradient():
    mean = torch.tensor([0.0, 0.99], requires_grad=True)
    action = m.truncated_noise(mean, 1.0, torch.tensor([5.0, 5.0]), clip=0.3)
    assert torch.allclose(action, torch.tensor([0.3, 1 - 1e-6]))
    action.sum().backward()
    assert torch.equal(mean.grad, torch.ones(2))


def test_time_weights_are_powers_of_rho():
    assert torch.allclose(m.time_weights(0.5, 4), torch.tensor([1.0, 0.5, 0.25, 0.125]))


def test_symexp_undoes_symlog():
    x = torch.tensor([-1000.0, -1.0, -0.1, 0.0, 0.1, 1.0, 1000.0])
    assert torch.allclose(m.symlog(x), torch.sign(x) * torch.log(1 + x.abs()))
    assert torch.allclose(m.symexp(m.symlog(x)), x, rtol=1e-5)


def test_a_two_hot_code_splits_a_number_between_its_neighbouring_bins():
    below, share = m.two_hot_parts(m.symexp(torch.tensor([[-2.0, -0.75], [0.5, 5.0]])), 5, -2.0, 2.0)  # bins -2, -1, 0, 1, 2
    assert below.tolist() == [[0, 1], [2, 3]]
    assert torch.allclose(share, torch.tensor([[0.0, 0.25], [0.5, 1.0]]), atol=1e-6)  # the last number is clamped


@pytest.mark.parametrize("x", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_hot_loss_of_a_number_that_is_not_finite_is_nan_and_its_bins_exist(x, dtype):
    """Of that number alone, and its logits' gradient is NaN there. Where symlog(x) is none, no index could be made of it."""
    targets = torch.tensor([1e38, x, 2.0], dtype=dtype)
    below, _ = m.two_hot_parts(targets, 101, -10, 10)
    assert ((below >= 0) & (below <= 99)).all() and below[0] == 99
    logits = torch.zeros(2, 3, 101, dtype=dtype, requires_grad=True)
    loss = m.two_hot_loss(logits, targets, -10, 10)
    loss.sum().backward()
    assert loss.isnan().tolist() == logits.grad.isnan().any(-1).tolist() == [[False, True, False]] * 2


def test_decoding_a_two_hot_code_gives_the_number_back():
    x = torch.linspace(-300, 300, 41)
    code = torch.tensor(two_hot(x.numpy(), 101, -10, 10), dtype=torch.float32)
    assert torch.allclose(m.two_hot_decode(code.log(), -10, 10), x, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_decoding_in_float32():
    logits = 3 * torch.randn(7, 101)
    exact = m.two_hot_decode(logits, -10, 10)
    with torch.autocast("cpu", torch.bfloat16):
        ours = m.two_hot_decode(logits, -10, 10)
    assert ours.dtype == torch.float32 and torch.equal(ours, exact)
    probs = np.exp(logits.double().numpy())
    mean = probs / probs.sum(-1, keepdims=True) @ np.linspace(-10, 10, 101)
    assert np.allclose(ours.numpy(), np.sign(mean) * np.expm1(np.abs(mean)), rtol=1e-4, atol=1e-5)


def test_the_two_hot_loss_is_the_cross_entropy_in_numpy_for_critics_that_share_a_target():
    logits, target = torch.randn(5, 2, 3, 11), torch.tensor([[0.3, -7.0, 1e9], [2.0, 0.0, -1e9]])
    log_probs = logits.double().numpy() - np.log(np.exp(logits.double().numpy()).sum(-1, keepdims=True))
    expected = -(two_hot(target.numpy(), 11, -10, 10) * log_probs).sum(-1)
    assert np.allclose(m.two_hot_loss(logits, target, -10, 10).numpy(), expected, atol=1e-5)


def test_simnorm_is_a_softmax_over_the_features_of_each_simplex():
    x = torch.randn(3, 2, 12)
    out = m.simnorm(x, 4).numpy()  # 3 simplices
    for simplex in range(3):
        members = np.exp(x.numpy()[..., simplex::3])
        assert np.allclose(out[..., simplex::3], members / members.sum(-1, keepdims=True), atol=1e-6)


def test_the_scale_moves_towards_the_range_between_the_percentiles_and_is_at_least_one():
    x = torch.randn(41) * 10
    low, high = np.percentile(x.numpy(), [5, 95])
    assert m.running_scale(torch.tensor(3.0), x, 0.25).item() == pytest.approx(0.75 * 3 + 0.25 * (high - low), rel=1e-5)
    assert m.running_scale(torch.tensor(3.0), torch.full((7,), 3.0), 0.5).item() == pytest.approx(2.0)
    assert not m.running_scale(torch.ones(()), x.requires_grad_(), 0.5).requires_grad


def test_a_pair_is_two_different_heads_and_every_pair_is_as_likely():
    noise = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(5, 5)
    for row in noise:
        a, b = m.sample_pair(row).sort().values
        counts[a, b] += 1
    assert counts.diagonal().sum() == 0 and counts[counts > 0].numel() == 10
    assert (counts[counts > 0] - 400).abs().max() < 5 * 400**0.5
    assert m.sample_pair(torch.randn(1)).tolist() == [0]


def test_the_exponential_by_squaring_is_numpys_as_far_as_bfloat16_can_tell():
    x = np.linspace(-30, 20, 5001, dtype=np.float32)
    found = m.exp_by_squaring(torch.tensor(x)).numpy() / np.exp(x.astype(np.float64)) - 1
    assert np.abs(found[np.abs(x) <= 10]).max() < 1e-4
    assert np.abs(found).max() < 0.02
    assert torch.equal(m.exp_by_squaring(torch.tensor([-1e30, -31.0])), m.exp_by_squaring(torch.tensor([-30.0, -30.0])))
