"""Compiled agents: the same results, CUDA graphs, and whole steps in one graph."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.core.reference import shake
from tests.core.small import CONFIGS, OURS, A, O, batches, losses, make
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import AGENTS, make_agent
from wmrl_ray.core.agents.base import COMPILE_OPTIONS, adam_state, adam_step
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import two_hot_loss


@pytest.fixture(params=OURS)
def name(request) -> str:
    return request.param


@pytest.mark.slow
def test_compiling_changes_no_result_beyond_rounding(name):
    data, eager, compiled = batches(name, 3), make(name), make(name, compile="default")
    for a, b in zip(losses(eager, data), losses(compiled, data), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    obs, first = torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    assert torch.allclose(eager.act(obs, None, first)[0], compiled.act(obs, None, first)[0], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_two_hot_loss_of_what_is_not_finite_is_nan(dtype):
    """It makes no index of it, neither in the loss nor in the gradient's kernel; an eager one's: test_math.py."""
    compiled = torch.compile(two_hot_loss, options=COMPILE_OPTIONS)
    logits = torch.zeros(2, 3, 101, dtype=dtype, requires_grad=True)
    loss = compiled(logits, torch.tensor([torch.nan, torch.inf, 2.0]), -10, 10)
    loss.sum().backward()
    assert loss.isnan().tolist() == logits.grad.isnan().any(-1).tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("name", ["tdmpc2", "iq_mpc"])
def test_returns_compiled_in_bfloat16_are_as_near_to_the_exact_ones(name):
    exact, eager, compiled = make(name), make(name, precision="bfloat16"), make(name, precision="bfloat16", compile="default")
    for agent in (exact, eager, compiled):
        shake(agent.model)
        agent.planned = agent.model if agent.low_precision is None else agent.low_precision.of(agent.model)
    rows, horizon = 300, exact.plan_config.horizon
    z, actions = exact.model.encode(torch.randn(rows, O)), torch.rand(rows, horizon, A) * 2 - 1
    noise, shared = torch.randn(rows, A), torch.randn(exact.shared_draws)
    with torch.no_grad():
        found = [agent.returns(agent.start(z), actions, noise, shared) for agent in (exact, eager, compiled)]
    by_rounding, by_compiling = ((returns - found[0]).abs().mean() for returns in found[1:])
    assert 0 < by_compiling <= by_rounding < 0.2 * found[0].std()


def compiled_losses(name: str) -> list[str]:
    return [function for function in AGENTS[name].compiled_functions if function.endswith("_loss")]


@pytest.mark.parametrize("name", [name for name in OURS if len(compiled_losses(name)) > 1])
def test_what_a_cuda_graph_returned_is_not_read_after_the_next_one(name, monkeypatch):
    """Without a GPU: what a loss function returned, its loss aside, is written over once another one has run."""
    plain, graphs, batch = make(name), make(name), batches(name, 1)[0]
    for agent in (plain, graphs):
        shake(agent.model)  # Why: of heads at zero nothing depends on the latents
        shake(agent.target or agent.model, seed=1)
    graphs.config = dataclasses.replace(graphs.config, compile="cuda_graphs")
    memory: dict[str, list[torch.Tensor]] = {function: [] for function in compiled_losses(name)}

    def in_graph_memory(function: str):
        eager = getattr(graphs, function)

        def placed(x: torch.Tensor) -> torch.Tensor:
            memory[function].append(x.clone())
            return memory[function][-1]

        def run(*args):
            loss, *rest = eager(*args)
            for tensor in (x for other in memory if other != function for x in memory[other]):
                tensor.data.zero_()  # Why data: autograd would not let a tensor change that it saved, a graph does
            places = {torch.Tensor: placed, Batch: lambda x: x.each(placed)}
            info = {key: placed(value) for key, value in rest.pop().items()}
            return loss, *(places[type(value)](value) for value in rest), info

        return run

    for function in memory:
        monkeypatch.setattr(graphs, function, in_graph_memory(function))
    assert losses(graphs, [batch]) == losses(plain, [batch])
    assert all(memory.values())
    assert plain.kept(batch)[0] is batch  # without CUDA graphs nothing is copied
    assert all(torch.equal(p, q) for p, q in zip(graphs.model.parameters(), plain.model.parameters(), strict=True))


@pytest.mark.gpu
def test_cuda_graphs_change_no_result_beyond_rounding(name):
    """On a GPU: `pytest -m gpu tests/core`."""
    if AGENTS[name].compiles_steps():
        pytest.skip("its whole steps are compiled, which CUDA graphs exclude")
    data = batches(name, 3)
    eager = make_agent(name, CONFIGS[name], O, A, device="cuda")
    graphs = make_agent(name, {**CONFIGS[name], "compile": "cuda_graphs"}, O, A, device="cuda")
    for a, b in zip(losses(eager, data), losses(graphs, data), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    obs, first = torch.randn(3, O, device="cuda"), torch.ones(3, dtype=torch.bool, device="cuda")
    assert torch.allclose(eager.act(obs, None, first)[0], graphs.act(obs, None, first)[0], atol=1e-3)


def test_cuda_graphs_on_a_cpu_are_refused():
    with pytest.raises(ConfigError, match="cuda_graphs"):
        make("tdmpc", compile="cuda_graphs")


@pytest.mark.parametrize("name", [name for name in OURS if AGENTS[name].compiles_steps()])
def test_cuda_graphs_of_whole_steps_are_refused(name):
    with pytest.raises(ConfigError, match="'cuda_graphs'.*use 'default'"):
        make(name, compile="cuda_graphs")


# -- whole steps in one graph: Adam's own, and what cannot be in it -----------------------------------------------------------


def test_the_compiled_steps_adam_is_that_of_torch():
    """Of two groups, with a learning rate that is a number and one that is a tensor and moves."""
    start = [torch.randn(3, 4), torch.randn(4), torch.randn(2, 2)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))

    def adam(params: list[nn.Parameter]) -> torch.optim.Adam:
        second = {"params": params[2:], "lr": torch.tensor(0.02), "betas": (0.8, 0.95), "eps": 0.1}
        return torch.optim.Adam([{"params": params[:2]}, second], lr=0.01, fused=True)

    a, b = adam(ours), adam(theirs)
    adam_state(a)
    for step in range(20):
        grads = [torch.randn_like(p) * 10 ** (step % 3 - 1) for p in start]
        for optimizer in (a, b):
            optimizer.param_groups[1]["lr"] = torch.tensor(0.02 * 0.9**step)
        adam_step(a, grads)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad
        b.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(p - p0, q - p0, rtol=1e-4, atol=2e-6)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a.state[p][key], b.state[q][key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}])
def test_another_adam_has_no_compiled_step(options):
    with pytest.raises(ConfigError, match=f"Adam with .*{next(iter(options))}.*use compile = 'off'"):
        adam_state(torch.optim.Adam([nn.Parameter(torch.zeros(2))], **options))
    with pytest.raises(ConfigError, match="not that of SGD"):
        adam_state(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))


@pytest.mark.parametrize("name", ["bc", "td3_bc"])
def test_compiled_steps_take_a_state_from_before_an_optimisers_first_step(name):
    agent = make(name, compile="default")
    agent.set_state(make(name, seed=3).get_state())
    for optimizer in agent.optimizers.values():
        assert all("exp_avg" in optimizer.state[p] for group in optimizer.param_groups for p in group["params"])


def test_only_whole_steps_change_torchs_settings_and_an_older_torch_is_named(monkeypatch):
    with torch._dynamo.config.patch(trace_autograd_ops=False):
        make("tdmpc", compile="default")
        make("bc")
        assert not torch._dynamo.config.trace_autograd_ops
        make("bc", compile="default")
        assert torch._dynamo.config.trace_autograd_ops
    monkeypatch.setattr(torch._dynamo, "config", SimpleNamespace())
    with pytest.raises(ConfigError, match=f"torch {re.escape(torch.__version__)} .*use compile = 'off'"):
        make("bc", compile="default")


def test_gradients_of_compiled_steps_cannot_be_averaged_over_learners():
    with pytest.raises(ConfigError, match="sync_grads.*BC|BC.*sync_grads"):
        make("bc", compile="default").sync_grads = lambda parameters: None
    seen = []
    for agent in (make("bc"), make("tdmpc", compile="default")):
        agent.sync_grads = seen.append
        assert agent.sync_grads is not None


@pytest.mark.slow
def test_compiled_n_plus_m_updates_equal_n_then_a_checkpoint_then_m(tmp_path):
    """Of IQL, whose learning rate is a tensor there."""
    data, whole, first = batches("iql", 6), make("iql", compile="default"), make("iql", compile="default")
    expected = losses(whole, data)[3:]
    losses(first, data[:3])
    checkpoint.save(tmp_path / "saved", {"agent": first.get_state()}, {})
    second = make("iql", seed=7, compile="default")
    second.set_state(checkpoint.load(tmp_path / "saved")[0]["agent"])
    assert losses(second, data[3:]) == expected and second.num_updates == 6
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    uncompiled = losses(make("iql"), data)[3:]
    assert any(a != b for a, b in zip(expected, uncompiled, strict=True)), "nothing was compiled"
