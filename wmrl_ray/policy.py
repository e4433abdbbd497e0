"""A trained policy in plain torch: no Ray, no dataset, no pickle."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmrl_ray import checkpoint
from wmrl_ray.checkpoint import CheckpointError
from wmrl_ray.config import check, merged
from wmrl_ray.core.agents import Agent, make_agent


class Policy:
    """Acts in one environment, or in W at once.

    >>> policy = Policy.load("runs/mine")  # doctest: +SKIP
    >>> action = policy.act(obs)           # obs [O] or [W, O] -> action [A] or [W, A] in [-1, 1]

    Observations may also be images [C, h, w] or [W, C, h, w] uint8, where the agent was trained on them.
    """

    def __init__(self, agent: Agent, meta: dict[str, Any]):
        self.agent, self.meta = agent, meta
        self.reset()

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", changes: Mapping[str, Any] | None = None) -> Policy:
        """From a checkpoint folder, an RLlib checkpoint of ours (its `policy` folder), or a run (its newest checkpoint).

        Args:
            changes: settings to act with instead of those it was trained with, such as {"plan": {"num_samples": 64}}.

        Raises:
            CheckpointError: nothing there, incomplete, or corrupt.
            ConfigError: a change that the agent does not know, or of its networks' sizes.
        """
        folder = find_checkpoint(Path(path))
        tree, meta = checkpoint.load(folder, device, parts=False)
        check("model" not in (changes or {}), f"agent.model cannot be changed: {path} holds the weights of those networks")
        # Why not compiled: one action is not worth minutes of it
        settings = merged(meta["agent"], {"compile": "off"}, changes or {})
        obs_dim = meta["obs_dim"] if isinstance(meta["obs_dim"], int) else tuple(meta["obs_dim"])
        agent = make_agent(meta["algorithm"], settings, obs_dim, meta["action_dim"], device=device)
        agent.model.load_state_dict(tree["agent"]["model"])
        return cls(agent, meta)

    def reset(self, seed: int | None = None) -> None:
        """Call at the start of every episode: forgets the last plan. `seed` fixes the planner's noise."""
        self._plan_state: torch.Tensor | None = None
        self._first = True
        if seed is not None:
            self.agent.act_generator.manual_seed(seed)

    def act(self, obs: np.ndarray, is_first: np.ndarray | None = None, reward: float | np.ndarray | None = None) -> np.ndarray:
        """obs [O] or [W, O] -> action [A] or [W, A], as the evaluation acts.

        Args:
            is_first: [W] bool, environments that have just been reset, where they end at different times. Default: none since
                the last `reset`.
            reward: [W] or a number, what the previous action earned; only a Decision Transformer reads it. Default: 0.
        """
        of_images = not isinstance(self.agent.obs_dim, int)
        one = self.agent.obs_dim if of_images else (self.agent.obs_dim,)
        obs = np.asarray(obs, dtype=np.uint8 if of_images else np.float32)
        if obs.shape[-len(one) :] != one or obs.ndim > len(one) + 1:
            sizes = ", ".join(map(str, one))
            raise ValueError(f"obs has shape {list(obs.shape)}; this policy takes [{sizes}] or [W, {sizes}]")
        num_envs = 1 if obs.ndim == len(one) else len(obs)
        if self._plan_state is not None and len(self._plan_state) != num_envs:
            raise ValueError(
                f"the last call acted in {len(self._plan_state)} environments; call reset() before acting in another number"
            )
        rows = torch.from_numpy(obs.reshape(num_envs, *one)).to(self.agent.device)
        first = torch.full((len(rows),), self._first) if is_first is None else torch.as_tensor(is_first).view(len(rows))
        earned = torch.as_tensor(0.0 if reward is None else reward, dtype=torch.float32).expand(len(rows))
        action, self._plan_state, _ = self.agent.act(
            rows, self._plan_state, first.to(self.agent.device), reward=earned.to(self.agent.device)
        )
        self._first = False
        actions = action.cpu().numpy()
        return actions[0] if obs.ndim == len(one) else actions


def find_checkpoint(path: Path) -> Path:
    """The folder that holds the policy: `path`, its `policy` folder, or the newest complete checkpoint of a run."""
    from wmrl_ray.run.folder import RunDir

    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; give a run folder, or a folder in its checkpoints/")
    run = RunDir(path)
    if run.exists():
        newest = run.newest_checkpoint()
        if newest is None:
            raise CheckpointError(
                f"the run {path} has no complete checkpoint yet; wait for its first one, or go on with "
                f"`wmrl train {shlex.quote(str(path))} --resume`"
            )
        path = newest
    return path / "policy" if (path / "policy" / "manifest.json").exists() else path
