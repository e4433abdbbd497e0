"""The model of TD-MPC2 and its blocks, layer by layer in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.core.reference import array, shake
from wmrl_ray.config import ConfigError
from wmrl_ray.core.blocks import (
    HeadEnsemble,
    Mish,
    NormedLinear,
    PixelEncoder,
    SimNorm,
    dropout_mask,
    layer_norm_once,
    mish_by_exp,
    random_shift,
    rounded_once,
)
from wmrl_ray.core.models.simplicial import SimplicialModel, SimplicialModelConfig, TargetCritic
from wmrl_ray.core.nets import stacked_product

B, H, O, A, Z = 2, 3, 5, 6, 8  # noqa: E741
SMALL = SimplicialModelConfig(latent_dim=Z, encoder_dim=16, mlp_dim=12, num_critics=5, simnorm_dim=4, num_bins=11)


def make(config=SMALL, obs_dim=O, **options) -> SimplicialModel:
    model = SimplicialModel(config, obs_dim, A, **options)
    shake(model)
    return model


# -- numpy --------------------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def simplices(x, group):
    parts = np.exp(x.reshape(*x.shape[:-1], group, -1))
    return (parts / parts.sum(-2, keepdims=True)).reshape(x.shape)


def apply_normed(network: nn.Sequential, x):
    for layer in network:
        if isinstance(layer, NormedLinear):
            x = x @ array(layer.linear.weight).T + array(layer.linear.bias)
            x = layer_norm(x, array(layer.norm.weight), array(layer.norm.bias))
            x = simplices(x, layer.activation.group) if isinstance(layer.activation, SimNorm) else mish(x)
        else:
            x = x @ array(layer.weight).T + array(layer.bias)
    return x


def apply_head(critic: HeadEnsemble, head: int, x, mask=None):
    for layer in range(len(critic.weights)):
        x = x @ array(critic.weights[layer])[head] + array(critic.biases[layer])[head]
        if layer < len(critic.weights) - 1:
            x = x if mask is None or layer > 0 else x * mask
            x = mish(layer_norm(x, array(critic.scales[layer])[head], array(critic.shifts[layer])[head]))
    return x


def decoded(logits, low=-10.0, high=10.0):
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    mean = (probs / probs.sum(-1, keepdims=True)) @ np.linspace(low, high, logits.shape[-1])
    return np.sign(mean) * np.expm1(np.abs(mean))


# -- the model ----------------------------------------------------------------------------------------------------------------


def test_encoder_dynamics_reward_and_policy_are_the_papers_in_numpy():
    model, obs, action = make(), torch.randn(B, O), torch.rand(B, A)
    z = apply_normed(model.encoder, array(obs))
    za = np.concatenate([z, array(action)], -1)
    mean, raw = np.split(apply_normed(model.actor, z), 2, -1)
    encoded = model.encode(obs)
    assert np.allclose(array(encoded), z, atol=1e-5) and encoded.view(B, 4, 2).sum(1).allclose(torch.ones(B, 2))
    assert np.allclose(array(model.next(encoded, action)), apply_normed(model.dynamics, za), atol=1e-5)
    assert np.allclose(array(model.reward(encoded, action)), decoded(apply_normed(model.reward_head, za)), rtol=1e-4, atol=1e-5)
    assert np.allclose(array(model.policy(encoded)[0]), mean, atol=1e-5)
    assert np.allclose(array(model.policy(encoded)[1]), -10 + 6 * (np.tanh(raw) + 1), atol=1e-5)


def test_only_the_chosen_heads_are_computed_and_they_are_those_of_the_whole_ensemble():
    model, z, action = make(), torch.randn(B, H, Z), torch.rand(B, H, A)
    za = np.concatenate([array(z), array(action)], -1)
    every, some = model.q(z, action), model.q(z, action, torch.tensor([3, 1]))
    assert every.shape == (5, B, H) and some.shape == (2, B, H)
    for head in range(5):
        assert np.allclose(array(every[head]), decoded(apply_head(model.critic, head, za)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(some, every[[3, 1]], atol=1e-5)
    assert model.q_logits(z, action).shape == (5, B, H, 11)


def test_a_mask_drops_features_of_the_critics_first_layer():
    model, za = make(), torch.randn(B, Z + A)
    mask = torch.randint(0, 2, (2, B, 12)).float() * 2
    out = model.critic(za, torch.tensor([4, 0]), mask)
    for i, head in enumerate((4, 0)):
        assert np.allclose(array(out[i]), apply_head(model.critic, head, array(za), array(mask[i])), atol=1e-4)


def test_mish_can_be_differentiated_twice():
    """As a gradient penalty does."""
    found = []
    for mish_of, dtype in ((Mish(), torch.float32), (torch.nn.functional.mish, torch.float64)):
        x = torch.linspace(-6, 6, 50, dtype=dtype, requires_grad=True)
        (slope,) = torch.autograd.grad(mish_of(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        found.append((slope.detach().double(), second.double()))
    for ours, torchs in zip(*found, strict=True):
        assert torch.allclose(ours, torchs, atol=1e-5)


def test_mish_and_its_gradient_are_torchs_over_the_whole_range():
    x = torch.cat([torch.linspace(-100, 100, 2001), torch.tensor([-1e30, 1e30, 0.0])]).requires_grad_()
    weight = torch.randn(len(x))
    expected = torch.nn.functional.mish(x.double())
    (gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    for mish_of in (Mish(), lambda x: mish_by_exp(x)):
        out = mish_of(x)
        assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.allclose(torch.autograd.grad((out * weight).sum(), x)[0], gradient, rtol=1e-4, atol=1e-6)


def test_a_rollout_follows_the_dynamics_from_the_first_latent():
    model, z, action = make(), torch.randn(B, Z), torch.rand(B, H, A)
    zs = model.rollout(z, action)
    assert zs.shape == (B, H + 1, Z) and torch.equal(zs[:, 0], z)
    for t in range(H):
        assert torch.allclose(zs[:, t + 1], model.next(zs[:, t], action[:, t]), atol=1e-6)


def test_every_reward_and_value_is_zero_at_first_and_weights_are_normal_with_a_spread_of_a_fiftieth():
    model = SimplicialModel(SimplicialModelConfig(), 24, 6)
    z, action = torch.rand(B, 512), torch.rand(B, 6)
    assert model.reward(z, action).abs().max() < 1e-6 and model.q(z, action).abs().max() < 1e-6
    for weight in (model.get_parameter("dynamics.0.linear.weight"), *model.critic.weights[:-1]):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05) and abs(weight.mean().item()) < 1e-3
    assert all(bias.abs().max() == 0 for bias in (model.get_parameter("actor.0.linear.bias"), *model.critic.biases))
    assert sum(p.numel() for p in model.parameters()) == 4_960_618  # as the public code


def test_without_a_reward_head_and_with_one_bin_heads_are_plain_numbers():
    config = SimplicialModelConfig(latent_dim=Z, encoder_dim=16, mlp_dim=12, simnorm_dim=4, num_bins=1)
    model = make(config, with_reward=False)
    z, action = torch.randn(B, Z), torch.rand(B, A)
    assert model.reward_head is None and model.q_logits(z, action).shape == (5, B, 1)
    za = np.concatenate([array(z), array(action)], -1)
    assert np.allclose(array(model.q(z, action)[2]), apply_head(model.critic, 2, za)[:, 0], atol=1e-5)
    with pytest.raises(AssertionError):
        model.reward(z, action)


def test_target_critics_are_the_models_own_until_either_moves():
    model, z, action = make(), torch.randn(B, Z), torch.rand(B, A)
    target = TargetCritic(model)
    assert torch.equal(target.q(z, action), model.q(z, action))
    before = target.q(z, action)
    shake(model, seed=1)
    assert torch.equal(target.q(z, action), before)
    assert target.q(z, action, torch.tensor([0, 2])).shape == (2, B)


# -- dropout and images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_a_dropout_mask_drops_its_share_everywhere_alike_and_independently(rate):
    mask = dropout_mask((50, 40, 100), rate, torch.Generator().manual_seed(0))
    dropped = (mask == 0).double()
    assert torch.equal(mask.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    spread = (rate * (1 - rate)) ** 0.5
    assert dropped.mean().item() == pytest.approx(rate, abs=4 * spread / 200_000**0.5)
    by_place = dropped.view(-1, 100).mean(0)  # 2,000 draws each
    assert (by_place - rate).abs().max() < 5 * spread / 2000**0.5
    flat = dropped.flatten() - rate
    assert abs((flat[1:] * flat[:-1]).mean().item()) < 5 * spread**2 / 200_000**0.5  # neighbours are uncorrelated


@pytest.mark.parametrize("activation", [None, SimNorm(8)])
def test_what_is_compiled_in_bfloat16_is_the_layer_rounded_less_often(monkeypatch, activation):
    layer, x = NormedLinear(12, 32, activation), torch.randn(64, 12)
    for parameter in (layer.linear.bias, layer.norm.weight, layer.norm.bias):
        torch.nn.init.normal_(parameter)
    exact = layer(x)
    layer.bfloat16()
    rounded = layer(x.bfloat16())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    in_float = layer(x.bfloat16()), layer.finish(layer.linear(x.bfloat16()))
    for compiled in in_float:
        assert compiled.dtype == rounded.dtype == torch.bfloat16
        assert torch.allclose(compiled.float(), exact, atol=0.1, rtol=0.05)
        assert (compiled.float() - exact).abs().mean() < 0.95 * (rounded.float() - exact).abs().mean()


def test_only_kernels_of_a_cpu_for_weights_in_bfloat16_compute_in_float_between_products(monkeypatch):
    weight = torch.ones(1).bfloat16()
    assert not rounded_once(weight, weight)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert rounded_once(weight, weight) and not rounded_once(weight, weight.float())
    assert not rounded_once(torch.ones(1, device="meta"), weight)


def test_layer_norm_once_is_layer_norm():
    x, scale, shift = torch.randn(3, 7, 24) * 0.1 + 3, torch.randn(24), torch.randn(24)
    expected = torch.nn.functional.layer_norm(x, (24,), scale, shift, 1e-3)
    assert torch.allclose(layer_norm_once(x, scale, shift, 1e-3), expected, atol=1e-5)


def test_heads_that_are_compiled_in_bfloat16_are_nearer_to_the_exact_ones(monkeypatch):
    heads, x = HeadEnsemble(3, 12, [32, 32], 5), torch.randn(64, 12)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    exact = heads(x)
    heads.bfloat16()
    rounded = heads(x.bfloat16())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = heads(x.bfloat16())
    assert compiled.dtype == rounded.dtype == torch.bfloat16 and not torch.equal(compiled, rounded)
    assert (compiled.float() - exact).abs().mean() < (rounded.float() - exact).abs().mean() < 0.1


def test_a_compiled_stacked_product_has_its_bias(monkeypatch):
    x, weight, bias = torch.randn(2, 5, 3), torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    expected = stacked_product(x, weight, bias)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(stacked_product(x, weight, bias), expected, atol=1e-6)


def test_dropout_masks_are_their_generators():
    a, b, c = (dropout_mask((7, 500), 0.1, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_images_are_shifted_by_whole_pixels_and_the_border_repeats():
    image = torch.arange(2 * 5 * 5, dtype=torch.uint8).view(1, 2, 5, 5)
    moved = random_shift(image, torch.tensor([[2, -1]]), 3)
    padded = np.pad(image[0].numpy(), ((0, 0), (3, 3), (3, 3)), mode="edge")
    assert moved.dtype == torch.uint8
    assert np.array_equal(moved[0].numpy(), padded[:, 3 + 2 : 3 + 2 + 5, 3 - 1 : 3 - 1 + 5])


def test_each_image_of_a_batch_has_its_own_shift():
    images = torch.randint(0, 255, (B, H, 3, 8, 8), dtype=torch.uint8)
    offset = torch.randint(-3, 4, (B, H, 2))
    moved = random_shift(images, offset, 3)
    for b in range(B):
        for t in range(H):
            assert torch.equal(moved[b, t], random_shift(images[b, t], offset[b, t], 3))
    assert torch.equal(random_shift(images, torch.zeros(B, H, 2, dtype=torch.long), 3), images)


def test_pixels_become_latents_on_simplices():
    model = SimplicialModel(SimplicialModelConfig(mlp_dim=16, encoder_dim=16), (9, 64, 64), A)
    obs = torch.randint(0, 255, (B, H, 9, 64, 64), dtype=torch.uint8)
    z = model.encode(obs)
    assert z.shape == (B, H, 512) and torch.allclose(z.view(B, H, 8, 64).sum(-2), torch.ones(B, H, 64))
    assert isinstance(model.encoder, PixelEncoder)
    maps = array(model.encoder.layers(obs.view(-1, 9, 64, 64).float() / 255 - 0.5)).reshape(
        B * H, 64, 8
    )  # 8 places of a channel
    expected = np.exp(maps) / np.exp(maps).sum(-1, keepdims=True)
    assert np.allclose(array(z).reshape(B * H, 8, 64), expected.transpose(0, 2, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "obs_dim", "named"),
    [
        ({"latent_dim": 30}, O, "latent_dim = 30.*simnorm_dim = 8"),
        ({"dropout": 1.0}, O, r"dropout = 1\.0"),
        ({"num_bins": 0}, O, "num_bins = 0"),
        ({"vmin": 10.0}, O, r"vmin = 10\.0"),
        ({}, (3, 84, 84), "84 x 84"),
        ({"num_channels": 16}, (3, 64, 64), "latent_dim = 512.*256"),
    ],
)
def test_an_impossible_model_is_refused_by_name(values, obs_dim, named):
    with pytest.raises(ConfigError, match=named):
        SimplicialModel(SimplicialModelConfig(**values), obs_dim, A)
