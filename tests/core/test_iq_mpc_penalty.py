"""IQ-MPC's gradient penalty: its value and gradients, both its forms, and the pairs that an update takes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.core.reference import array, random_batch
from tests.core.test_iq_mpc import BEHAVIOUR, EXPERT, SMALL, A, B, H, O, Q, Z, make, over_rollout, rows
from tests.core.test_simplicial import apply_head
from wmrl_ray.core import nets
from wmrl_ray.core.agents import make_agent

FORMS = {"critic": lambda critic_coef, penalty_coef: critic_coef * penalty_coef, "loss": lambda _, penalty_coef: penalty_coef}


def penalty_in_numpy(critic, zs, action, valid, expert, behaviour, mix, heads):
    """L_pen, and the gradient's norms [N, H], by central differences."""
    za = np.concatenate([array(zs), array(action)], -1)
    between = array(mix) * za[expert] + (1 - array(mix)) * za[behaviour]
    step, gradient = 1e-5, np.zeros_like(between)
    for i in range(Z + A):
        shifted = [between + sign * step * np.eye(Z + A)[i] for sign in (1, -1)]
        ahead, behind = (np.mean([apply_head(critic, h, x)[..., 0] for h in heads.tolist()], 0) for x in shifted)
        gradient[..., i] = (ahead - behind) / (2 * step)
    norm = np.linalg.norm(gradient, axis=-1)
    return over_rollout((norm - 1) ** 2, valid[expert] & valid[behaviour]), norm


def test_the_penalty_is_equation_14_in_numpy():
    agent, batch, heads = make(), rows(), torch.tensor([3, 1])
    arguments = torch.rand(B, H, Z), batch.action, batch.valid, EXPERT, BEHAVIOUR, torch.rand(2, H, 1), heads
    loss, info = agent.penalty_loss(*arguments)
    expected, norm = penalty_in_numpy(agent.model.critic, *arguments)
    both = batch.valid[EXPERT] & batch.valid[BEHAVIOUR]
    assert not both[0, -1] and both.sum() == 2 * H - 1
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert info["q/gradient_norm"].item() == pytest.approx(norm[array(both) > 0].mean(), rel=1e-3)


def test_critics_that_say_nothing_yet_have_a_finite_penalty_and_gradient():
    agent = make_agent("iq_mpc", {**SMALL, "gradient_penalty": True}, O, A)
    assert all(value.isfinite() for _ in range(2) for value in agent.update(rows()).values())


def test_the_penaltys_gradient_is_that_of_finite_differences():
    agent, batch, zs, mix = make(), rows(), torch.rand(B, H, Z), torch.rand(2, H, 1)

    def loss():
        return agent.penalty_loss(zs, batch.action, batch.valid, EXPERT, BEHAVIOUR, mix, torch.tensor([3, 1]))[0]

    weights = list(agent.model.critic.weights)
    for weight, gradient in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        direction, step = torch.randn_like(weight), 2e-3
        values = []
        for sign in (1, -1):
            weight.data.add_(sign * step * direction)
            values.append(loss().item())
            weight.data.sub_(sign * step * direction)
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02)


def test_onednns_products_give_the_penalty_the_same_second_derivative(monkeypatch):
    agent, batch, zs, mix = make(model={**SMALL["model"], "mlp_dim": 32}), rows(), torch.rand(B, H, Z), torch.rand(2, H, 1)

    def gradients():
        loss = agent.penalty_loss(zs, batch.action, batch.valid, EXPERT, BEHAVIOUR, mix, torch.tensor([3, 1]))[0]
        return torch.autograd.grad(loss, list(agent.model.critic.weights))

    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(nets, "ONEDNN", False)
    plain, products = gradients(), []
    onednn = nets._OneDnnLinear.forward
    monkeypatch.setattr(nets._OneDnnLinear, "forward", staticmethod(lambda *args: products.append(1) or onednn(*args)))
    assert torch.equal(plain[0], gradients()[0]) and not products
    monkeypatch.setattr(nets, "ONEDNN", True)
    monkeypatch.setattr(nets, "NARROW", 1)
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert products


@pytest.mark.parametrize(("penalty_coef", "critic_coef"), [(1.0, 0.1), (3.0, 0.1), (1.0, 7.0)])
@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_is_a_part_of_the_critics_loss_or_a_loss_of_its_own(form, penalty_coef, critic_coef):
    """20 L_consistency + c (L_iq + w L_pen), the public code's, or 20 L_consistency + c L_iq + w L_pen, the paper's."""
    config = {"gradient_penalty": True, "penalty_form": form, "penalty_coef": penalty_coef, "critic_coef": critic_coef}
    agent, seen = make(**config), {}
    critic, optimize, penalty_loss = copy.deepcopy(agent.model.critic), agent.optimize, agent.penalty_loss
    agent.optimize = lambda name, loss, norm: seen.setdefault(name, loss.item()) and optimize(name, loss, norm)
    agent.penalty_loss = lambda *args: seen.setdefault("penalty", args) and penalty_loss(*args)
    info = agent.update(rows())
    penalty, _ = penalty_in_numpy(critic, *seen["penalty"])
    consistency, iq = info["loss/consistency"].item(), info["loss/critic"].item()
    assert penalty > 0.01 and info["loss/penalty"].item() == pytest.approx(penalty, rel=1e-3)
    assert info["loss/model"].item() == pytest.approx(20 * consistency + critic_coef * iq, rel=1e-4)
    weight = FORMS[form](critic_coef, penalty_coef)
    assert seen["model"] == pytest.approx(20 * consistency + critic_coef * iq + weight * penalty, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_an_updates_penalty_reaches_the_critics_alone_with_its_weight(form):
    """Against the same update without it: encoder and dynamics take the same gradient, the critics that of w L_pen more."""
    agents = [make(gradient_penalty=on, penalty_form=form, penalty_coef=2.0, consistency_coef=1.0) for on in (False, True)]
    modules, gradients, seen = ("encoder", "dynamics", "critic"), [], {}
    for agent in agents:
        parameters = {name: list(getattr(agent.model, name).parameters()) for name in modules}

        def optimize(name, loss, norm, agent=agent, parameters=parameters):
            if name == "model":
                gradients.append({name: torch.autograd.grad(loss, parameters[name], retain_graph=True) for name in modules})
            return torch.zeros(())

        penalty_loss = agent.penalty_loss
        agent.optimize = optimize
        agent.penalty_loss = lambda *args, of=penalty_loss: seen.setdefault("penalty", of(*args))
        agent.update(rows())
    plain, penalised = gradients
    for name in ("encoder", "dynamics"):
        assert all(torch.equal(a, b) for a, b in zip(plain[name], penalised[name], strict=True)), name
    more = torch.autograd.grad(seen["penalty"][0], list(agents[1].model.critic.parameters()), allow_unused=True)
    weight = FORMS[form](0.1, 2.0)
    for a, b, g in zip(plain["critic"], penalised["critic"], more, strict=True):
        torch.testing.assert_close(b - a, weight * (torch.zeros_like(a) if g is None else g), rtol=1e-3, atol=1e-5)


def test_an_update_penalises_between_pairs_of_an_expert_and_a_behaviour_row_at_the_latents_that_actions_leave_from():
    """Of 120 and 80 rows as many pairs as there are of the fewer, each somewhere else between at every step."""
    agent, seen = make(gradient_penalty=True), {}
    batch = dataclasses.replace(random_batch(200, H, O, A), is_expert=torch.arange(200) % 5 < 3)
    model_loss, penalty_loss = agent.model_loss, agent.penalty_loss
    agent.model_loss = lambda *args: seen.setdefault("model", model_loss(*args))
    agent.penalty_loss = lambda *args: seen.setdefault("penalty", args) and penalty_loss(*args)
    agent.update(batch)
    latents = seen["model"][1]
    zs, action, valid, expert, behaviour, mix, heads = seen["penalty"]
    assert latents.shape == (200, H + 1, Z) and torch.equal(zs, latents[:, :H])
    assert torch.equal(action, batch.action) and torch.equal(valid, batch.valid)
    assert expert.tolist() == [i for i in range(200) if i % 5 < 3][:80]
    assert behaviour.tolist() == [i for i in range(200) if i % 5 >= 3]
    assert len(set(heads.tolist())) == 2 and set(heads.tolist()) <= set(range(Q))
    assert mix.shape == (80, H, 1) and len(mix.unique()) == 80 * H and (mix > 0).all() and (mix < 1).all()
    quantiles = mix.flatten().quantile(torch.linspace(0.1, 0.9, 9))
    assert torch.allclose(quantiles, torch.linspace(0.1, 0.9, 9), atol=0.1)  # 3 standard deviations of 240 uniform numbers
