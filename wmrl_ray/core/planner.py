"""Model Predictive Path Integral control in a latent space, as a pure function, batched over W environments.

TD-MPC's planner (Section III-B of the IQL-TD-MPC paper, Algorithm 1 of 2203.04955): policy trajectories join random ones, the
elites refit a diagonal Gaussian, and one elite, drawn by its score, gives the action. With `num_samples = 0` nothing is
refined: the elites come from the policy's own samples (Section IV, "n_r = 0"), so no action leaves the policy's distribution.

TD-MPC2 plans alike, with no momentum and with returns that ask two critics drawn anew in each iteration (`RedrawingPlanModel`).

Deviates from TD-MPC's public code: the policy's trajectories are evaluated once, not again in every iteration (the same
distribution; only the noise of the action after the horizon is redrawn there), unless returns share a part that is redrawn;
a non-finite return counts as the worst, not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wmrl_ray.config import check
from wmrl_ray.core.shapes import expect

CPU_ROWS = 2048  # trajectories; all 4,096 of 8 plans at once took 1.2 to 1.4 times as long (hidden layers of 512)


@dataclass(frozen=True)
class PlanConfig:
    horizon: int = 5  # H (the paper's T)
    num_samples: int = 512  # n_r, random trajectories per iteration
    num_policy: int = 25  # n_pi, trajectories of the policy, kept in every iteration
    num_elites: int = 64  # n_e
    iterations: int = 6
    temperature: float = 0.5  # scores are exp(temperature * (return - best return))
    momentum: float = 0.1  # of the mean between iterations
    min_std: float = 0.05
    max_std: float = 2.0

    def __post_init__(self) -> None:
        total = self.num_samples + self.num_policy
        check(self.horizon >= 1, f"plan.horizon = {self.horizon}; it must be at least 1")
        check(total >= 1, "plan.num_samples + plan.num_policy = 0; there is nothing to choose from")
        check(
            1 <= self.num_elites <= total,
            f"plan.num_elites = {self.num_elites}; it must be in [1, num_samples + num_policy = {total}]",
        )
        check(
            min(self.num_samples, self.num_policy) >= 0,
            f"plan.num_samples = {self.num_samples}, plan.num_policy = {self.num_policy}; neither may be negative",
        )
        check(self.temperature >= 0, f"plan.temperature = {self.temperature}; it must not be negative")
        check(0 <= self.momentum <= 1, f"plan.momentum = {self.momentum}; it must be in [0, 1]")
        check(
            0 <= self.min_std <= self.max_std,
            f"plan.min_std = {self.min_std}, plan.max_std = {self.max_std}; 0 <= min_std <= max_std is needed",
        )
        check(self.iterations >= 1, f"plan.iterations = {self.iterations}; it must be at least 1")
        check(
            self.num_samples > 0 or self.iterations == 1,
            f"plan.iterations = {self.iterations} with num_samples = 0: there is nothing to refine; set iterations = 1",
        )


class PlanModel(Protocol):
    """What the planner asks of a world model. Noise is an argument, so that each of these is a pure function."""

    def policy_rollout(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z [M, Z], standard normal noise [M, H+1, A] -> actions [M, H, A] of the policy, their returns [M]."""
        ...

    def returns(self, z: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """z [M, Z], actions [M, H, A], noise [M, A] for the last action -> sum_t gamma^t R + gamma^H Q, [M]."""
        ...


@runtime_checkable
class RedrawingPlanModel(Protocol):
    """A model whose returns share a random part, such as which critics are asked, that is drawn anew in each iteration.

    Only returns of the same draw can be compared, so the policy's trajectories are evaluated again in each iteration.
    shared_draws: how many standard normal numbers that part takes; all environments of a call share it too.
    """

    shared_draws: int

    def start(self, z: Tensor) -> Tensor:
        """z [W, Z] -> [W, S], what the first step needs of it: computed once, however many trajectories leave from there."""
        ...

    def policy_actions(self, z: Tensor, noise: Tensor) -> Tensor:
        """z [M, Z], standard normal noise [M, H, A] -> actions [M, H, A] of the policy along its own rollout."""
        ...

    def returns(self, start: Tensor, actions: Tensor, noise: Tensor, shared: Tensor) -> Tensor:
        """start [M, S], actions [M, H, A], noise [M, A] for the last action, shared [shared_draws] -> returns [M]."""
        ...


@torch.no_grad()
def plan(
    model: PlanModel | RedrawingPlanModel,
    z: Tensor,
    plan_state: Tensor | None,
    is_first: Tensor,
    config: PlanConfig,
    action_dim: int,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    explore: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Chooses an action for each of W environments; row i never depends on row j.

    Args:
        z: [W, Z] latents. is_first: [W] bool, no warm start for these rows.
        plan_state: [W, H, A] the previous plan's mean (warm start), or None.
        generator: of the noise of all rows, or W of them, one per row: a row's plan is then the same beside any others. (Not
            for a RedrawingPlanModel, whose rows share a draw.)
        explore: adds the plan's own noise to the action.

    Returns:
        action [W, A] in [-1, 1]; the new plan_state [W, H, A]; info: plan/nan_frac (share of trajectories, over all iterations,
        whose return was not finite; none of them is chosen while a finite one exists), plan/value_mean (of the elites, by their
        scores), plan/std_mean.
    """
    expect(z, "W Z")
    W, H, A, device = z.shape[0], config.horizon, action_dim, z.device
    expect(is_first, "W", W=W)
    if plan_state is not None:
        expect(plan_state, "W H A", W=W, H=H, A=A)

    def draw(sample: Callable[..., Tensor], *shape: int) -> Tensor:
        """[W, *shape]"""
        if isinstance(generator, torch.Generator):
            return sample((W, *shape), generator=generator, device=device)
        return torch.stack([sample(shape, generator=own, device=device) for _, own in zip(z, generator, strict=True)])

    if not isinstance(model, RedrawingPlanModel):
        evaluate = _evaluate_policy_once(model, z, config, A, draw)
    elif isinstance(generator, torch.Generator):
        evaluate = _redraw_and_evaluate(model, z, config, A, draw, generator)
    else:
        raise ValueError("returns with a shared part that is redrawn take one generator, not one per row")

    mean = z.new_zeros(W, H, A)
    if plan_state is not None:  # shift by one step; the last step starts at zero
        mean[:, :-1] = torch.where(is_first.view(W, 1, 1), 0.0, plan_state[:, 1:])
    std = torch.full_like(mean, config.max_std)

    nan_frac = z.new_zeros(())
    for _ in range(config.iterations):
        noise = draw(torch.randn, config.num_samples, H, A)
        actions, returns = evaluate((mean.unsqueeze(1) + std.unsqueeze(1) * noise).clamp_(-1, 1))
        finite = returns.isfinite()
        nan_frac += (1 - finite.float().mean()) / config.iterations
        elite_returns, index = returns.masked_fill(~finite, -torch.inf).topk(config.num_elites, dim=1)  # [W, E]
        elites = actions.gather(1, index.view(W, -1, 1, 1).expand(-1, -1, H, A))  # [W, E, H, A]
        # A bad trajectory among the elites has score 0; if all are bad, they count the same
        log_score = torch.where(
            elite_returns.isfinite(), config.temperature * (elite_returns - elite_returns[:, :1]), -torch.inf
        )
        log_score = torch.where(elite_returns[:, :1].isfinite(), log_score, 0.0)
        score = log_score.softmax(1).view(W, -1, 1, 1)
        elite_mean = (score * elites).sum(1)
        std = (score * (elites - elite_mean.unsqueeze(1)).square()).sum(1).sqrt().clamp(config.min_std, config.max_std)
        mean = config.momentum * mean + (1 - config.momentum) * elite_mean

    # Gumbel's trick: the largest of log-score plus Gumbel noise is a draw with probability proportional to the score
    uniform = draw(torch.rand, config.num_elites).clamp_(1e-20, 1 - 1e-7)
    choice = (log_score - (-uniform.log()).log()).argmax(1)
    action = elites[torch.arange(W, device=device), choice, 0]
    if explore:
        action = action + std[:, 0] * draw(torch.randn, A)
    value = (score[:, :, 0, 0] * elite_returns.masked_fill(~elite_returns.isfinite(), 0.0)).sum(1)
    info = {"plan/nan_frac": nan_frac, "plan/value_mean": value.mean(), "plan/std_mean": std.mean()}
    return action.clamp(-1, 1), mean, info


# [W, N, H, A] random plans -> all plans [W, N + P, H, A], those of the policy included, and their returns [W, N + P]
_Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
_Draw = Callable[..., Tensor]


def _evaluate_policy_once(model: PlanModel, z: Tensor, config: PlanConfig, A: int, draw: _Draw) -> _Evaluate:
    """The policy's trajectories are evaluated here, the random ones in each iteration."""
    W, H, N, P = len(z), config.horizon, config.num_samples, config.num_policy
    policy_actions, policy_returns = z.new_empty(W, 0, H, A), z.new_empty(W, 0)
    if P > 0:
        noise = draw(torch.randn, P, H + 1, A).flatten(0, 1)
        pieces = [model.policy_rollout(*rows) for rows in _pieces(_repeat(z, P), noise)]
        # cat also copies: with CUDA graphs the next replay overwrites what a graph returned
        flat_actions, flat_returns = (torch.cat(piece) for piece in zip(*pieces, strict=True))
        policy_actions, policy_returns = flat_actions.view(W, P, H, A), flat_returns.view(W, P)
    if N == 0:
        return lambda sampled: (policy_actions, policy_returns)
    z_repeated = _repeat(z, N)

    def evaluate(sampled: Tensor) -> tuple[Tensor, Tensor]:
        last_noise = draw(torch.randn, N, A).flatten(0, 1)
        pieces = [model.returns(*rows) for rows in _pieces(z_repeated, sampled.flatten(0, 1), last_noise)]
        returns = torch.cat([torch.cat(pieces).view(W, N), policy_returns], 1)
        return torch.cat([sampled, policy_actions], 1), returns

    return evaluate


def _redraw_and_evaluate(
    model: RedrawingPlanModel, z: Tensor, config: PlanConfig, A: int, draw: _Draw, generator: torch.Generator
) -> _Evaluate:
    """All trajectories are evaluated in each iteration, with the shared part drawn for it."""
    W, H, P, total = len(z), config.horizon, config.num_policy, config.num_samples + config.num_policy
    policy_actions = z.new_empty(W, 0, H, A)
    if P > 0:
        noise = draw(torch.randn, P, H, A).flatten(0, 1)
        pieces = [model.policy_actions(*rows) for rows in _pieces(_repeat(z, P), noise)]
        policy_actions = torch.cat(pieces).view(W, P, H, A)
    start = _repeat(model.start(z), total)

    def evaluate(sampled: Tensor) -> tuple[Tensor, Tensor]:
        actions = torch.cat([sampled, policy_actions], 1)
        last_noise = draw(torch.randn, total, A).flatten(0, 1)
        shared = torch.randn(model.shared_draws, generator=generator, device=z.device)
        rows_of_pieces = _pieces(start, actions.flatten(0, 1), last_noise)
        pieces = [model.returns(begun, plans, noise, shared) for begun, plans, noise in rows_of_pieces]
        return actions, torch.cat(pieces).view(W, total)

    return evaluate


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows that are evaluated at a time: all, but on a CPU no more than fit its cache."""
    size = CPU_ROWS if tensors[0].device.type == "cpu" else len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _repeat(z: Tensor, times: int) -> Tensor:
    """[W, Z] -> [W * times, Z], each row `times` times in a row."""
    return z.repeat_interleave(times, 0)
