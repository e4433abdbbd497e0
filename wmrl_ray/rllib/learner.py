"""The learner: `Replay` + `Agent.update`, many updates per call from the driver."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor, nn

from wmrl_ray.core.agents import Agent
from wmrl_ray.data.datasets import open_dataset
from wmrl_ray.rllib import compat
from wmrl_ray.rllib.failures import collective
from wmrl_ray.rllib.module import AgentModule
from wmrl_ray.train import build_agent, build_replay, update_many

STREAMS = "streams"  # component of the state: random streams and replay of one rank


class AgentLearner(TorchLearner):
    """One data-parallel rank: maps the dataset itself, samples with its own stream, averages gradients with the other ranks.

    The batch of RLlib never exists here: `update_many` is the only way in, through `LearnerGroup.foreach_learner`.
    """

    def build(self) -> None:
        if self._is_built:
            return
        # Why: RLlib reads weights from another thread when it evaluates in parallel with training
        self._lock = threading.RLock()
        self.rank = self._learner_index or 0
        uri = self.config.dataset_uri
        self.dataset = None if uri is None else open_dataset(uri)
        super().build()
        self.replay = build_replay(self.config.run_config(), self.dataset, self.rank)
        if self.distributed:
            self.agent.sync_grads = average_gradients
            for tensor in [*self.agent_module.parameters(), *self.agent_module.buffers()]:
                with collective():
                    dist.broadcast(tensor.data, src=0)

    @property
    def agent_module(self) -> AgentModule:
        return self.module[DEFAULT_MODULE_ID].unwrapped()  # type: ignore[return-value]

    @property
    def agent(self) -> Agent:
        return self.agent_module.agent

    def update_many(self, num_updates: int) -> Any:
        """Runs `num_updates` updates, the same number on every rank, and returns RLlib's reduced metrics.

        Raises:
            NonFiniteLossError: a metric is NaN or infinite; the message has all metrics.
        """
        if not self.agent_module.training:
            self.agent_module.train()
        with self._lock:
            metrics = update_many(self.agent, self.replay, num_updates, self.config.batch_size)
            self._weights_seq_no += 1  # Why: runners ignore weights that are not newer than theirs
        self.metrics.log_dict(metrics, key=DEFAULT_MODULE_ID, window=1)
        return self.metrics.reduce()

    # -- RLlib's hooks ------------------------------------------------------------------------------------------------------

    def _make_module(self) -> Any:
        """RLlib's module around the agent that the loop without Ray would build: same seed, same weights."""
        module = super()._make_module()
        run = self.config.run_config(device=str(self._device))
        module[DEFAULT_MODULE_ID].adopt(build_agent(run, self.dataset, self.rank))  # type: ignore[union-attr]
        return module

    def _make_modules_ddp_if_necessary(self) -> None:
        """Nothing: RLlib's DDP wrapper lets parameters drift apart when a loss does not reach all of them."""

    def compute_loss_for_module(self, *, module_id: Any, config: Any, batch: Any, fwd_out: Any) -> Tensor:
        """Why it only raises: RLlib's `update(batch)` has no place for several losses and targets per step."""
        raise NotImplementedError("an agent learns from its own dataset: call update_many(num_updates), not update(batch)")

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        agent = self.module[module_id].unwrapped().agent
        for name, optimizer in agent.optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.register_optimizer(module_id=module_id, optimizer_name=name, optimizer=optimizer, params=parameters)

    def inference_state(self) -> dict[str, Any] | None:
        """What a runner needs to act, from rank 0."""
        if self.rank != 0:
            return None
        return self.get_state(COMPONENT_RL_MODULE, inference_only=True)[COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]

    # -- state: ours for checkpoints, RLlib's for its own interface -----------------------------------------------------------

    def save(self, folder: Path | None) -> dict[str, Any]:
        """The whole agent on rank 0, and what differs between ranks.

        Args:
            folder: of the checkpoint in the making, where a learner may put what is large.
        """
        with self._lock:
            return {"agent": self.agent.get_state() if self.rank == 0 else None, "streams": self.get_streams()}

    def load(self, agent_state: dict[str, Any], streams: list[dict[str, Any]]) -> None:
        """Continues where a learner group stopped. A rank that the saved group did not have keeps its fresh streams."""
        with self._lock:
            # Why not `own` for all: it is a copy of the replay
            own = self.get_streams() if self.rank >= len(streams) else None
            self.agent.set_state(agent_state)
            self.set_streams(streams[self.rank] if own is None else {**own, "num_updates": agent_state["num_updates"]})
            self._weights_seq_no += 1

    def get_streams(self, *, episodes: bool = True, copy: bool = True) -> dict[str, Any]:
        """What differs between ranks: the random streams and the replay (`episodes`, `copy`: as there); and the counter."""
        generators = {name: getattr(self.agent, f"{name}_generator").get_state() for name in ("update", "act")}
        return {
            "generators": generators,
            "num_updates": self.agent.num_updates,
            "replay": self.replay.get_state(episodes=episodes, copy=copy),
        }

    def set_streams(self, streams: dict[str, Any]) -> None:
        self.agent.set_generators(streams["generators"])
        self.agent.num_updates = int(streams["num_updates"])
        self.replay.set_state(streams["replay"])

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        with self._lock:
            state = super().get_state(components, not_components=not_components, **kwargs)
            if COMPONENT_RL_MODULE in state:
                # Why: on a CPU these arrays are the parameters' own memory, which the next update changes
                state[COMPONENT_RL_MODULE] = _copied(state[COMPONENT_RL_MODULE])
            if self._check_component(STREAMS, components, not_components):
                state[STREAMS] = self.get_streams()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        with self._lock:
            # Why: RLlib skips weights that are older than its own; a restore must win, here and on the runners
            newest = max(self._weights_seq_no, state.get(WEIGHTS_SEQ_NO, 0)) + 1
            super().set_state({**state, WEIGHTS_SEQ_NO: 0})
            self._weights_seq_no = newest
            if STREAMS in state:
                self.set_streams(state[STREAMS])

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        compat.load_optimizers(self._named_optimizers, state, self._device)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks: one all-reduce of one flat vector.

    A parameter without a gradient counts as zero, so that the vectors have the same length on all ranks.
    """
    flat = torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters])
    with collective():
        dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        gradient = gradient.view_as(parameter)
        if parameter.grad is None:
            parameter.grad = gradient.clone()
        else:
            parameter.grad.copy_(gradient)


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree.copy() if hasattr(tree, "copy") else tree
