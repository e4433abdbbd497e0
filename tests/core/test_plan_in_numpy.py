"""Two iterations of planning, row by row in numpy, from the planner's own draws."""

import numpy as np
import pytest
import torch

from tests.core.reference import array
from wmrl_ray.core.planner import PlanConfig, plan

W, H, A = 3, 4, 2
CONFIG = PlanConfig(
    horizon=H, num_samples=20, num_policy=8, num_elites=6, iterations=2, momentum=0.3, temperature=0.7, max_std=0.8
)


class Redrawing:
    """A return is nearness to a point that is drawn, plus the last action along its noise; of tensors and of arrays alike."""

    shared_draws = 3

    def start(self, z):
        return -2 * z

    def policy_actions(self, z, noise):
        return 0.8 * z[:, None] + 0.3 * noise

    def returns(self, start, actions, noise, shared):
        return -((actions + shared[2] * start[:, None]) ** 2).sum((1, 2)) + (noise * actions[:, -1]).sum(1)


class Fixed:
    """The same with a point that is not drawn, so that the policy's trajectories keep their returns."""

    def policy_rollout(self, z, noise):
        actions = 0.8 * z[:, None] + 0.3 * noise[:, :-1]
        return actions, self.returns(z, actions, noise[:, -1])

    def returns(self, z, actions, noise):
        return -((actions - z[:, None]) ** 2).sum((1, 2)) + (noise * actions[:, -1]).sum(1)


def numpy_plan(model, z, state, first, seed, explore):
    """The action [W, A], the last mean and std [W, H, A], and the elites' mean return [W]."""
    generator, c, redraws = torch.Generator().manual_seed(seed), CONFIG, isinstance(model, Redrawing)
    N, P, E, T = c.num_samples, c.num_policy, c.num_elites, c.temperature

    def draw(*shape, sample=torch.randn):
        return array(sample(shape, generator=generator))

    mean, std = np.zeros((W, H, A)), np.full((W, H, A), c.max_std)
    mean[~first, :-1] = state[~first, 1:]
    elites, log_score, value = np.zeros((W, E, H, A)), np.zeros((W, E)), np.zeros(W)
    policy_noise = draw(W, P, H if redraws else H + 1, A)
    for _ in range(c.iterations):
        noise, last = draw(W, N, H, A), draw(W, N + P if redraws else N, A)
        shared = draw(3) if redraws else None
        for w in range(W):
            sampled = np.clip(mean[w] + std[w] * noise[w], -1, 1)
            if redraws:
                actions = np.concatenate([sampled, model.policy_actions(z[[w] * P], policy_noise[w])])
                returns = model.returns(model.start(z[[w] * (N + P)]), actions, last[w], shared)
            else:
                policy_actions, policy_returns = model.policy_rollout(z[[w] * P], policy_noise[w])
                actions = np.concatenate([sampled, policy_actions])
                returns = np.concatenate([model.returns(z[[w] * N], sampled, last[w]), policy_returns])
            best = np.argsort(-returns)[:E]
            elites[w], log_score[w] = actions[best], T * (returns[best] - returns.max())
            score = np.exp(log_score[w]) / np.exp(log_score[w]).sum()
            refit = np.tensordot(score, elites[w], 1)
            std[w] = np.sqrt(np.tensordot(score, (elites[w] - refit) ** 2, 1)).clip(c.min_std, c.max_std)
            mean[w] = c.momentum * mean[w] + (1 - c.momentum) * refit
            value[w] = score @ returns[best]
    gumbel = -np.log(-np.log(draw(W, E, sample=torch.rand)))
    action = elites[np.arange(W), (log_score + gumbel).argmax(1), 0]
    return np.clip(action + std[:, 0] * draw(W, A) if explore else action, -1, 1), mean, std, value


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("model", [Redrawing(), Fixed()], ids=["redrawing", "fixed"])
def test_a_plan_is_two_refits_to_the_elites_and_one_of_them_with_noise_to_explore(model, explore):
    z, state = torch.linspace(-0.9, 0.9, W * A).view(W, A), torch.rand(W, H, A) * 2 - 1
    first, clamped = torch.tensor([False, True, False]), 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        action, mean, info = plan(model, z, state, first, CONFIG, A, generator, explore=explore)
        expected, expected_mean, std, value = numpy_plan(model, array(z), array(state), first.numpy(), seed, explore)
        assert np.allclose(array(mean), expected_mean, atol=1e-5)
        assert info["plan/std_mean"].item() == pytest.approx(std.mean(), rel=1e-4)
        assert info["plan/value_mean"].item() == pytest.approx(value.mean(), rel=1e-4)
        assert np.allclose(array(action), expected, atol=1e-5)
        clamped += (np.abs(expected) == 1).sum()
    assert 0 < clamped < 10 * W * A / 2
