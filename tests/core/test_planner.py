import pytest
import torch

from wmrl_ray.config import ConfigError
from wmrl_ray.core.planner import PlanConfig, plan

W, H, A = 3, 4, 2


class Quadratic:
    """The return of a plan is -sum_t |a_t - best_t(z)|^2: its optimum is known. The policy draws actions near zero."""

    def best(self, z):  # [M, Z] -> [M, H, A]
        return torch.stack([(z[:, :A] * (0.9**t)).clamp(-0.9, 0.9) for t in range(H)], 1)

    def returns(self, z, actions, noise):
        return -(actions - self.best(z)).square().sum((1, 2))

    def policy_rollout(self, z, noise):
        actions = 0.1 * noise[:, :H]
        return actions, self.returns(z, actions, noise[:, -1])


class OneBroken(Quadratic):
    """Plans whose first action is positive have no finite return."""

    def returns(self, z, actions, noise):
        value = super().returns(z, actions, noise)
        return torch.where(actions[:, 0, 0] > 0, torch.nan, value)


def run(model, config, seed=0, z=None, state=None, first=None, explore=False):
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A) if z is None else z
    first = torch.ones(W, dtype=torch.bool) if first is None else first
    return plan(model, z, state, first, config, A, torch.Generator().manual_seed(seed), explore=explore)


MANY = PlanConfig(horizon=H, num_samples=512, num_policy=24, num_elites=32, iterations=10, momentum=0.0, temperature=50.0)


def test_it_finds_the_known_optimum_of_a_quadratic_return():
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)
    action, _, _ = run(Quadratic(), MANY, z=z)
    assert torch.allclose(action, Quadratic().best(z)[:, 0], atol=0.1)


def test_evaluated_in_pieces_the_plan_is_the_same(monkeypatch):
    config = PlanConfig(horizon=H, num_samples=20, num_policy=9, num_elites=8, iterations=3)
    whole = run(Quadratic(), config)
    monkeypatch.setattr("wmrl_ray.core.planner.CPU_ROWS", 7)
    for a, b in zip(whole[:2], run(Quadratic(), config)[:2], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("config", [PlanConfig(H, 20, 9, 8, 3), PlanConfig(H, 0, 9, 4, 1)], ids=["refined", "policy only"])
def test_with_its_own_generator_a_row_is_planned_as_if_it_were_alone(config):
    z, first, state = torch.linspace(-0.7, 0.7, W * A).view(W, A), torch.zeros(W, dtype=torch.bool), torch.rand(W, H, A) - 0.5
    streams = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    together = plan(Quadratic(), z, state, first, config, A, streams, explore=True)
    for i, seed in enumerate((5, 6, 7)):
        alone = run(Quadratic(), config, seed, z[i : i + 1], state[i : i + 1], first[:1], explore=True)
        torch.testing.assert_close(together[0][i], alone[0][0])
        torch.testing.assert_close(together[1][i], alone[1][0])
    with pytest.raises(ValueError, match="shorter|longer"):
        plan(Quadratic(), z, None, first, config, A, streams[:2])


def test_more_iterations_come_closer_to_the_optimum():
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)

    def error(iterations):
        config = PlanConfig(horizon=H, num_samples=64, num_policy=0, num_elites=8, iterations=iterations, temperature=50.0)
        _, mean, _ = run(Quadratic(), config, z=z)
        return (mean - Quadratic().best(z)).square().mean().item()

    assert error(8) < 0.5 * error(1)


def test_without_random_samples_the_action_is_one_of_the_best_policy_samples():
    config = PlanConfig(horizon=H, num_samples=0, num_policy=50, num_elites=5, iterations=1)
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)
    noise = torch.randn((W * 50, H + 1, A), generator=torch.Generator().manual_seed(0))  # the planner's first draw
    actions, returns = Quadratic().policy_rollout(z.repeat_interleave(50, 0), noise)
    actions, elite = actions.view(W, 50, H, A), returns.view(W, 50).topk(5, dim=1).indices
    action, _, _ = run(Quadratic(), config, z=z)
    for row in range(W):
        assert any(torch.equal(action[row], actions[row, e, 0]) for e in elite[row])


def test_the_score_weighted_draw_prefers_better_elites_and_a_high_temperature_takes_the_best():
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)

    def mean_return(temperature):
        config = PlanConfig(horizon=H, num_samples=0, num_policy=64, num_elites=64, iterations=1, temperature=temperature)
        actions = torch.stack([run(Quadratic(), config, z=z, seed=s)[0] for s in range(40)])
        return -(actions - Quadratic().best(z)[:, 0]).square().sum(-1).mean().item()

    assert mean_return(1000.0) > mean_return(0.01) + 0.05


def test_a_non_finite_return_is_never_chosen_and_its_share_is_reported():
    config = PlanConfig(horizon=H, num_samples=64, num_policy=8, num_elites=8, iterations=1)
    for seed in range(20):
        action, _, info = run(OneBroken(), config, seed=seed)
        assert (action[:, 0] <= 0).all() and 0.2 < info["plan/nan_frac"] < 0.8


def test_one_finite_plan_among_many_bad_ones_is_the_one_chosen():
    class FirstIsGood(Quadratic):
        def policy_rollout(self, z, noise):
            actions, returns = super().policy_rollout(z, noise)
            row = torch.arange(len(returns)) % 64
            return actions, torch.where(row == 0, returns, torch.nan)

    config = PlanConfig(horizon=H, num_samples=0, num_policy=64, num_elites=8, iterations=1)
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)
    for seed in range(20):
        noise = torch.randn((W * 64, H + 1, A), generator=torch.Generator().manual_seed(seed))
        good = FirstIsGood().policy_rollout(z.repeat_interleave(64, 0), noise)[0].view(W, 64, H, A)[:, 0, 0]
        action, _, info = run(FirstIsGood(), config, z=z, seed=seed)
        assert torch.equal(action, good) and info["plan/nan_frac"] == pytest.approx(63 / 64)


def test_when_every_return_is_non_finite_the_plan_is_still_finite():
    class AllBroken(Quadratic):
        def returns(self, z, actions, noise):
            return torch.full((len(z),), torch.inf)

    action, mean, info = run(AllBroken(), MANY)
    assert action.isfinite().all() and mean.isfinite().all() and info["plan/nan_frac"] == pytest.approx(1)


def test_the_plan_of_a_row_does_not_depend_on_other_rows():
    z = torch.linspace(-0.7, 0.7, W * A).view(W, A)
    changed = z.clone()
    changed[1] = 0.33
    a, mean_a, _ = run(Quadratic(), MANY, z=z)
    b, mean_b, _ = run(Quadratic(), MANY, z=changed)
    assert torch.equal(a[[0, 2]], b[[0, 2]]) and torch.equal(mean_a[[0, 2]], mean_b[[0, 2]])
    assert not torch.equal(a[1], b[1])


def test_the_same_generator_gives_the_same_action_and_another_one_a_different_one():
    a, b, c = (run(Quadratic(), MANY, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_warm_start_is_the_old_mean_shifted_by_one_step_except_where_the_episode_is_new():
    """With one sample, no spread and no refit, the mean that a plan starts from is what it returns."""
    config = PlanConfig(horizon=H, num_samples=1, num_policy=0, num_elites=1, iterations=1, momentum=1.0)
    state = torch.arange(W * H * A, dtype=torch.float32).view(W, H, A) / 100
    first = torch.tensor([False, True, False])
    _, mean, _ = run(Quadratic(), config, state=state, first=first)
    assert torch.equal(mean[0, :-1], state[0, 1:]) and torch.equal(mean[0, -1], torch.zeros(A))
    assert torch.equal(mean[1], torch.zeros(H, A))


def test_exploring_adds_noise_within_the_bounds():
    a, b = run(Quadratic(), MANY)[0], run(Quadratic(), MANY, explore=True)[0]
    assert not torch.equal(a, b) and (b.abs() <= 1).all()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"horizon": 0}, "horizon = 0"),
        ({"num_samples": 0, "num_policy": 64}, "iterations = 6"),
        ({"num_elites": 1000}, "num_elites = 1000"),
        ({"num_samples": 0, "num_policy": 0, "iterations": 1}, "there is nothing to choose from"),
    ],
)
def test_an_impossible_plan_is_refused_by_name(values, named):
    with pytest.raises(ConfigError, match=named):
        PlanConfig(**values)
