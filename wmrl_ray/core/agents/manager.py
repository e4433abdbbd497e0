"""The Manager: IQL-TD-MPC over steps of k environment steps, whose plans are intents for any Worker (Section V).

Chitnis, Xu, Hashemi, Lehnert, Dogan, Zhu, Delalleau: IQL-TD-MPC: Implicit Q-Learning for Hierarchical Model Predictive Control.

What changes against `iql_tdmpc.py`, its sibling: a window of kH environment steps becomes H Manager steps (`coarse`); the
action of a Manager step is what an inverse dynamics model reads from its two ends (Eq. 4), trained by the total loss' gradient
through the action; actions are discrete, groups of one-hot vectors with straight-through gradients, and so is the policy; an
intent is the step in latent space that an action predicts (Eq. 5); a decoder, which nothing else learns from, shows them.

Unspecified in the paper, decided here:
- 8 groups of 8 classes with 1% of the uniform distribution mixed in (Director, which the paper follows); sampled for the
  losses, the most likely class for intents; ln pi is the sum over the groups, and the policy's targets carry no gradient;
- b reads the online encoder's latents of the two observations and sends gradient into it;
- the discount is gamma for each Manager step (the text), not gamma^k;
- a step that contains a terminal one ends there: its reward is what came before, its last state the terminal one, no bootstrap;
  a step that the episode's cut or end leaves incomplete counts for nothing;
- a step whose terminal observation the data do not have is left out of L_f alone: its action leads to the last known one;
- the rest as in `iql_tdmpc.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Metrics, soft_update
from wmrl_ray.core.agents.latent import LatentAgent, LatentAgentConfig
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import advantage_weight, expectile_loss, masked_mean, one_hot_sample, time_weights, weight_metrics
from wmrl_ray.core.models.latent import LatentModel, LatentModelConfig, TargetNetworks
from wmrl_ray.core.nets import Normalizer, mlp
from wmrl_ray.core.planner import PlanConfig


def policy_samples_only() -> PlanConfig:
    """H = 4 and n_r = 0: the best of the policy's samples, without refinement."""
    return PlanConfig(horizon=4, num_samples=0, num_policy=512, num_elites=64, iterations=1)


@dataclass(frozen=True)
class Config(LatentAgentConfig):
    plan: PlanConfig = field(default_factory=policy_samples_only)
    skip: int = 8  # k, environment steps in a step of the Manager
    num_groups: int = 8
    num_classes: int = 8
    uniform_mix: float = 0.01
    lr: float = 3e-4
    expectile: float = 0.7  # tau of Eq. 1
    beta: float = 3.0  # inverse temperature of Eq. 3
    largest_weight: float = 100.0  # of exp(beta A)
    critic_loss: Literal["tdmpc", "iql"] = "tdmpc"  # bootstrap from Q and pi, or from V
    loss_clip: float = 1e4  # of each model loss of each window

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.plan.num_samples == 0,
            f"plan.num_samples = {self.plan.num_samples}; a Manager plans with its policy's samples only (one-hot), so it is 0",
        )
        check(self.skip >= 1, f"skip = {self.skip}; it must be at least 1")
        check(self.num_groups >= 1, f"num_groups = {self.num_groups}; it must be at least 1")
        check(self.num_classes >= 2, f"num_classes = {self.num_classes}; it must be at least 2")
        check(0 < self.uniform_mix < 1, f"uniform_mix = {self.uniform_mix}; it must be in (0, 1)")
        check(0 < self.expectile < 1, f"expectile = {self.expectile}; it must be in (0, 1)")

    @property
    def window(self) -> int:
        return self.skip * self.plan.horizon

    @property
    def abstract_dim(self) -> int:
        """A of the Manager: the length of an abstract action."""
        return self.num_groups * self.num_classes


class ManagerModel(LatentModel):
    """The latent model with an inverse dynamics model b and a decoder."""

    def __init__(self, config: LatentModelConfig, obs_dim: int, action_dim: int):
        super().__init__(config, obs_dim, action_dim, actor_dim=action_dim, with_value=True)
        z, hidden = config.latent_dim, [config.hidden_dim] * 2
        self.inverse_dynamics = mlp(2 * z, hidden, action_dim)
        self.decoder = mlp(z, hidden, obs_dim)
        self.obs_scale = Normalizer(obs_dim)  # the decoder works in units of the dataset's spread

    def decode(self, z: Tensor) -> Tensor:
        """z [..., Z] -> obs [..., O]."""
        return self.decoder(z).float() * self.obs_scale.std + self.obs_scale.mean


def coarse(batch: Batch, action: Tensor, k: int, reward: Tensor) -> Batch:
    """Windows of kH environment steps as windows of H Manager steps with the abstract actions [B, H, A].

    The rewards [B, kH] are summed over a step's k, or up to a terminal one. `valid` may be false from t = 0 on.
    """
    B, H = action.shape[:2]
    valid, terminated = batch.valid.view(B, H, k), batch.terminated.view(B, H, k) & batch.valid.view(B, H, k)
    ends = terminated.any(-1)
    return Batch(
        obs=batch.obs[:, ::k],  # after a terminal step the window repeats the terminal observation
        action=action,
        reward=(reward.view(B, H, k) * valid).sum(-1),
        terminated=ends,
        valid=valid[..., -1] | ends,
        next_obs_known=None if batch.next_obs_known is None else batch.next_obs_known.view(B, H, k).all(-1),
    )


class Manager(LatentAgent):
    """Plans abstract actions; `intent` and `act_intent` turn them into what a Worker sees."""

    Config = Config
    config: Config
    model: ManagerModel
    acts = False
    compiled_functions = (*LatentAgent.compiled_functions, "model_loss", "value_loss", "actor_loss", "decoder_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        self.action_dim = self.config.abstract_dim  # the environment's own actions are not read
        model = ManagerModel(self.config.model, self.obs_dim, self.action_dim)
        return model, TargetNetworks(model)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m = self.model
        assert m.value_head is not None
        world = [m.encoder, m.dynamics, m.reward_head, m.critic, m.inverse_dynamics]
        groups = {"model": world, "value": [m.value_head], "actor": [m.actor], "decoder": [m.decoder]}
        return {
            name: torch.optim.Adam([p for module in modules for p in module.parameters()], lr=self.config.lr, fused=True)
            for name, modules in groups.items()
        }

    # -- abstract actions -----------------------------------------------------------------------------------------------------

    def log_probs(self, logits: Tensor) -> Tensor:
        """[..., A] -> log-probabilities [..., G, C] with the uniform distribution mixed in."""
        c = self.config
        probs = logits.float().unflatten(-1, (c.num_groups, c.num_classes)).softmax(-1)
        return ((1 - c.uniform_mix) * probs + c.uniform_mix / c.num_classes).log()

    def inverse(self, z: Tensor, z_later: Tensor, noise: Tensor | None = None) -> Tensor:
        """a = b(z_t, z_{t+k}) (Eq. 4) [..., A]: a sample with straight-through gradient for noise [..., A], else the mode."""
        log_probs = self.log_probs(self.model.inverse_dynamics(torch.cat([z, z_later], -1)))
        if noise is None:
            return F.one_hot(log_probs.argmax(-1), self.config.num_classes).float().flatten(-2)
        probs = log_probs.exp()
        return (one_hot_sample(log_probs, noise.view_as(log_probs)) + probs - probs.detach()).flatten(-2)

    def sample(self, actor: Tensor, noise: Tensor) -> Tensor:
        log_probs = self.log_probs(actor)
        return one_hot_sample(log_probs, noise.view_as(log_probs)).flatten(-2)

    # -- losses ---------------------------------------------------------------------------------------------------------------

    def model_loss(self, batch: Batch, noise: Tensor, action_noise: Tensor) -> tuple[Tensor, Batch, Tensor, Metrics]:
        """L = c_f L_f + c_R L_R + c_Q L_Q along a latent rollout of H Manager steps, under the inverse dynamics' actions.

        Args:
            batch: windows of kH environment steps.
            noise: [B, H, A] standard normal, for the policy's next action in TD-MPC's target.
            action_noise: [B, H, A] standard normal, for the inverse dynamics' samples.

        Returns:
            loss; the Manager's batch, without gradient; zs [B, H+1, Z], the rollout, detached; info.
        """
        c = self.config
        z_true = self.model.encode(batch.obs[:, :: c.skip])  # [B, H+1, Z]
        action = self.inverse(z_true[:, :-1], z_true[:, 1:], action_noise)
        steps = coarse(batch, action, c.skip, self.scaled(batch.reward))
        zs = self.model.rollout(z_true[:, 0], action)  # [B, H+1, Z]
        with torch.no_grad():
            z_target = self.target.encode(steps.obs[:, 1:])  # [B, H, Z]
            td_target = self.td_target(steps, z_true[:, 1:], noise)  # [B, H]
        reward = self.model.reward(zs[:, :-1], action)  # [B, H]
        q = self.model.q(zs[:, :-1], action)  # [Q, B, H]

        weights = time_weights(c.rho, steps.horizon, zs.device) * steps.valid  # [B, H]

        def window_loss(error: Tensor) -> Tensor:
            return (weights * error).sum(1).clamp(max=c.loss_clip).mean()

        consistency = window_loss(steps.observed * (zs[:, 1:] - z_target).float().square().mean(-1))  # L_f
        reward_loss = window_loss((reward.float() - steps.reward).square())  # L_R
        critic = window_loss((q.float() - td_target).square().sum(0))  # L_Q, or Eq. 2
        loss = c.consistency_coef * consistency + c.reward_coef * reward_loss + c.critic_coef * critic
        info = {
            "loss/consistency": consistency,
            "loss/reward": reward_loss,
            "loss/critic": critic,
            "loss/model": loss,
            "q/mean": masked_mean(q.float().mean(0), steps.valid),
            "q/target_mean": masked_mean(td_target, steps.valid),
        }
        learned_from = Batch(steps.obs, action.detach(), steps.reward, steps.terminated, steps.valid)
        # Why 1/H: the public TD-MPC code scales the gradient so before it clips
        return loss / steps.horizon, learned_from, zs.detach(), {name: value.detach() for name, value in info.items()}

    def td_target(self, steps: Batch, z_next: Tensor, noise: Tensor) -> Tensor:
        """r + gamma Q_target(z', pi(z')) (L_Q), or r + gamma V(z') (Eq. 2); [B, H]. No bootstrap after a terminal step."""
        if self.config.critic_loss == "iql":
            next_value = self.model.value(z_next).float()
        else:
            next_value = self.target.q(z_next, self.policy(z_next, noise)).float().amin(0)
        return steps.reward + self.config.gamma * ~steps.terminated * next_value

    def value_loss(self, zs: Tensor, action: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """L_V (Eq. 1): V follows an upper expectile of the target critics' minimum, over the data's abstract actions.

        Args:
            zs: [B, H, Z] latents, without gradient. action: [B, H, A]. valid: [B, H], the steps that count.

        Returns:
            loss; advantage A = Q_target - V [B, H], without gradient; info.
        """
        with torch.no_grad():
            q_target = self.target.q(zs, action).float().amin(0)  # [B, H]
        v = self.model.value(zs).float()
        loss = self._over_rollout(expectile_loss(q_target - v, self.config.expectile), valid)
        advantage = q_target - v.detach()
        info = {
            "loss/value": loss,
            "v/mean": masked_mean(v, valid),
            "advantage/mean": (mean := masked_mean(advantage, valid)),
            "advantage/std": masked_mean((advantage - mean).square(), valid).sqrt(),
        }
        return loss, advantage, {name: value.detach() for name, value in info.items()}

    def actor_loss(self, zs: Tensor, action: Tensor, advantage: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """L_pi (Eq. 3): the likelihood of the abstract actions [B, H, A] at zs [B, H, Z], weighted by exp(beta A) [B, H]."""
        weight = advantage_weight(advantage, self.config.beta, self.config.largest_weight)
        log_probs = self.log_probs(self.model.actor(zs))
        log_prob = (log_probs * action.view_as(log_probs)).sum((-2, -1))  # [B, H]
        loss = -self._over_rollout(weight * log_prob, valid)
        info = {
            "loss/actor": loss,
            "actor/log_prob": masked_mean(log_prob, valid),
            **weight_metrics(weight, self.config.largest_weight, valid),
        }
        return loss, {name: value.detach() for name, value in info.items()}

    def decoder_loss(self, obs: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """Mean squared error of the decoded latents of obs [B, H+1, O] where valid [B, H+1], in units of the data's spread."""
        with torch.no_grad():
            z = self.model.encode(obs)
        error = (self.model.decoder(z).float() - self.model.obs_scale(obs)).square().mean(-1)
        loss = masked_mean(error, valid)
        return loss, {"loss/decoder": loss.detach()}

    def _over_rollout(self, error: Tensor, valid: Tensor) -> Tensor:
        """[B, H] -> the mean over the batch of the average over time that weighs valid step t by rho^t and others by 0."""
        weights = time_weights(self.config.rho, error.shape[1], error.device)
        return (weights / weights.sum() * valid * error).sum(1).mean()

    def update(self, batch: Batch) -> Metrics:
        batch = batch.to(self.device)
        B, H, A = len(batch.obs), self.config.plan.horizon, self.action_dim
        noise = torch.randn(2, B, H, A, generator=self.update_generator, device=self.device)
        with self.autocast():
            loss, steps, zs, info = self.model_loss(batch, noise[0], noise[1])
            steps, zs, info = self.kept(steps, zs, info)
            zs = zs[:, :-1]  # the latents at which there is an abstract action
            value_loss, advantage, value_info = self.value_loss(zs, steps.action, steps.valid)
            advantage, value_info = self.kept(advantage, value_info)
            actor_loss, actor_info = self.actor_loss(zs, steps.action, advantage, steps.valid)
            (actor_info,) = self.kept(actor_info)
            is_real = torch.cat([batch.valid[:, :1], steps.valid], 1)  # [B, H+1]
            decoder_loss, decoder_info = self.decoder_loss(steps.obs, is_real)
        info["grad_norm/model"] = self.optimize("model", loss, self.config.grad_clip)
        info["grad_norm/value"] = self.optimize("value", value_loss, self.config.grad_clip)
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, self.config.grad_clip)
        info["grad_norm/decoder"] = self.optimize("decoder", decoder_loss, self.config.grad_clip)
        self.num_updates += 1
        if self.num_updates % self.config.target_every == 0:
            soft_update(self.target.encoder, self.model.encoder, self.config.tau)
            soft_update(self.target.critic, self.model.critic, self.config.tau)
        return info | value_info | actor_info | decoder_info

    # -- intents: differences of nearby latents, so in float32 whatever the precision of the rest ------------------------------

    @property
    def intent_dim(self) -> int:
        return self.config.model.latent_dim

    @torch.no_grad()
    def intent(self, obs: Tensor, obs_later: Tensor) -> Tensor:
        """g_t = f(z_t, b(z_t, z_{t+k})) - z_t (Eq. 5) [..., Z] of the data: obs and the observation k steps later [..., O]."""
        z, z_later = self.model.encode(obs), self.model.encode(obs_later)
        return self.model.next(z, self.inverse(z, z_later)) - z

    @torch.no_grad()
    def act_intent(self, obs: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """g_t [W, Z] for the abstract actions planned at obs [W, O], the planner's noise being `generator`'s (or one per row).

        Why no plan_state: a warm start moves the random samples of a planner, and a Manager's has none.
        """
        is_first = torch.ones(len(obs), dtype=torch.bool, device=obs.device)
        action, _, _ = self.plan(obs, None, is_first, generator)
        z = self.model.encode(obs)
        return self.model.next(z, action) - z

    @torch.no_grad()
    def decode_intent(self, obs: Tensor, intent: Tensor) -> Tensor:
        """The observation [..., O] that an intent [..., Z] at obs [..., O] points to."""
        return self.model.decode(self.model.encode(obs).float() + intent)
