import pytest
import torch
import torch.nn.functional as F

from wmrl_ray.core import nets
from wmrl_ray.core.nets import Ensemble, Linear, Normalizer, critic_mlp, mlp, zero_last


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(("in_features", "out_features"), [(40, 30), (30, 40)])
def test_the_onednn_product_gives_torchs_values_and_gradients(monkeypatch, in_features, out_features):
    monkeypatch.setattr(nets, "ONEDNN", True)  # whatever this machine's processor
    torch.manual_seed(0)
    layer, x = Linear(in_features, out_features), torch.randn(2, 7, in_features, requires_grad=True)
    weight = torch.randn(2, 7, out_features)
    ours = torch.autograd.grad((layer(x) * weight).sum(), [x, layer.weight, layer.bias])
    theirs = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * weight).sum(), [x, layer.weight, layer.bias])
    assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elu_gives_torchs_values_and_gradients(dtype):
    x = torch.cat([torch.linspace(-100, 100, 2001), torch.linspace(-1e-3, 1e-3, 99)]).to(dtype).requires_grad_()
    x0 = x.detach().clone()
    y, expected = nets.ELU()(x), F.elu(x)
    tolerance = 1e-6 if dtype == torch.float32 else 8e-3
    assert y.dtype == dtype and torch.allclose(y, expected, atol=tolerance, rtol=tolerance)
    (ours,), (theirs,) = (torch.autograd.grad(out.sum(), x) for out in (y, expected))
    assert torch.allclose(ours, theirs, atol=tolerance)
    assert torch.equal(x.detach(), x0)
    assert nets.ELU()(torch.tensor([torch.nan, torch.inf, -torch.inf])).tolist()[1:] == [torch.inf, -1.0]
    assert nets.ELU()(torch.tensor([torch.nan])).isnan()


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
