"""The public IQ-MPC code (TobyLeelsz/iqmpc), read from a checkout that the caller names, run on the CPU as it is.

None of that code is kept here and no file of it is changed: while an agent is built, its requests for `cuda` get the CPU, and
its imports of wandb and matplotlib, which acting and learning do not use, get an empty module where they are not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

from tests.benchmarks.peer import TorchOnCpu
from tests.benchmarks.peer_tdmpc2 import FixedReplay, copy_critics, copy_networks
from wmrl_ray.core.batch import Batch

UNUSED = ("wandb", "matplotlib", "matplotlib.pyplot")


class _TorchOnCpu(TorchOnCpu):
    """Tensors asked for on a GPU too."""

    def tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(*args, **{key: value for key, value in kwargs.items() if key != "device"})

    def ones(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.ones(*args, **{key: value for key, value in kwargs.items() if key != "device"})


class PeerIQMPC:
    """Their agent with their default settings, but for `changed`, for state observations, of episodes of 100 steps."""

    def __init__(self, root: Path, obs_dim: int, action_dim: int, *, gradient_penalty: bool = False, **changed: Any):
        settings = yaml.safe_load((root / "tdmpc2/config.yaml").read_text())
        settings |= {"obs": "state", "obs_shape": {"state": (obs_dim,)}, "action_dim": action_dim, "episode_length": 100}
        settings |= {"multitask": False, "task_dim": 0, "bin_size": 0.2, "use_grad_pen": gradient_penalty}
        settings |= {name: float(settings[name]) for name in ("lr", "entropy_coef")} | changed
        self.settings = SimpleNamespace(**settings)
        missing = {name: ModuleType(name) for name in UNUSED if importlib.util.find_spec(name.split(".")[0]) is None}
        sys.path.insert(0, str(root / "tdmpc2"))
        try:
            with mock.patch.dict(sys.modules, missing):
                agent, scale = importlib.import_module("tdmpc2"), importlib.import_module("common.scale")
        finally:
            sys.path.remove(str(root / "tdmpc2"))
        with mock.patch.object(agent, "torch", _TorchOnCpu()), mock.patch.object(scale, "torch", _TorchOnCpu()):
            self.agent = agent.TDMPC2(self.settings)

    def set_batch(self, batch: Batch) -> None:
        """Theirs is time-major, its rewards have a trailing axis, and the two kinds of rows come apart."""
        assert batch.is_expert is not None

        def rows(chosen: Tensor) -> FixedReplay:
            parts = [x[chosen].transpose(0, 1).contiguous() for x in (batch.obs, batch.action, batch.reward.unsqueeze(-1))]
            return FixedReplay((*parts, None))

        self._replays = rows(~batch.is_expert), rows(batch.is_expert)

    def update(self) -> dict[str, float]:
        return self.agent.update_iq(*self._replays)

    def copy_to(self, model: Any, target: Any) -> Tensor:
        """Gives our model and target critics their weights; returns the order [Z] in which our latents hold their features."""
        theirs: Any = self.agent.model
        parts = {"dynamics": theirs._dynamics, "actor": theirs._pi, "encoder": theirs._encoder["state"]}
        order = copy_networks(parts, model, of_vectors=True)
        for source, critic in ((theirs._Qs_original, model.critic), (theirs._target_Qs, target.critic)):
            copy_critics(list(source.params), critic, order)
        return order

    def plan(self, obs: Tensor) -> Tensor:
        """One action for one observation [O], with a warm start."""
        return self.agent.act(obs, t0=not hasattr(self.agent, "_prev_mean"), eval_mode=True)
