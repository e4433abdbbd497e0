"""What holds for every agent."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.reference import random_batch, shake
from tests.core.small import CONFIGS, MODEL, OURS, A, O, batches, losses, make
from wmrl_ray.config import ConfigError
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.batch import Batch


@pytest.fixture(params=OURS)
def name(request) -> str:
    return request.param


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(name):
    data = batches(name, 3)
    assert losses(make(name), data) == losses(make(name), data) != losses(make(name, seed=1), data)


def test_an_update_counts_as_one(name):
    agent = make(name)
    for done, batch in enumerate(batches(name, 3), 1):
        agent.update(batch)
        assert agent.num_updates == done


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


def test_whichever_module_is_not_finite_the_metrics_say_so(name):
    """`train.finite_metrics` then ends the run. The second update's: what is shared reaches a loss by then, or never."""
    data = batches(name, 2)
    plain = make(name)
    modules = [
        (part, child) for part in ("model", "target") for child, _ in (getattr(plain, part) or plain.model).named_children()
    ]
    for value in (torch.nan, torch.inf):
        for part, child in dict.fromkeys(modules):
            agent = make(name)
            parameters = list((getattr(agent, part) or agent.model).get_submodule(child).parameters())
            for p in parameters:
                p.data.fill_(value)
            assert not parameters or not all(math.isfinite(v) for v in losses(agent, data)[-1].values()), (part, child, value)


SYNCHRONISES = {"nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal", "item"}


class Synchronisations(TorchDispatchMode):
    """The operations after `moved` for which a GPU's host would wait: what they return depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.found = False, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket is torch.ops.aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])
        if self.moved and (by_mask or func.overloadpacket.__name__ in SYNCHRONISES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_update_never_waits_for_the_device(name, monkeypatch):
    """From when the batch is there: that is when a GPU has work to do."""
    agent, (batch,) = make(name), batches(name, 1)
    move, seen = Batch.to, Synchronisations()

    def to(self, device):
        seen.moved = True
        return move(self, device)

    monkeypatch.setattr(Batch, "to", to)
    with seen:
        agent.update(batch)
    assert seen.moved and not seen.found


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


@pytest.mark.parametrize("name", ["bc", "iql", "td3_bc", "awac", "cql", "dt", "tdmpc", "iql_tdmpc", "manager"])
def test_what_is_learned_depends_on_normalised_observations_only(name):
    mean, std = torch.arange(O, dtype=torch.float32), torch.full((O,), 2.0)
    settings = {"model": {**MODEL, "normalize_obs": True}} if "model" in CONFIGS[name] else {}
    plain, normalising = make(name, **settings), make(name, **settings)
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


def test_bc_is_the_mean_squared_error_in_numpy():
    agent, batch = make("bc"), random_batch(4, 1, O, A)
    prediction = agent.model(batch.obs[:, 0]).detach().numpy()
    expected = ((prediction - batch.action[:, 0].numpy()) ** 2).mean()
    assert agent.update(batch)["loss/actor"].item() == pytest.approx(expected, rel=1e-5)
