import torch
import torch.nn.functional as F

from wmrl_ray.core.nets import Ensemble, Linear, Normalizer, critic_mlp, mlp, zero_last


def test_linear_gives_torchs_values_and_gradients():
    torch.manual_seed(0)
    layer, x = Linear(40, 30), torch.randn(2, 7, 40, requires_grad=True)
    weight = torch.randn(2, 7, 30)
    ours = torch.autograd.grad((layer(x) * weight).sum(), [x, layer.weight, layer.bias])
    theirs = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * weight).sum(), [x, layer.weight, layer.bias])
    assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


def test_linear_runs_in_bfloat16_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(40, 30)(torch.randn(3, 40)).dtype == torch.bfloat16


def test_an_ensemble_puts_its_members_first_and_drops_the_scalar_axis():
    ensemble = Ensemble(critic_mlp(5, 8) for _ in range(2))
    x = torch.randn(4, 3, 5)
    out = ensemble(x)
    assert out.shape == (2, 4, 3) and torch.equal(out[1], ensemble[1](x)[..., 0])


def test_a_zeroed_head_predicts_zero():
    net = mlp(5, [8], 2)
    zero_last(net)
    assert torch.equal(net(torch.randn(3, 5)), torch.zeros(3, 2))


def test_the_normalizer_is_the_identity_until_it_gets_statistics():
    normalizer, x = Normalizer(2), torch.tensor([[3.0, 4.0]])
    assert torch.equal(normalizer(x), x)
    normalizer.mean.copy_(torch.tensor([1.0, 2.0]))
    normalizer.std.copy_(torch.tensor([2.0, 4.0]))
    assert torch.equal(normalizer(x), torch.tensor([[1.0, 0.5]]))
