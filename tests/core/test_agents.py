"""What holds for every agent."""

import copy
import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.core.reference import random_batch, shake
from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import AGENTS, make_agent
from wmrl_ray.core.agents.base import adam_state, adam_step
from wmrl_ray.core.batch import Batch

O, A = 5, 6  # noqa: E741
MODEL = {"latent_dim": 8, "encoder_dim": 32, "hidden_dim": 32}
CONFIGS = {
    "bc": {"hidden_dim": 32},
    "iql": {"hidden_dim": 32, "lr_steps": 10},
    "td3_bc": {"hidden_dim": 32},
    "awac": {"hidden_dim": 32, "temperature": 1.0},
    "cql": {"hidden_dim": 32, "actor_layers": 2, "critic_layers": 2, "num_actions": 3},
    "dt": {"embedding_dim": 16, "num_layers": 2, "sequence": 4, "episode_len": 20},
    "tdmpc": {"model": MODEL, "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2}},
    "tdmpc2": {
        "model": {"latent_dim": 16, "encoder_dim": 32, "mlp_dim": 32, "simnorm_dim": 4},
        "episode_len": 500,
        "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2},
    },
    "iql_tdmpc": {"model": MODEL, "plan": {"horizon": 3, "num_samples": 0, "num_policy": 32, "num_elites": 8, "iterations": 1}},
    "manager": {
        "model": MODEL,
        "plan": {"horizon": 2, "num_samples": 0, "num_policy": 32, "num_elites": 8, "iterations": 1},
        "skip": 2,
    },
    "iq_sac": {"hidden_dim": 32},
    "iq_mpc": {
        "model": {"latent_dim": 16, "encoder_dim": 32, "mlp_dim": 32, "simnorm_dim": 4},
        "episode_len": 500,
        "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2},
    },
}


# Why not all of AGENTS: other tests' files put fakes of their own there when they are imported
OURS = [name for name, agent in AGENTS.items() if agent.__module__.startswith("wmrl_ray.")]


@pytest.fixture(params=OURS)
def name(request) -> str:
    return request.param


def make(name: str, seed: int = 0, **config):
    return make_agent(name, {**CONFIGS[name], **config}, O, A, seed=seed)


def batches(name: str, count: int) -> list[Batch]:
    return [random_batch(4, make(name).config.window, O, A, seed=i) for i in range(count)]


def losses(agent, data) -> list[dict[str, float]]:
    return [{k: v.item() for k, v in agent.update(batch).items()} for batch in data]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(name):
    data = batches(name, 3)
    assert losses(make(name), data) == losses(make(name), data) != losses(make(name, seed=1), data)


def test_building_an_agent_leaves_the_global_generator_alone(name):
    before = torch.random.get_rng_state()
    make(name)
    assert torch.equal(before, torch.random.get_rng_state())


def test_acting_does_not_change_what_is_learned(name):
    data, a, b = batches(name, 4), make(name), make(name)
    first = losses(a, data[:2])
    assert first == losses(b, data[:2])
    a.act(torch.randn(3, O), None, torch.ones(3, dtype=torch.bool))
    assert losses(a, data[2:]) == losses(b, data[2:])


def test_what_lies_after_an_episodes_end_changes_nothing(name):
    H = max(3, make(name).config.window)
    batch, end = random_batch(4, H, O, A), torch.tensor([1, 2, H, H])
    valid = torch.arange(H) < end[:, None]
    terminated = torch.arange(H) == torch.where(torch.arange(4) < 2, end - 1, H)[:, None]
    batch = dataclasses.replace(batch, valid=valid, terminated=terminated)
    after = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~valid], 1)[..., None]  # obs[:, t+1] follows action[:, t]
    other = dataclasses.replace(
        batch,
        # A Manager finds the terminal observation where it repeats, which a Batch promises
        obs=batch.obs if name == "manager" else torch.where(after, 3.0, batch.obs),
        action=torch.where(valid[..., None], batch.action, 0.5),
        reward=torch.where(valid, batch.reward, -7.0),
        return_to_go=torch.where(valid, batch.return_to_go, 3.0),
    )
    a, b = make(name), make(name)
    for agent in (a, b):
        shake(agent.model)
        shake(agent.target or agent.model, seed=1)
    assert losses(a, [batch, batch]) == losses(b, [other, other])


def test_n_plus_m_updates_equal_n_then_restore_then_m(name):
    data, whole, first = batches(name, 6), make(name), make(name)
    expected = losses(whole, data)[3:]
    losses(first, data[:3])
    state = copy.deepcopy(first.get_state())
    second = make(name, seed=7)
    second.set_state(state)
    assert losses(second, data[3:]) == expected and second.num_updates == 6
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_stays_close_to_float32(name):
    data = batches(name, 1)
    agents = [make(name), make(name, precision="bfloat16")]
    for agent in agents:
        shake(agent.model)  # heads that predict zero would hide the networks behind them
    exact, rough = (losses(agent, data)[0] for agent in agents)
    for key in exact:
        if key.startswith("loss/"):
            assert rough[key] == pytest.approx(exact[key], rel=0.05, abs=0.02), key
    assert all(p.dtype == torch.float32 for p in make(name, precision="bfloat16").model.parameters())


@pytest.mark.slow
def test_compiling_changes_no_result_beyond_rounding(name):
    data, eager, compiled = batches(name, 3), make(name), make(name, compile="default")
    for a, b in zip(losses(eager, data), losses(compiled, data), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    obs, first = torch.randn(3, O), torch.ones(3, dtype=torch.bool)
    assert torch.allclose(eager.act(obs, None, first)[0], compiled.act(obs, None, first)[0], atol=1e-3)


@pytest.mark.parametrize("name", ["bc", "iql", "td3_bc", "awac"])
def test_observations_are_normalised_by_the_statistics_it_is_given(name):
    agent = make(name)
    obs, mean, std = torch.randn(3, O), torch.arange(O, dtype=torch.float32), torch.full((O,), 2.0)
    first = torch.ones(3, dtype=torch.bool)
    plain = agent.act(obs, None, first)[0]
    agent.set_obs_stats(mean, std)
    assert torch.allclose(agent.act(obs * (std + 1e-3) + mean, None, first)[0], plain, atol=1e-5)


def test_an_observation_that_never_changes_does_not_divide_by_zero():
    agent = make("bc")
    agent.set_obs_stats(torch.zeros(O), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in losses(agent, batches("bc", 1)))


@pytest.mark.parametrize("name", ["iql", "td3_bc", "awac"])
def test_what_is_learned_depends_on_normalised_observations_only(name):
    mean, std = torch.arange(O, dtype=torch.float32), torch.full((O,), 2.0)
    plain, normalising = make(name), make(name)
    normalising.set_obs_stats(mean, std)
    for batch in batches(name, 2):
        moved = dataclasses.replace(batch, obs=batch.obs * (std + 1e-3) + mean)
        assert losses(normalising, [moved])[0] == pytest.approx(losses(plain, [batch])[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["iql", "td3_bc", "awac", "cql", "tdmpc", "iql_tdmpc", "manager"])
def test_rewards_are_scaled_and_then_shifted(name):
    plain, scaling, batch = make(name), make(name, reward_scale=2.0, reward_shift=-1.0), batches(name, 1)[0]
    changed = dataclasses.replace(batch, reward=2 * batch.reward - 1)
    assert losses(plain, [changed] * 2) == losses(scaling, [batch] * 2) != losses(make(name), [batch] * 2)


@pytest.mark.parametrize("name", ["iql", "td3_bc", "awac"])
def test_a_critics_target_after_a_terminal_step_is_the_reward(name):
    agent, batch = make(name), batches(name, 1)[0]
    shake(agent.model)
    shake(agent.target, seed=1)
    ended = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
    target = agent.update(ended)["q/target_mean"].item()
    assert target == pytest.approx(batch.reward.mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["iql", "td3_bc", "awac"])
def test_targets_follow_by_tau_and_take_no_gradient(name):
    agent = make(name, tau=0.25)
    pairs = [(agent.target.critic, agent.model.critic)] if name == "td3_bc" else [(agent.target, agent.model.critic)]
    pairs += [(agent.target.actor, agent.model.actor)] if name == "td3_bc" else []
    for target, _ in pairs:
        shake(target)
    before = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    losses(agent, batches(name, 1 if name != "td3_bc" else 2))
    for (target, source), old in zip(pairs, before, strict=True):
        for p, q, q0 in zip(source.parameters(), target.parameters(), old, strict=True):
            assert torch.allclose(q, 0.75 * q0 + 0.25 * p, atol=1e-6) and q.grad is None


def test_a_state_of_another_kind_of_device_keeps_the_agents_own_streams(name):
    agent, state = make(name), make(name, seed=3).get_state()
    before = agent.update_generator.get_state()
    state["generators"] = {
        "update": torch.zeros(16, dtype=torch.uint8),
        "act": torch.zeros(16, dtype=torch.uint8),
    }  # a GPU's size
    agent.set_state(state)
    assert torch.equal(agent.update_generator.get_state(), before)


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("tdmpc", {"model": {"num_critics": 0}}, "num_critics = 0"),
        ("tdmpc", {"plan": {"min_std": 3.0}}, "min_std = 3.0"),
        ("tdmpc", {"reward_scale": 0.0}, "reward_scale = 0.0"),
        ("tdmpc2", {"model": {"num_bins": 1}}, "num_bins = 1"),
        ("tdmpc2", {"episode_len": 0}, "episode_len = 0"),
        ("tdmpc2", {"entropy": "tanh"}, "entropy = 'tanh'"),
        ("manager", {"reward_scale": -1.0}, "reward_scale = -1.0"),
        ("tdmpc", {"plan": {"temperature": -1.0}}, "temperature = -1.0"),
        ("iql_tdmpc", {"log_std_min": 3.0}, "log_std_min = 3.0"),
        ("iql_tdmpc", {"beta": -1.0}, "beta = -1.0"),
        ("bc", {"lr": -1.0}, "lr = -1.0"),
        ("iql", {"lr_steps": 0}, "lr_steps = 0"),
        ("td3_bc", {"policy_every": 0}, "policy_every = 0"),
        ("awac", {"temperature": 0.0}, "temperature = 0.0"),
        ("cql", {"critic_layers": 0}, "critic_layers = 0"),
        ("cql", {"log_std_min": 3.0}, "log_std_min = 3.0"),
        ("dt", {"num_heads": 3}, "num_heads = 3"),
        ("dt", {"dropout": 1.0}, "dropout = 1.0"),
        ("iq_sac", {"alpha": 0.0}, "alpha = 0.0"),
        ("iq_sac", {"gamma": 1.0}, "gamma = 1.0"),
        ("iq_sac", {"num_critics": 0}, "num_critics = 0"),
        ("iq_mpc", {"model": {"num_bins": 101}}, "num_bins = 101"),
        ("iq_mpc", {"gamma": 1.0}, "gamma = 1.0"),
        ("iq_mpc", {"penalty_coef": -1.0}, "penalty_coef = -1.0"),
        ("iq_mpc", {"entropy_coef": -1.0}, "entropy_coef = -1.0"),
        ("tdmpc", {"grad_clip": -1.0}, "grad_clip = -1.0"),
        ("tdmpc", {"policy_std": -0.1}, "policy_std = -0.1"),
        ("tdmpc", {"plan": {"num_policy": -1}}, "num_policy = -1; neither may be negative"),
        ("iql_tdmpc", {"consistency_coef": -1.0}, "consistency_coef = -1.0"),
        ("iql_tdmpc", {"loss_clip": 0.0}, "loss_clip = 0.0"),
        ("iql_tdmpc", {"tau": 0.0}, "tau = 0.0"),
        ("bc", {"grad_clip": -1.0}, "grad_clip = -1.0"),
        ("bc", {"lr": float("inf")}, "lr = inf; it must be a finite number"),
        ("iql", {"beta": "nan"}, "beta = nan"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(name, values, named):
    with pytest.raises(ConfigError, match=named):
        make_agent(name, values, O, A)


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


def test_bc_is_the_mean_squared_error_in_numpy():
    agent, batch = make("bc"), random_batch(4, 1, O, A)
    prediction = agent.model(batch.obs[:, 0]).detach().numpy()
    expected = ((prediction - batch.action[:, 0].numpy()) ** 2).mean()
    assert agent.update(batch)["loss/actor"].item() == pytest.approx(expected, rel=1e-5)
