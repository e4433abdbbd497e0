"""IQ-MPC: online imitation by a world model without rewards, which planning decodes from the critics.

Reward-free World Models for Online Imitation Learning, the paper whose equations and algorithms are numbered below: TD-MPC2's
encoder, latent dynamics, critics and policy prior; the critics learn inverse soft-Q from windows of demonstrations and of the
agent's own episodes, in equal shares.

Where the paper and its public code disagree, this is built:
(a) the gradient penalty, of weight 1 in both, is a loss of its own in the paper (`penalty_form` = "loss"), and a part of the
    critics' loss in the code ("critic", the default), which has weight 0.1: ten times less. By either weight the imitation of
    tests/core/test_iq_mpc_planning.py suffers, by the paper's it fails (tests/benchmarks/RESULTS.md); `penalty_coef` is 0.1
    here. In either form it shapes the critics alone (code; Eq. 14 leaves open what learns from it);
(b) 2 planning iterations more where actions have 20 dimensions or more (code; `extra_iterations` = 0 is the paper's);
(c) planning subtracts log pi of the policy's own action (code); `planned_log_prob` is Algorithm 1's, of the planned action.
    Why: as the policy narrows, -log pi of an action it would not take grows without bound, and planning would look for those;
(d) planning's Q is the lower of 2 random critics throughout (code, except for its terminal value, which cancels here);
(e) the executed action is an elite, drawn by its score, plus noise while exploring (code; paper: a sample of N(mu, sigma));
(f) the encoder has 0.3 of the learning rate (code; `encoder_lr_scale` = 1 is the paper's);
(g) V of the initial states is that of the first state of every expert window, at any time of its episode (both, in effect);
(h) V of the rollout is computed for the temporal-difference form only (the code computes it always);
(i) losses sum over t < H (code), the policy's over t <= H (both); each sum is divided by its number of steps (code), the
    penalty's too. The paper's Eqs. 11 to 14 are plain sums, its Algorithm 2 divides the gradient of them all by H.

Planning. Eq. 15 as printed telescopes to V(z_t), a constant. Algorithm 1, with r = Q(z, a) - gamma V(z'), is meant; where each
V(z_t) is one sample that all terms share, it telescopes as well, to

    Q(z_0, a_0) + sum_{0<t<H} gamma^t [Q(z_t, a_t) - V(z_t)] - beta sum_{t<H} gamma^t log pi_t:

nothing remains of z_H. With log pi_t of the sample in V(z_t), that one cancels too, and Q(z_t, a_t) - Q(z_t, pi(z_t)) remains.
`plan_score` = "algorithm_1" computes the sum as the paper lists it.

Deviates further:
- all trajectories of an iteration share the policy's noise and the pair of critics: they differ by their actions only;
- V(s') is 0 after a terminal step, and windows that pass an episode's end are masked there (the public code meets neither);
- dropout is off in planning, targets and the penalty (in the code it is always on);
- `scaled_log_prob`: log pi is A times the Gaussian's log density minus the tanh's term, as in the code; false: the density.
  That log density is complete: its constant is -A/2 log 2 pi, where the code, which adds it after the sum over dimensions, has
  -1/2 log 2 pi; so scaled log pi is lower than the code's by A (A - 1) / 2 log 2 pi, in every V alike;
- the tanh's term is exact (`tanh_log_det`), in the code log(relu(1 - tanh^2) + 1e-6), which is bounded near the bounds;
- the critics' penalty is taken once per step of the rollout, not once more for each critic: the same expectation;
- no behaviour cloning: the code's coefficient is 0. Images are shifted at random in updates only, the code's while acting too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Metrics, demonstration_rows, frozen, soft_update
from wmrl_ray.core.agents.simplicial import SimplicialAgent, SimplicialAgentConfig
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.blocks import Heads
from wmrl_ray.core.math import LOG_2PI, gaussian_log_prob, masked_mean, sample_pair, squashed_sample, tanh_log_det, time_weights
from wmrl_ray.core.models.simplicial import SimplicialModelConfig, TargetCritic, join, share_of_latent, with_action


def scalar_critics() -> SimplicialModelConfig:
    """Critics that say one number instead of bins."""
    return SimplicialModelConfig(num_bins=1)


@dataclass(frozen=True)
class Config(SimplicialAgentConfig):
    """plan: J iterations, N + N_pi trajectories. entropy_coef: beta. rho: lambda."""

    model: SimplicialModelConfig = field(default_factory=scalar_critics)
    critic_coef: float = 0.1  # of the inverse soft-Q loss
    alpha: float = 0.5  # of the chi^2 regulariser; a smaller alpha keeps the decoded rewards smaller
    # The second term of Eq. 6: (1 - gamma) V of the initial states (Eq. 12), or V(z) - gamma V(z') of the behaviour (ablation)
    objective: Literal["initial", "td"] = "initial"
    gradient_penalty: bool = False  # Eq. 14; the paper's for manipulation
    penalty_form: Literal["critic", "loss"] = "critic"  # a part of the critics' loss, times critic_coef, or a loss of its own
    penalty_coef: float = 0.1  # of the penalty, in either; 1 in paper and code
    scaled_log_prob: bool = True
    plan_score: Literal["telescoped", "algorithm_1"] = "telescoped"
    planned_log_prob: bool = False  # planning subtracts log pi of the planned action, instead of that of the policy's own
    action_margin: float = 1e-3  # of planned actions from the bounds, for that density
    use_planning: bool = True  # false: act by the policy prior alone

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.model.num_bins == 1, f"model.num_bins = {self.model.num_bins}; inverse soft-Q needs critics of 1 number")
        check(self.gamma is None or self.gamma < 1, f"gamma = {self.gamma}; it must be below 1")
        check(self.alpha > 0, f"alpha = {self.alpha}; it must be positive")
        check(0 < self.action_margin < 1, f"action_margin = {self.action_margin}; it must be in (0, 1)")


class IQMPC(SimplicialAgent):
    """Plans by rewards that its critics, which learn from demonstrations, imply."""

    Config = Config
    config: Config
    learns_online = True
    needs_demonstrations = True
    compiled_functions = (*SimplicialAgent.compiled_functions, "model_loss", "actor_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = self.build_model(with_reward=False)
        # Of planning: they choose two critics, and are the policy's noise at every latent of a rollout
        self.shared_draws = self.config.model.num_critics + (self.config.plan.horizon + 1) * self.action_dim
        return model, TargetCritic(model)

    def sample(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action [..., A] of the squashed Gaussian for standard normal noise [..., A], and log pi of it [...]."""
        before = mean + log_std.exp() * noise
        log_normal = (-0.5 * noise.square() - log_std - 0.5 * LOG_2PI).sum(-1)
        return torch.tanh(before), self.log_prob_scale * log_normal - tanh_log_det(before).sum(-1)

    @property
    def log_prob_scale(self) -> int:
        return self.action_dim if self.config.scaled_log_prob else 1

    def value(self, z: Tensor, noise: Tensor, heads: Tensor, mask: Tensor | None = None) -> Tensor:
        """V(z) = min Q(z, a) - beta log pi(a | z) [...] of one action a ~ pi(z), the minimum being over critics `heads`."""
        action, log_prob = self.sample(*self.model.policy(z), noise)
        return self.model.q(z, action, heads, mask).amin(0) - self.config.entropy_coef * log_prob

    # -- learning -------------------------------------------------------------------------------------------------------------

    def model_loss(
        self,
        obs: Tensor,
        batch: Batch,
        expert: Tensor,
        behaviour: Tensor,
        noise: Tensor,
        value_noise: Tensor,
        pairs: Tensor,
        mask: Tensor | None,
        value_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Eq. 11: 20 L_consistency + 0.1 L_iq along a latent rollout; L_iq is Eq. 12, or with the second term of Eq. 6.

        Args:
            obs: [B, H+1, ...], the batch's or its images shifted. expert, behaviour: the indices of these rows.
            noise: [B, H, A] standard normal, for the actions in V(s'). value_noise: for those in the second term, [E, A] of the
                expert's first states or [B - E, H, A] of the behaviour's. pairs: [2, Q] noise that chooses the critics of both.
            mask: [Q, B * H, mlp_dim] dropout of the critics; value_mask: in the second term, [2, rows of value_noise, mlp_dim].

        Returns:
            loss; zs [B, H+1, Z], the rollout, detached; info.
        """
        c, m, valid = self.config, self.model, batch.valid
        with torch.no_grad():
            z_target = m.encode(obs[:, 1:])  # [B, H, Z]
            discounted = c.discount * ~batch.terminated * self.next_value(z_target, noise, sample_pair(pairs[0]))  # [B, H]
        zs = m.rollout(m.encode(obs[:, 0]), batch.action)  # [B, H+1, Z]
        q = m.q(zs[:, :-1], batch.action, mask=mask)  # [Q, B, H]
        reward = q - discounted

        consistency = self.over_rollout((zs[:, 1:] - z_target).float().square().mean(-1), batch.observed)
        expert_reward = self.over_rollout(reward[:, expert], valid[expert])
        pair = sample_pair(pairs[1])
        if c.objective == "initial":
            initial = self.value(zs[expert, 0], value_noise, pair, value_mask).mean()
            second = (1 - c.discount) * initial * self.time_weights(batch.horizon).sum()
        else:
            v = self.value(zs[behaviour, :-1], value_noise, pair, value_mask)  # [B - E, H]
            second = self.over_rollout(v - discounted[behaviour], valid[behaviour])
        chi2 = self.over_rollout(reward.square(), valid) / (4 * c.alpha)
        critic = second - expert_reward + chi2
        loss = c.consistency_coef * consistency + c.critic_coef * critic

        q_mean = q.detach().mean(0)
        expert_q = masked_mean(q_mean[expert], valid[expert])
        info = {
            "loss/consistency": consistency,
            "loss/critic": critic,
            "loss/value": second,
            "loss/chi2": chi2,
            "loss/model": loss,
            "q/mean": masked_mean(q_mean, valid),
            "q/difference": expert_q - masked_mean(q_mean[behaviour], valid[behaviour]),  # of Fig. 12 and 13
            "reward/expert_mean": masked_mean(reward.mean(0)[expert], valid[expert]),
            "reward/behaviour_mean": masked_mean(reward.mean(0)[behaviour], valid[behaviour]),
        }
        return loss, zs.detach(), {name: value.detach() for name, value in info.items()}

    def next_value(self, z: Tensor, noise: Tensor, heads: Tensor) -> Tensor:
        """V of the target critics at z [B, H, Z], for noise [B, H, A]; [B, H]."""
        action, log_prob = self.sample(*self.model.policy(z), noise)
        return self.target.q(z, action, heads).amin(0) - self.config.entropy_coef * log_prob

    def penalty_loss(
        self, zs: Tensor, action: Tensor, valid: Tensor, expert: Tensor, behaviour: Tensor, mix: Tensor, heads: Tensor
    ) -> tuple[Tensor, Metrics]:
        """L_pen (Eq. 14): between expert row i and behaviour row i, the gradient of Q by (z, a) should have norm 1.

        Args:
            zs: [B, H, Z], without gradient: the penalty shapes the critics alone. action: [B, H, A]. valid: [B, H].
            expert, behaviour: [N] indices of paired rows. mix: [N, H, 1] in [0, 1], where between the two.
            heads: the critics whose mean is Q.
        """
        pairs = join(zs, action)
        between = (mix * pairs[expert] + (1 - mix) * pairs[behaviour]).requires_grad_()  # [N, H, Z + A]
        q = self.model.critic(between, heads).float().mean(0).sum()
        (gradient,) = torch.autograd.grad(q, between, create_graph=True)
        norm = gradient.float().norm(dim=-1)
        both = valid[expert] & valid[behaviour]
        loss = self.over_rollout((norm - 1).square(), both)
        return loss, {"loss/penalty": loss.detach(), "q/gradient_norm": masked_mean(norm.detach(), both)}

    @property
    def penalty_weight(self) -> float:
        """Of L_pen in what the model's optimiser minimises."""
        c = self.config
        return c.penalty_coef * (c.critic_coef if c.penalty_form == "critic" else 1.0)

    def actor_loss(self, zs: Tensor, alive: Tensor, noise: Tensor, pair: Tensor, mask: Tensor | None) -> tuple[Tensor, Metrics]:
        """L_pi (Eq. 13): mean_t rho^t (beta log pi(a | z) - Q(z, a)), a ~ pi(z), over both kinds of rows.

        Args:
            zs: [B, H+1, Z] the rollout, its last latent included. alive: [B, H+1] bool, which latents count (`Batch.alive`).
            noise: [B, H+1, A]. pair: [Q] noise that chooses the two critics whose minimum is Q. mask: their dropout,
                [2, B * (H+1), mlp_dim].
        """
        action, log_prob = self.sample(*self.model.policy(zs), noise)
        q = self.model.q(zs, action, sample_pair(pair), mask).amin(0)  # [B, H+1]
        loss = self.over_rollout(self.config.entropy_coef * log_prob - q, alive)
        info = {"loss/actor": loss, "q/policy_mean": masked_mean(q, alive), "actor/log_prob": masked_mean(log_prob, alive)}
        return loss, {name: value.detach() for name, value in info.items()}

    def time_weights(self, horizon: int) -> Tensor:
        """[horizon] rho^t / horizon."""
        return time_weights(self.config.rho, horizon, self.device) / horizon

    def over_rollout(self, error: Tensor, valid: Tensor) -> Tensor:
        """mean_t rho^t E[error]: each step's mean over the rows [B, H] where it is valid, and over leading axes of error."""
        of_step = (error * valid).sum(-2) / valid.sum(0).clamp(min=1)  # [..., H]
        return (self.time_weights(valid.shape[1]) * of_step).sum(-1).mean()

    def update(self, batch: Batch) -> Metrics:
        expert, behaviour = demonstration_rows(batch, self.device)
        batch, c = batch.to(self.device), self.config
        (B, H, A), Q = batch.action.shape, c.model.num_critics

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=self.update_generator, device=self.device)

        value_shape = (len(expert),) if c.objective == "initial" else (len(behaviour), H)
        noise, value_noise, pairs = normal(B, 2 * H + 1, A), normal(*value_shape, A), normal(4, Q)
        masks = self.draw_mask(Q, B * H), self.draw_mask(min(2, Q), value_noise[..., 0].numel())
        with frozen(self.model.actor), self.autocast():
            obs = self.shifted(batch.obs)
            loss, zs, info = self.model_loss(obs, batch, expert, behaviour, noise[:, :H], value_noise, pairs[:2], *masks)
            zs, info = self.kept(zs, info)
            if c.gradient_penalty and (paired := min(len(expert), len(behaviour))) > 0:
                mix = torch.rand(paired, H, 1, generator=self.update_generator, device=self.device)
                rows, heads = (expert[:paired], behaviour[:paired]), sample_pair(pairs[2])
                penalty, penalty_info = self.penalty_loss(zs[:, :-1], batch.action, batch.valid, *rows, mix, heads)
                loss, info = loss + self.penalty_weight * penalty, info | penalty_info
        info["grad_norm/model"] = self.optimize("model", loss, c.grad_clip)
        mask = self.draw_mask(min(2, Q), B * (H + 1))
        with frozen(self.model.critic), self.autocast():
            actor_loss, actor_info = self.actor_loss(zs, batch.alive, noise[:, H:], pairs[3], mask)
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, c.grad_clip)
        soft_update(self.target.critic, self.model.critic, c.tau)
        self.num_updates += 1
        return info | actor_info

    # -- planning -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        plan_state: Tensor | None,
        is_first: Tensor,
        *,
        explore: bool = False,
        reward: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Metrics]:
        """By planning; without `use_planning` the policy's sample to explore, else its squashed mean."""
        if self.config.use_planning:
            return super().act(obs, plan_state, is_first, explore=explore, reward=reward)
        with self.autocast():
            mean, log_std = self.model.policy(self.model.encode(obs))
        if not explore:
            return torch.tanh(mean), None, {}
        noise = torch.randn(mean.shape, generator=self.act_generator, device=self.device)
        return squashed_sample(mean, log_std, noise), None, {}

    def start(self, z: Tensor) -> Tensor:
        """The latent's share of the first products of dynamics and critics; where it is asked for, the policy's parameters."""
        shares = [share_of_latent(self.planned.dynamics, z), *self.planned.critic.select().begin(z)]
        asked = self.config.planned_log_prob or self.config.plan_score == "algorithm_1"
        return torch.cat([*shares, *(self.planned.policy(z.to(self.planned.dtype)) if asked else ())], -1)

    def returns(self, start: Tensor, actions: Tensor, noise: Tensor, shared: Tensor) -> Tensor:
        """phi of Algorithm 1 for actions [M, H, A], up to what is the same for all of them; [M].

        noise: not read; the policy's actions come from `shared`: [Q] that choose its critics, and [H+1, A].
        """
        m, Q, hidden = self.planned, self.config.model.num_critics, self.config.model.mlp_dim
        shares, distribution = start.split([(1 + Q) * hidden, start.shape[-1] - (1 + Q) * hidden], -1)
        shares = shares.to(m.dtype).unflatten(-1, (1 + Q, hidden)).movedim(1, 0)  # [1 + Q, M, hidden]
        heads, draws = sample_pair(shared[:Q]), shared[Q:].view(-1, self.action_dim)
        critics = m.critic.select(heads)
        q = lowest(critics.end(shares[1 + heads], actions[:, 0]))  # Q(z_0, a_0), [M]
        z = with_action(m.dynamics, shares[0], actions[:, 0])  # z_1
        half = distribution.shape[-1] // 2
        score = self.telescoped if self.config.plan_score == "telescoped" else self.algorithm_1
        return score(q, z, (distribution[:, :half], distribution[:, half:]), critics, actions, draws)

    def telescoped(
        self, q: Tensor, z: Tensor, first: tuple[Tensor, Tensor], critics: Heads, actions: Tensor, draws: Tensor
    ) -> Tensor:
        """Q(z_0, a_0) + sum_{0<t<H} gamma^t [Q(z_t, a_t) - V(z_t)] - beta sum gamma^t log pi_t, [M].

        Args:
            q: Q(z_0, a_0) [M]. z: z_1 [M, Z]. first: the policy's mean and log_std at z_0, or empty if nothing asks.
            critics: the pair whose minimum is Q. draws: [H+1, A] noise of the policy's action at each step.
        """
        c, planned = self.config, self.config.planned_log_prob
        total = q - c.entropy_coef * self.planned_log_prob(*first, actions[:, 0]) if planned else q
        for t in range(1, actions.shape[1]):
            distribution = self.planned.policy(z)
            action, log_prob = self.sample(*distribution, draws[t])
            share = critics.begin(z)  # Why two calls: on AMX 1,024 rows take twice as long as 2 x 512
            q, q_policy = lowest(critics.end(share, actions[:, t])), lowest(critics.end(share, action))
            gain = q - q_policy  # Q(z, a) - V(z) - beta log pi of the action in V(z)
            if planned:
                gain = gain + c.entropy_coef * (log_prob - self.planned_log_prob(*distribution, actions[:, t]))
            total = total + c.discount**t * gain
            if t + 1 < actions.shape[1]:
                z = self.planned.next(z, actions[:, t])
        return total

    def algorithm_1(
        self, q: Tensor, z: Tensor, first: tuple[Tensor, Tensor], critics: Heads, actions: Tensor, draws: Tensor
    ) -> Tensor:
        """sum_t gamma^t [Q(z_t, a_t) - gamma V(z_{t+1}) - beta log pi_t] + gamma^H V(z_H), [M]; arguments of `telescoped`."""
        c, H, total = self.config, actions.shape[1], torch.zeros_like(q)
        distribution, (_, log_prob) = first, self.sample(*first, draws[0])
        for t in range(H):
            if c.planned_log_prob:
                log_prob = self.planned_log_prob(*distribution, actions[:, t])
            distribution = self.planned.policy(z)  # at z_{t+1}
            action, next_log_prob = self.sample(*distribution, draws[t + 1])
            value = lowest(critics(join(z, action))) - c.entropy_coef * next_log_prob
            total = total + c.discount**t * (q - c.discount * value - c.entropy_coef * log_prob)
            if t + 1 < H:
                q, log_prob = lowest(critics(join(z, actions[:, t + 1]))), next_log_prob
                z = self.planned.next(z, actions[:, t + 1])
        return total + c.discount**H * value  # type: ignore[possibly-undefined]

    def planned_log_prob(self, mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
        """log pi [M] of planned actions [M, A]."""
        before = torch.atanh(action.clamp(-1 + self.config.action_margin, 1 - self.config.action_margin))
        return self.log_prob_scale * gaussian_log_prob(mean, log_std, before) - tanh_log_det(before).sum(-1)

    # -- what the critics say of rewards ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def decoded_reward(self, batch: Batch, num_actions: int = 16) -> Tensor:
        """r(z, a) = Q(z, a) - gamma E V(z') of every step (Section 5.2), [B, H]; z' = d(z, a). The same for the same batch.

        num_actions: samples of the policy for V. Q is the mean of all critics, in V too.
        """
        batch, c, m = batch.to(self.device), self.config, self.model
        generator = torch.Generator(self.device).manual_seed(0)
        noise = torch.randn(num_actions, *batch.action.shape, generator=generator, device=self.device)
        with self.autocast():
            z = m.encode(batch.obs[:, :-1])
            z_next = m.next(z, batch.action)
            action, log_prob = self.sample(*m.policy(z_next), noise)
            v = torch.stack([m.q(z_next, one).mean(0) for one in action]) - c.entropy_coef * log_prob
            return m.q(z, batch.action).mean(0) - c.discount * ~batch.terminated * v.mean(0)


def lowest(values: Tensor) -> Tensor:
    """Critics' outputs [k, ..., 1] -> [...] the lowest, in float32."""
    return values.float().squeeze(-1).amin(0)
