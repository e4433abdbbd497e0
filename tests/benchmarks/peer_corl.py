"""CORL's single-file algorithms (corl-team/CORL), read from a checkout or git folder that the caller names and run as they are.

None of that code is kept here. Imports that only its data loading and logging need (d4rl, gym, pyrallis, wandb, tqdm) are empty
stand-ins while a file loads. Each trainer is built as CORL's own `train` function builds it, with its default settings, on the
CPU, and takes the house's Batch.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from wmrl_ray.core.batch import Batch

FILES = {"iql": "iql", "td3_bc": "td3_bc", "awac": "awac", "bc": "any_percent_bc", "cql": "cql", "dt": "dt"}  # ours: theirs
STAND_INS = ("d4rl", "gym", "pyrallis", "wandb", "tqdm", "tqdm.auto")
Update = Callable[[], object]


def load(root: Path, name: str) -> ModuleType:
    """Their file for the algorithm that we call `name`, as a module. root: a checkout, or its git folder."""
    path = f"algorithms/offline/{FILES[name]}.py"
    if (root / path).is_file():
        source = (root / path).read_text()
    else:
        command = ["git", f"--git-dir={root}", "show", f"HEAD:{path}"]
        source = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    module = ModuleType(f"corl_{FILES[name]}")
    stand_ins = {missing: mock.MagicMock() for missing in STAND_INS}
    with mock.patch.dict(sys.modules, stand_ins | {module.__name__: module}):  # itself too: dataclasses look their module up
        exec(compile(source, path, "exec"), module.__dict__)
    return module


def make_trainer(root: Path, name: str, obs_dim: int, action_dim: int, **settings: Any) -> Any:
    """Their trainer of the algorithm that we call `name`, but for dt. settings: in place of their defaults."""
    module = load(root, name)
    build = {"iql": _iql, "td3_bc": _td3_bc, "awac": _awac, "bc": _bc, "cql": _cql}[name]
    return build(module, module.TrainConfig(**settings), obs_dim, action_dim)


def turned(batch: Batch) -> list[torch.Tensor]:
    """Their batch: the first step of each window."""
    parts = [batch.obs[:, 0], batch.action[:, 0], batch.reward[:, :1], batch.obs[:, 1], batch.terminated[:, :1].float()]
    return [part.contiguous() for part in parts]


def make_update(root: Path, name: str, batch: Batch) -> Update:
    """A call that makes one of their training steps on `batch`; the windows have one step, but for dt."""
    torch.manual_seed(0)
    if name == "dt":
        module = load(root, name)
        return _dt(module, module.TrainConfig(), batch)
    trainer = make_trainer(root, name, batch.obs.shape[-1], batch.action.shape[-1])
    step, theirs = trainer.update if name == "awac" else trainer.train, turned(batch)
    return lambda: step(theirs)


def _iql(m: ModuleType, c: Any, O: int, A: int) -> Any:  # noqa: E741
    q, v, actor = m.TwinQ(O, A), m.ValueFunction(O), m.GaussianPolicy(O, A, 1.0)
    return m.ImplicitQLearning(
        1.0,
        actor,
        torch.optim.Adam(actor.parameters(), lr=c.actor_lr),
        q,
        torch.optim.Adam(q.parameters(), lr=c.qf_lr),
        v,
        torch.optim.Adam(v.parameters(), lr=c.vf_lr),
        iql_tau=c.iql_tau,
        beta=c.beta,
        max_steps=c.max_timesteps,
        discount=c.discount,
        tau=c.tau,
    )


def _with_adam(networks: list[torch.nn.Module], lr: float = 3e-4) -> list[Any]:
    """Each network followed by an optimiser of its own."""
    return [part for network in networks for part in (network, torch.optim.Adam(network.parameters(), lr=lr))]


def _td3_bc(m: ModuleType, c: Any, O: int, A: int) -> Any:  # noqa: E741
    parts = _with_adam([m.Actor(O, A, 1.0), m.Critic(O, A), m.Critic(O, A)])
    settings = {key: getattr(c, key) for key in ("discount", "tau", "policy_noise", "noise_clip", "policy_freq", "alpha")}
    return m.TD3_BC(1.0, *parts, **settings)


def _awac(m: ModuleType, c: Any, O: int, A: int) -> Any:  # noqa: E741
    networks = [m.Actor(O, A, c.hidden_dim), m.Critic(O, A, c.hidden_dim), m.Critic(O, A, c.hidden_dim)]
    parts = _with_adam(networks, c.learning_rate)
    return m.AdvantageWeightedActorCritic(*parts, gamma=c.gamma, tau=c.tau, awac_lambda=c.awac_lambda)


def _bc(m: ModuleType, c: Any, O: int, A: int) -> Any:  # noqa: E741
    return m.BC(1.0, *_with_adam([m.Actor(O, A, 1.0)]), discount=c.discount)


def _cql(m: ModuleType, c: Any, O: int, A: int) -> Any:  # noqa: E741
    critics = [m.FullyConnectedQFunction(O, A, c.orthogonal_init, c.q_n_hidden_layers)]
    critics.append(m.FullyConnectedQFunction(O, A, c.orthogonal_init))  # its depth is not passed on: theirs
    actor = m.TanhGaussianPolicy(O, A, 1.0, log_std_multiplier=c.policy_log_std_multiplier, orthogonal_init=c.orthogonal_init)
    settings = {key: value for key, value in vars(c).items() if key.startswith("cql_")}
    for key in ("discount", "alpha_multiplier", "use_automatic_entropy_tuning", "backup_entropy", "policy_lr", "qf_lr"):
        settings[key] = getattr(c, key)
    parts = [*_with_adam(critics, c.qf_lr), *_with_adam([actor], c.policy_lr)]
    return m.ContinuousCQL(
        *parts,
        target_entropy=-float(A),
        soft_target_update_rate=c.soft_target_update_rate,
        bc_steps=c.bc_steps,
        target_update_period=c.target_update_period,
        **settings,
    )


def _dt(m: ModuleType, c: Any, batch: Batch) -> Update:
    """Their step is a part of their `train` function, so it is spelt out here; sequences as long as the batch's windows."""
    B, H, A = batch.action.shape
    shape = ("embedding_dim", "num_layers", "num_heads", "attention_dropout", "residual_dropout", "embedding_dropout")
    settings = {key: getattr(c, key) for key in (*shape, "episode_len", "max_action")}
    model = m.DecisionTransformer(state_dim=batch.obs.shape[-1], action_dim=A, seq_len=H, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay, betas=c.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / c.warmup_steps, 1))
    to_go = batch.reward.flip(1).cumsum(1).flip(1)
    times, padding = torch.arange(H).expand(B, H), ~batch.valid

    def step() -> float:
        predicted = model(
            states=batch.obs[:, :-1], actions=batch.action, returns_to_go=to_go, time_steps=times, padding_mask=padding
        )
        error = F.mse_loss(predicted, batch.action, reduction="none")
        loss = (error * batch.valid.float().unsqueeze(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.clip_grad)
        optimizer.step()
        schedule.step()
        return loss.item()

    return step
