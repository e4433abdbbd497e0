"""Decision Transformer: actions as a sequence model's answer to the return that is wanted.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch: Decision Transformer: Reinforcement Learning via Sequence
Modeling (2021). A causal transformer reads (return-to-go, observation, action) of the last K steps and predicts each action
from the tokens up to its observation.

Hyper-parameters are CORL's, as in the DT column of Table II of the IQL-TD-MPC paper. By task (100k updates each):
batch 64 and lr 1e-4 on antmaze, 4096 and 8e-4 on maze2d and gym; `reward_scale` 1 on mazes, 0.001 on gym; `target_return` 12000
or 6000 (halfcheetah), 3600 or 1800 (hopper), 5000 or 2500 (walker2d), 280 or 140 (maze2d), 1 or 0.5 (antmaze).

Windows start at any step, so that an episode is drawn in proportion to its length, and are padded after its end. No mask hides
the padding from attention: it comes after the steps that count, and what comes later is not seen anyway.

Deviates:
- Observations are divided by std + 1e-3, as for the other agents here; CORL adds 1e-6 for this one.
- An episode may be longer than the table of time embeddings (`episode_len` + `window` entries): later steps share the last one.
  CORL stops evaluating there.
- The projections to queries, keys and values start from the same normal distribution as all else; CORL's, inside torch's
  attention module, keep its Xavier initialisation.
- Dropout masks are drawn from the agent's own stream before the forward pass, so that runs resume exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmrl_ray.config import check
from wmrl_ray.core.agents.base import Agent, AgentConfig, Metrics
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import masked_mean
from wmrl_ray.core.nets import Linear, Normalizer


@dataclass(frozen=True)
class Config(AgentConfig):
    needs_return_to_go: ClassVar[bool] = True

    sequence: int = 20  # K, steps of the context
    embedding_dim: int = 128
    num_layers: int = 3
    num_heads: int = 1
    episode_len: int = 1000  # steps with a time embedding of their own
    dropout: float = 0.1  # of embeddings, attention weights and residuals
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: int = 10_000  # updates until lr is reached, linearly
    grad_clip: float | None = 0.25
    reward_scale: float = 0.001  # of returns-to-go
    target_return: float = 12_000.0  # asked for at the start of an episode, in the environment's own units
    # CORL's loss divides by B K, padding and all: short windows count for less. The default, since the papers' figures have it.
    average_over_padding: bool = True
    normalize_obs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sequence", "embedding_dim", "num_layers", "num_heads", "episode_len", "warmup"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        check(
            self.embedding_dim % self.num_heads == 0,
            f"num_heads = {self.num_heads}; it must divide embedding_dim = {self.embedding_dim}",
        )
        check(0 <= self.dropout < 1, f"dropout = {self.dropout}; it must be in [0, 1)")

    @property
    def window(self) -> int:
        return self.sequence


Masks = Iterator[Tensor] | None  # factors of dropout in the order of use, 0 or 1 / (1 - p); None: no dropout

ALL, OBS_TOKENS = slice(None), slice(1, None, 3)


def drop(x: Tensor, masks: Masks) -> Tensor:
    return x if masks is None else x * next(masks)


def drop_into(x: Tensor, y: Tensor, masks: Masks) -> Tensor:
    """x + drop(y), in one pass."""
    return x + y if masks is None else torch.addcmul(x, y, next(masks))


class Block(nn.Module):
    """Causal self-attention, then a feed-forward network, each behind a LayerNorm and around a residual: [B, L, D] -> same."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)
        self.mlp = nn.Sequential(Linear(dim, 4 * dim), nn.GELU(), Linear(4 * dim, dim))

    def forward(self, x: Tensor, masks: Masks = None, read: slice = ALL) -> Tensor:
        """read: the places whose output is wanted; nothing is computed for the others but what these attend to."""
        normed, x = self.norm1(x), x[:, read]
        x = drop_into(x, self.out(self.attention(normed, masks, read)), masks)
        return drop_into(x, self.mlp(self.norm2(x)), masks)

    def attention(self, x: Tensor, masks: Masks, read: slice) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, L, D / heads]
            for part in (self.query(x[:, read]), *self.key_value(x).chunk(2, -1))
        )
        place = torch.arange(x.shape[1], device=x.device)
        seen = place <= place[read, None]  # [L_read, L]
        if masks is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:  # Why by hand: torch's takes dropout from the global stream only
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            y = drop(scores.masked_fill(~seen, -torch.inf).softmax(-1), masks) @ v
        return y.transpose(1, 2).flatten(-2)


class Transformer(nn.Module):
    """Tokens R_0, s_0, a_0, R_1, ... of K steps, each with the embedding of its time; actions are read at the tokens s_t."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config):
        super().__init__()
        D = config.embedding_dim
        self.normalizer = Normalizer(obs_dim) if config.normalize_obs else nn.Identity()
        self.embed_return, self.embed_obs, self.embed_action = Linear(1, D), Linear(obs_dim, D), Linear(action_dim, D)
        self.embed_time = nn.Embedding(config.episode_len + config.sequence, D)
        self.norm_in, self.norm_out = nn.LayerNorm(D), nn.LayerNorm(D)
        self.blocks = nn.ModuleList(Block(D, config.num_heads) for _ in range(config.num_layers))
        self.head = Linear(D, action_dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, obs: Tensor, action: Tensor, return_to_go: Tensor, time: Tensor, masks: Masks = None) -> Tensor:
        """Predicted actions [B, K, A] in [-1, 1].

        Args:
            obs: [B, K, O]. action: [B, K, A]; the one at step t is seen by later steps only.
            return_to_go: [B, K], scaled. time: [B] i64, of the first step.
            masks: of dropout.
        """
        B, K, _ = obs.shape
        steps = time[:, None] + torch.arange(K, device=time.device)
        at = self.embed_time(steps.clamp(max=self.embed_time.num_embeddings - 1))
        tokens = [self.embed_return(return_to_go[..., None]), self.embed_obs(self.normalizer(obs)), self.embed_action(action)]
        x = torch.stack([token + at for token in tokens], 2).view(B, 3 * K, -1)
        x = drop(self.norm_in(x), masks)
        for block in self.blocks[:-1]:
            x = block(x, masks)
        x = self.blocks[-1](x, masks, OBS_TOKENS)
        return torch.tanh(self.head(self.norm_out(x)).float())


class DT(Agent):
    """Predicts the action that the data takes, given the return that followed. Acts by asking for `target_return`."""

    Config = Config
    config: Config
    model: Transformer
    compiled_functions = ("actor_loss",)

    def build(self) -> tuple[nn.Module, None]:
        return Transformer(self.obs_dim, self.action_dim, self.config), None

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        c = self.config
        return {"actor": torch.optim.AdamW(self.model.parameters(), lr=c.lr, weight_decay=c.weight_decay, fused=True)}

    def draw_masks(self, B: int, K: int) -> list[Tensor] | None:
        """Dropout's factors for one forward pass, in the order of use; one draw for all of them."""
        c = self.config
        if c.dropout == 0:
            return None
        tokens, weights = (B, 3 * K, c.embedding_dim), (B, c.num_heads, 3 * K, 3 * K)
        last = [(B, c.num_heads, K, 3 * K), (B, K, c.embedding_dim), (B, K, c.embedding_dim)]  # at observations only
        shapes = [tokens, *[weights, tokens, tokens] * (c.num_layers - 1), *last]
        sizes = [math.prod(shape) for shape in shapes]
        # Why from 16 bits each: four masks for one draw, 3 times as fast as `bernoulli_`
        words = torch.empty(-(-sum(sizes) // 4), dtype=torch.int64, device=self.device)
        bits = words.random_(-(2**63), None, generator=self.update_generator).view(torch.int16)[: sum(sizes)]
        dropped = round(c.dropout * 2**16)
        parts = (bits >= dropped - 2**15).float().mul_(2**16 / (2**16 - dropped)).split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def actor_loss(self, batch: Batch, masks: list[Tensor] | None) -> Tensor:
        """mean (a_hat - a)^2 over the steps of the window and the action's dimensions; padding counts as 0, or not at all."""
        assert batch.return_to_go is not None
        assert batch.time is not None
        returns = self.config.reward_scale * batch.return_to_go
        drops = None if masks is None else iter(masks)
        predicted = self.model(batch.obs[:, :-1], batch.action, returns, batch.time, drops)
        error = (predicted - batch.action).square().mean(-1)
        if self.config.average_over_padding:
            return (error * batch.valid).mean()
        return masked_mean(error, batch.valid)

    def update(self, batch: Batch) -> Metrics:
        batch, c = batch.to(self.device), self.config
        masks = self.draw_masks(*batch.valid.shape)
        with self.autocast():
            loss = self.actor_loss(batch, masks)
        lr = c.lr * min((self.num_updates + 1) / c.warmup, 1.0)
        for group in self.optimizers["actor"].param_groups:
            group["lr"] = lr
        norm = self.optimize("actor", loss, c.grad_clip)
        self.num_updates += 1
        return {"loss/actor": loss.detach(), "grad_norm/actor": norm, "actor/lr": loss.new_tensor(lr)}

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
        """As `Agent.act`; `plan_state` [W, K, O + A + 2] is the history: observation, action, return-to-go, time of each step.

        An episode's first step is in row 0. Once K rows are full, the oldest leaves at each step. Rows not yet reached come
        later in the sequence than the step that acts, so attention does not see them.
        """
        c, W, O, A = self.config, len(obs), self.obs_dim, self.action_dim  # noqa: E741
        row = torch.arange(W, device=obs.device)
        if plan_state is None:
            plan_state, is_first = obs.new_zeros(W, c.sequence, O + A + 2), torch.ones_like(is_first)
        time = torch.where(is_first, 0, plan_state[..., -1].amax(1).long() + 1)  # [W]
        last = (time - 1).clamp(0, c.sequence - 1)  # the row of the previous step
        wanted = plan_state[row, last, -2] - (0.0 if reward is None else c.reward_scale * reward)
        wanted = torch.where(is_first, c.reward_scale * c.target_return, wanted)

        history = torch.where((time >= c.sequence)[:, None, None], plan_state.roll(-1, 1), plan_state)
        history = history * ~is_first[:, None, None]
        now = time.clamp(max=c.sequence - 1)
        history[row, now] = torch.cat([obs, obs.new_zeros(W, A), wanted[:, None], time[:, None].to(obs.dtype)], -1)
        past_obs, past_action, past_return, _ = history.split([O, A, 1, 1], -1)
        with self.autocast():
            action = self.model(past_obs, past_action, past_return.squeeze(-1), time - now)[row, now]
        history[row, now, O : O + A] = action
        return action, history, {}
