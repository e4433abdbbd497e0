"""The public TD-MPC code (nicklashansen/tdmpc), read from a checkout that the caller names, run on the CPU as it is.

None of that code is kept here and no file of it is changed: while an agent is built, its two CUDA requests get the CPU.
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
from torch import Tensor, nn

from tests.benchmarks.peer import TorchOnCpu


class FixedReplay:
    """Stands where their replay buffer stands, with one batch drawn in advance: neither side's sampling is measured."""

    def __init__(self, batch: tuple[Tensor, ...]):
        self.batch = batch

    def sample(self) -> tuple[Tensor, ...]:
        return self.batch

    def update_priorities(self, idxs: Tensor, priorities: Tensor) -> None:
        pass


class PeerTDMPC:
    """Their agent with their default settings for state observations."""

    def __init__(self, root: Path, obs_dim: int, action_dim: int):
        settings = yaml.safe_load((root / "cfgs/default.yaml").read_text())
        settings |= {"modality": "state", "obs_shape": (obs_dim,), "action_dim": action_dim, "device": "cpu"}
        settings |= {"lr": float(settings["lr"]), "std_schedule": settings["min_std"], "horizon_schedule": settings["horizon"]}
        self.settings = SimpleNamespace(**settings)
        sys.path.insert(0, str(root / "src"))
        try:
            module = importlib.import_module("algorithm.tdmpc")
        finally:
            sys.path.remove(str(root / "src"))
        with mock.patch.object(module, "torch", TorchOnCpu()), mock.patch.object(nn.Module, "cuda", lambda self: self):
            self.agent = module.TDMPC(self.settings)
        self._step = 0

    def set_batch(self, obs: Tensor, action: Tensor, reward: Tensor) -> None:
        """From the house's obs [B, H+1, O], action [B, H, A], reward [B, H]; theirs is time-major with one step more."""
        batch_size = len(obs)
        pad = torch.zeros(1, *obs.shape[:1], 1)
        next_obs = torch.cat([obs[:, 1:], obs[:, -1:]], 1).transpose(0, 1).contiguous()
        actions = torch.cat([action, action[:, -1:]], 1).transpose(0, 1).contiguous()
        rewards = torch.cat([reward.t().unsqueeze(-1), pad]).contiguous()
        idxs, weights = torch.arange(batch_size), torch.ones(batch_size)
        self._replay = FixedReplay((obs[:, 0].contiguous(), next_obs, actions, rewards, idxs, weights))

    def update(self) -> dict[str, float]:
        self._step += 1
        return self.agent.update(self._replay, self._step)

    def plan(self, obs: Any) -> Tensor:
        """One action for one observation, past the schedules and the seed phase, with a warm start."""
        return self.agent.plan(obs, eval_mode=True, step=self.settings.seed_steps, t0=False)
