"""Conservative Q-learning, CQL(H) on soft actor-critic.

Kumar, Zhou, Tucker, Levine: Conservative Q-Learning for Offline Reinforcement Learning (2020); its Eq. 4 with the entropy
regulariser, importance sampling over random and policy actions, and optionally its Lagrangian form (Section 4).

Hyper-parameters are CORL's, as in the CQL column of Table II of the IQL-TD-MPC paper: CORL's files of its time (57e4037) have
the defaults below (no Lagrange multiplier, alpha 10, no clip, policy lr 3e-5), on antmaze with `reward_shift` -1, and on maze2d
`lagrange` with `action_gap` 5, as today. CORL's files of today differ on
- antmaze: rewards 10 r - 5, `lagrange` with `action_gap` 0.8, `conservative_coef` 5, `clip_difference` -200,
  `max_target_backup`, `critic_layers` 5, `actor_lr` 1e-4, observations not normalised.

Deviates:
- The last layers of actor and critics start small (gain 0.01), as in CORL's files of today; in those of 57e4037 like all others
  (gain sqrt 2), so that Q starts with a spread of 0.2 and actions near 0.2 in size.
- Both critics have `critic_layers` hidden layers. Both public forks of CORL forget to pass the number to the second critic, so
  that the antmaze files of today train one critic of 5 layers beside one of 3.
- Switches that every CORL file of maze2d, antmaze and gym leaves at one value are not here: no entropy in the backup,
  importance sampling, a learned entropy temperature, no behaviour cloning at first.
- The policy's network runs once per state; samples for the target and for the regulariser differ in their noise only. Same
  distribution, a tenth of the work.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics, soft_update
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import masked_mean, squashed_sample_log_prob
from wmrl_ray.core.nets import Linear, LinearReLU, Normalizer, ReLU, mlp, orthogonal_init

ROWS = 2048  # of a critic's input at a time on a CPU: their activations stay in the cache between two layers
LARGEST_MULTIPLIER = 1e6


@dataclass(frozen=True)
class Config(AgentConfig):
    hidden_dim: int = 256
    actor_layers: int = 3  # hidden layers
    critic_layers: int = 3
    lr: float = 3e-4  # of the critics and the Lagrange multiplier
    actor_lr: float = 3e-5  # of the policy and the entropy temperature
    gamma: float = 0.99
    tau: float = 0.005  # of the target critics, at every update
    conservative_coef: float = 10.0  # alpha of Eq. 4
    num_actions: int = 10  # of each kind (random, pi(s), pi(s')) in the log-sum-exp
    lagrange: bool = False  # learn alpha's multiplier so that the difference stays at `action_gap`
    action_gap: float = 5.0  # tau of the Lagrangian form; CORL's for maze2d
    clip_difference: float | None = None  # the lowest log-sum-exp minus Q that counts, of each state
    max_target_backup: bool = False  # bootstrap from the best of `num_actions` actions instead of from one
    reward_scale: float = 1.0
    reward_shift: float = 0.0  # rewards become scale * r + shift
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    normalize_obs: bool = True
    grad_clip: float | None = None  # CORL does not clip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("actor_layers", "critic_layers", "num_actions"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        check(0 <= self.gamma <= 1, f"gamma = {self.gamma}; it must be in [0, 1]")


class Actor(nn.Module):
    """obs [..., O] -> mean, log_std [..., A] of the Gaussian before the tanh; log_std = scale * raw + offset, both learned."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config):
        super().__init__()
        self.body = mlp(obs_dim, [config.hidden_dim] * config.actor_layers, 2 * action_dim, ReLU)
        nn.init.xavier_uniform_(self.body[-1].weight, gain=1e-2)  # type: ignore[arg-type]
        nn.init.zeros_(self.body[-1].bias)  # type: ignore[arg-type]
        self.scale, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(-1.0))
        self.bounds = (config.log_std_min, config.log_std_max)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(obs).float().chunk(2, -1)
        return mean, (self.scale * raw + self.offset).clamp(*self.bounds)


class Critic(nn.Module):
    """Q of K actions in each state: obs [..., O], action [..., K, A] -> [..., K]."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config):
        super().__init__()
        sizes = [obs_dim + action_dim, *[config.hidden_dim] * config.critic_layers]
        hidden = [LinearReLU(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*hidden, Linear(sizes[-1], 1))
        orthogonal_init(self.layers, math.sqrt(2))
        orthogonal_init(self.layers[-1], 1e-2)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        pairs = torch.cat([obs[..., None, :].expand(*action.shape[:-1], -1), action], -1).flatten(0, -2)
        parts = pairs.split(ROWS if obs.device.type == "cpu" else len(pairs))
        return torch.cat([self.layers(part) for part in parts]).float().view(action.shape[:-1])


class Critics(nn.ModuleList):
    """The twins: [..., O], [..., K, A] -> [Q, ..., K]."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.stack([critic(obs, action) for critic in self])


class Networks(nn.Module):
    """log_temperature: of the entropy. log_multiplier: of alpha, moved in the Lagrangian form only."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config):
        super().__init__()
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()
        self.actor = Actor(obs_dim, action_dim, config)
        self.critic = Critics([Critic(obs_dim, action_dim, config) for _ in range(2)])
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.log_multiplier = nn.Parameter(torch.tensor(1.0))


class CQL(Agent):
    """A soft actor-critic whose critics are pushed down on actions that the data does not take."""

    Config = Config
    config: Config
    model: Networks
    target: Critics
    compiled_functions = ("critic_loss", "actor_loss")

    def build(self) -> tuple[nn.Module, nn.Module]:
        model = Networks(self.obs_dim, self.action_dim, self.config)
        return model, copy.deepcopy(model.critic)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        m, c = self.model, self.config
        groups = {
            "temperature": ([m.log_temperature], c.actor_lr),
            "actor": (list(m.actor.parameters()), c.actor_lr),
            "critic": (list(m.critic.parameters()), c.lr),
        }
        if c.lagrange:
            groups["multiplier"] = ([m.log_multiplier], c.lr)
        return {name: torch.optim.Adam(params, lr=lr, fused=True) for name, (params, lr) in groups.items()}

    def critic_loss(self, batch: Batch, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """The TD error of both critics, and the conservative term of Eq. 4: alpha (log sum_a exp Q(s, a) - Q(s, a_data)).

        The sum is estimated by importance sampling from `num_actions` = K actions each of the uniform density, pi(s), pi(s').

        Args:
            noise: [B, H, 2K + (K if max_target_backup else 1), A] standard normal: for pi(s), for pi(s'), for the target.
            uniform: [B, H, K, A] in [-1, 1].

        Returns:
            loss; difference [Q], the mean of the bracket above; info.
        """
        c, m, K = self.config, self.model, self.config.num_actions
        obs = m.normalizer(batch.obs)
        with torch.no_grad():
            mean, log_std = m.actor(obs)  # [B, H+1, A]
            now, next = ((mean[:, at, None], log_std[:, at, None]) for at in (slice(None, -1), slice(1, None)))
            noise_now, noise_next, noise_target = noise.split([K, K, noise.shape[-2] - 2 * K], -2)
            action_now, log_prob_now = squashed_sample_log_prob(*now, noise_now)  # [B, H, K, A], [B, H, K]
            action_next, log_prob_next = squashed_sample_log_prob(*next, noise_next)
            td_target = self.td_target(batch, obs[:, 1:], squashed_sample_log_prob(*next, noise_target)[0])
        candidates = torch.cat([batch.action[..., None, :], uniform, action_next, action_now], -2)
        q, q_uniform, q_next, q_now = m.critic(obs[:, :-1], candidates).split([1, K, K, K], -1)  # [Q, B, H, K]
        q = q.squeeze(-1)  # of the data's action

        log_density = -self.action_dim * math.log(2.0)  # of the uniform actions
        weighted = torch.cat([q_uniform - log_density, q_next - log_prob_next, q_now - log_prob_now], -1)
        bracket = weighted.logsumexp(-1) - q  # [Q, B, H]
        if c.clip_difference is not None:
            bracket = bracket.clamp(min=c.clip_difference)
        difference = torch.stack([masked_mean(one, batch.valid) for one in bracket])
        td = sum(masked_mean((one - td_target).square(), batch.valid) for one in q)

        conservative = c.conservative_coef * difference.sum()
        if c.lagrange:
            conservative = self.multiplier().detach() * c.conservative_coef * (difference - c.action_gap).sum()
        info = {
            "loss/td": td,
            "loss/conservative": conservative,
            "q/mean": masked_mean(q.mean(0), batch.valid),
            "q/target_mean": masked_mean(td_target, batch.valid),
            "q/policy_mean": masked_mean(q_now.mean((0, -1)), batch.valid),
            "q/uniform_mean": masked_mean(q_uniform.mean((0, -1)), batch.valid),
            "q/difference": difference.mean(),
        }
        return td + conservative, difference, {name: value.detach() for name, value in info.items()}

    def td_target(self, batch: Batch, next_obs: Tensor, next_action: Tensor) -> Tensor:
        """r + gamma min_q Q_target(s', a'), best of the K actions given; [B, H]. No bootstrap after a terminal step."""
        c = self.config
        next_q = self.target(next_obs, next_action).amin(0).amax(-1)
        return c.reward_scale * batch.reward + c.reward_shift + c.gamma * ~batch.terminated * next_q

    def multiplier(self) -> Tensor:
        return self.model.log_multiplier.exp().clamp(max=LARGEST_MULTIPLIER)

    def multiplier_loss(self, difference: Tensor) -> Tensor:
        """Lagrangian form: the multiplier of alpha grows while the difference [Q] exceeds the gap."""
        c = self.config
        return -self.multiplier() * c.conservative_coef * (difference.detach() - c.action_gap).mean()

    def actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Metrics]:
        """Soft actor-critic: mean over states of temperature * log pi(a|s) - min_q Q(s, a), a ~ pi(s).

        Args:
            noise: [B, H, A] standard normal.

        Returns:
            loss; the mean of log pi, detached; info.
        """
        obs = self.model.normalizer(batch.obs[:, :-1])
        mean, log_std = self.model.actor(obs)
        action, log_prob = squashed_sample_log_prob(mean, log_std, noise)
        q = self.model.critic(obs, action[..., None, :]).amin(0).squeeze(-1)
        temperature = self.model.log_temperature.detach().exp()
        loss = masked_mean(temperature * log_prob - q, batch.valid)
        log_prob = masked_mean(log_prob.detach(), batch.valid)
        return loss, log_prob, {"loss/actor": loss.detach(), "actor/log_prob": log_prob, "actor/temperature": temperature}

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """The temperature falls while the entropy, -log_prob, is above its aim of -A."""
        return -self.model.log_temperature * (log_prob - self.action_dim)

    def update(self, batch: Batch) -> Metrics:
        batch, c = batch.to(self.device), self.config
        B, H, A = batch.action.shape
        num_noise = 2 * c.num_actions + (c.num_actions if c.max_target_backup else 1)
        noise = torch.randn(B, H, 1 + num_noise, A, generator=self.update_generator, device=self.device)
        uniform = torch.rand(B, H, c.num_actions, A, generator=self.update_generator, device=self.device) * 2 - 1
        with self.autocast():  # all losses first: each sees the parameters of the others before their step
            actor_loss, log_prob, info = self.actor_loss(batch, noise[..., 0, :])
            log_prob, info = self.kept(log_prob, info)
            critic_loss, difference, critic_info = self.critic_loss(batch, noise[..., 1:, :], uniform)
        self.optimize("temperature", self.temperature_loss(log_prob), max_norm=None)
        info["grad_norm/actor"] = self.optimize("actor", actor_loss, c.grad_clip)
        if c.lagrange:
            info["critic/multiplier"] = self.multiplier().detach()
            self.optimize("multiplier", self.multiplier_loss(difference), None)
        info["grad_norm/critic"] = self.optimize("critic", critic_loss, c.grad_clip)
        self.num_updates += 1
        soft_update(self.target, self.model.critic, c.tau)
        return info | critic_info

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
        with self.autocast():
            mean, log_std = self.model.actor(self.model.normalizer(obs))
        if not explore:
            return torch.tanh(mean), None, {}
        noise = torch.randn(mean.shape, generator=self.act_generator, device=self.device)
        return squashed_sample_log_prob(mean, log_std, noise)[0], None, {}
