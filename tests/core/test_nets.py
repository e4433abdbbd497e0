import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wmrl_ray.core import nets
from wmrl_ray.core.nets import Ensemble, Linear, Normalizer, StackedLinear, critic_mlp, mlp, stacked_mlp, zero_last


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


class Weights(TorchDispatchMode):
    """Collects what oneDNN is given as weights."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.mkldnn._linear_pointwise:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


LAYERS = {
    "Linear": lambda n, m: Linear(n, m),
    "LinearReLU": lambda n, m: nets.LinearReLU(n, m),
    "StackedLinear": lambda n, m: StackedLinear(2, n, m),
}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("sizes", [(40, 30), (30, 40)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, lambda y: y[..., :1].sum()])
def test_onednn_gets_no_weight_that_it_has_only_a_reference_kernel_for(monkeypatch, sizes, layer, reduce):
    """Whose gradient is one number expanded, and whose input is a slice: its rows or columns lie side by side all the same."""
    made, wide = LAYERS[layer](*sizes), torch.randn(8, 2 * sizes[0])
    results = []
    for onednn in (True, False):
        monkeypatch.setattr(nets, "ONEDNN", onednn)  # whatever this machine's processor
        x = wide.clone().requires_grad_()
        with Weights() as given:
            results.append(torch.autograd.grad(reduce(made(x[:, : sizes[0]])), [x, *made.parameters()]))
        assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in given.found)
        assert len(given.found) == {"Linear": 3, "LinearReLU": 3, "StackedLinear": 6}[layer] * onednn + (
            layer == "LinearReLU" and not onednn
        )
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


CPUINFO = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 17\n\nprocessor\t: 1\nvendor_id\t: other\n"


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (CPUINFO.format("AuthenticAMD", 25), 25),
        (CPUINFO.format("AuthenticAMD", 26), 26),
        (CPUINFO.format("GenuineIntel", 6), None),
        ("Processor\t: AArch64\nCPU implementer\t: 0x41\n", None),
        (None, None),
    ],
)
def test_the_products_route_is_that_of_the_processors_family(monkeypatch, text, family):
    """The same in every process of a machine: of AMD's Zen 5 oneDNN's, of Zen 4, Intel and what nobody measured torch's."""

    def read_text(path):
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(nets.Path, "read_text", read_text)
    assert nets.amd_family() == family
    assert {26} == nets.FASTER_WITH_ONEDNN


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


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [nets.ELU, nets.ReLU])
def test_a_compiled_network_gives_the_same_values_and_gradients(monkeypatch, precision, activation):
    """Its biases join the activations, its last column's product the last activation, and its activations are not torch's."""
    monkeypatch.setattr(nets, "ONEDNN", False)  # whatever this machine's processor
    torch.manual_seed(0)
    network, x = mlp(5, [40], 1, activation), torch.randn(7, 5, requires_grad=True)
    torch.nn.init.normal_(network[-1].bias)  # type: ignore[arg-type]
    inputs = [x, *network.parameters()]
    compiled = torch.compile(lambda x: network(x))

    def results(function):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = function(x)
            with torch.no_grad():
                alone = function(x)
        return [alone.float(), y.detach().float(), *torch.autograd.grad(y.float().square().sum(), inputs)]

    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    for ours, expected in zip(results(compiled), results(network), strict=True):
        assert ours.shape == expected.shape and torch.allclose(ours, expected, atol=tolerance, rtol=tolerance)


def test_linear_runs_in_bfloat16_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(40, 30)(torch.randn(3, 40)).dtype == torch.bfloat16


def test_an_ensemble_puts_its_members_first_and_drops_the_scalar_axis():
    ensemble = Ensemble(critic_mlp(5, 8) for _ in range(2))
    x = torch.randn(4, 3, 5)
    out = ensemble(x)
    assert out.shape == (2, 4, 3) and torch.equal(out[1], ensemble[1](x)[..., 0])


def test_a_stacked_network_is_its_members_side_by_side():
    torch.manual_seed(0)
    stack, x = stacked_mlp(2, 5, [8, 9], 3), torch.randn(4, 5)
    members = [mlp(5, [8, 9], 3, nn.ReLU) for _ in range(2)]
    for i, member in enumerate(members):
        for ours, theirs in zip(stack, member, strict=True):
            if isinstance(ours, StackedLinear):
                theirs.load_state_dict({"weight": ours.weight[i].t(), "bias": ours.bias[i, 0]})
    out = stack(x)
    assert out.shape == (2, 4, 3)
    assert torch.allclose(out, torch.stack([member(x) for member in members]), atol=1e-6)
    assert torch.allclose(stack(x.unsqueeze(0)), out[:1], atol=1e-6)  # one input asks the first member only


def test_stacked_members_start_apart_and_as_nn_linear_does():
    layer = StackedLinear(2, 400, 300)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    for p in (layer.weight, layer.bias):
        assert p.abs().max() <= 0.05 and p.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.1)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("given", [(7, 40), (2, 7, 40), (1, 7, 40)])
def test_stacked_layers_through_onednn_give_the_same_values_and_gradients(monkeypatch, given):
    torch.manual_seed(0)
    layer, x = StackedLinear(2, 40, 30), torch.randn(given, requires_grad=True)
    results = []
    for onednn in (True, False):
        monkeypatch.setattr(nets, "ONEDNN", onednn)  # whatever this machine's processor
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-3)


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


@pytest.mark.parametrize("activation", [nets.ReLU, nn.ReLU])
def test_a_compiled_relu_keeps_no_bools_for_its_gradient(activation):
    """Torch's own does, and kernels that mix them with bfloat16 are slow."""
    network, kept = mlp(5, [32, 32], 1, activation), []
    compiled = torch.compile(lambda x: network(x))

    def pack(tensor):
        kept.append(tensor.dtype)
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compiled(torch.randn(64, 5, requires_grad=True))
    assert (torch.bool in kept) == (activation is nn.ReLU)
