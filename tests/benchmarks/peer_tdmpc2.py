"""The public TD-MPC2 code (nicklashansen/tdmpc2), read from a checkout that the caller names, run on the CPU as it is.

None of that code is kept here and no file of it is changed: while an agent is built, its requests for `cuda:0` get the CPU, and
its optimisers lose `capturable`, which torch refuses on a CPU. It needs `tensordict` (0.8.3 with torch 2.13; 0.14 fails).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

from tests.benchmarks.peer import TorchOnCpu
from wmrl_ray.core.batch import Batch


def _adam(*args: Any, capturable: bool, **kwargs: Any) -> torch.optim.Adam:
    return torch.optim.Adam(*args, **kwargs)


class _TorchOnCpu(TorchOnCpu):
    """Its Adam is not `capturable` either."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(Adam=_adam) if name == "optim" else super().__getattr__(name)


class FixedReplay:
    """Stands where their replay buffer stands, with one batch drawn in advance: neither side's sampling is measured."""

    def __init__(self, batch: tuple[Tensor | None, ...]):
        self.batch = batch

    def sample(self) -> tuple[Tensor | None, ...]:
        return self.batch


class PeerTDMPC2:
    """Their agent with their default settings (5M parameters) for one task.

    obs_shape: (O,), or (C, h, w).
    """

    def __init__(self, root: Path, obs_shape: tuple[int, ...], action_dim: int, *, compile: bool = False):  # noqa: A002
        kind = "state" if len(obs_shape) == 1 else "rgb"
        settings = yaml.safe_load((root / "tdmpc2/config.yaml").read_text())
        settings |= {"obs": kind, "obs_shape": {kind: obs_shape}, "action_dim": action_dim, "episode_length": 500}
        settings |= {"multitask": False, "tasks": ["one"], "task_dim": 0, "task": "one", "compile": compile}
        for name in ("lr", "entropy_coef", "vmax", "vmin"):
            settings[name] = float(settings[name])
        settings["bin_size"] = (settings["vmax"] - settings["vmin"]) / (settings["num_bins"] - 1)
        self.settings = SimpleNamespace(**settings)
        self.settings.get = lambda name, default=None: getattr(self.settings, name, default)
        sys.path.insert(0, str(root / "tdmpc2"))
        try:
            agent, scale = importlib.import_module("tdmpc2"), importlib.import_module("common.scale")
            self.math = importlib.import_module("common.math")
        finally:
            sys.path.remove(str(root / "tdmpc2"))
        with mock.patch.object(agent, "torch", _TorchOnCpu()), mock.patch.object(scale, "torch", _TorchOnCpu()):
            self.agent = agent.TDMPC2(self.settings)
        layers = sys.modules["common.layers"]
        self.shift = next((part for part in self.agent.modules() if isinstance(part, layers.ShiftAug)), None)

    def set_batch(self, batch: Batch) -> None:
        """Theirs is time-major, its scalars have a trailing axis."""

        def turned(x: Tensor) -> Tensor:
            x = x.transpose(0, 1).contiguous()
            return x if x.dim() > 2 else x.unsqueeze(-1).float()

        parts = (batch.obs, batch.action, batch.reward, batch.terminated)
        self._replay = FixedReplay((*map(turned, parts), None))

    def update(self) -> dict[str, Tensor]:
        return self.agent.update(self._replay)

    def plan(self, obs: Tensor) -> Tensor:
        """One action for one observation [O] or [C, h, w], with a warm start."""
        return self.agent.act(obs, t0=False, eval_mode=True)

    def copy_to(self, model: Any) -> Tensor:
        """Gives our model their weights; returns the order [Z] in which our latents hold their features.

        Raises:
            ValueError: a part has another number of parameters.
        """
        theirs: Any = self.agent.model
        parts = {"dynamics": theirs._dynamics, "reward_head": theirs._reward, "actor": theirs._pi}
        parts["encoder"] = theirs._encoder[self.settings.obs]
        order = copy_networks(parts, model, self.settings.obs == "state")
        copy_critics([theirs._Qs.params[name] for name in CRITIC_PARTS], model.critic, order)
        return order


# Of their critics, in the order of an ensemble's parameters
NORMED = ("weight", "bias", ("ln", "weight"), ("ln", "bias"))
CRITIC_PARTS = [(layer, *((part,) if isinstance(part, str) else part)) for layer in "01" for part in NORMED]
CRITIC_PARTS += [("2", "weight"), ("2", "bias")]


@torch.no_grad()
def copy_networks(parts: dict[str, torch.nn.Module], model: Any, of_vectors: bool) -> Tensor:
    """Their networks to ours of these names; returns the order [Z] in which our latents hold their features.

    of_vectors: the encoder is of vectors, and not of images.

    Raises:
        ValueError: a part has another number of parameters.
    """
    # Their simplices are neighbouring features, ours are features i, i + 64, ...: another order of the latent's features
    order = torch.arange(model.config.latent_dim).view(-1, model.config.simnorm_dim).t().flatten()
    for name, source in parts.items():
        for p, q in zip(source.parameters(), getattr(model, name).parameters(), strict=True):
            q.copy_(p)
    for name in parts:
        network = getattr(model, name)
        if name != "encoder":  # reads a latent
            columns = network[0].linear.weight[:, : len(order)]
            columns.copy_(columns[:, order])
        if name == "dynamics" or (name == "encoder" and of_vectors):  # writes one
            for p in network[-1].parameters():
                p.copy_(p[order])
    return order


@torch.no_grad()
def copy_critics(params: list[Tensor], critic: Any, order: Tensor) -> None:
    """Their ensemble's parameters, in order, to our critics."""
    *layers, weight, bias = params
    for k in range(len(critic.scales)):
        for target, source in zip((critic.weights, critic.biases, critic.scales, critic.shifts), layers[4 * k :], strict=False):
            target[k].copy_(source.transpose(1, 2) if source.dim() == 3 else source.unsqueeze(1))
    critic.weights[-1].copy_(weight.transpose(1, 2))
    critic.biases[-1].copy_(bias.unsqueeze(1))
    rows = critic.weights[0][:, : len(order)]
    rows.copy_(rows[:, order])
