"""Same weights, batches and noise: what CORL's training steps compute, and what ours do. Largest differences, and their bound.

python -m tests.benchmarks.parity_corl --peer PATH     # PATH: a checkout of corl-team/CORL, or its git folder

Weights are drawn anew. Each algorithm makes STEPS steps, on a new batch each time, with rows that terminate; the cosine of
IQL's policy ends after as many, so that all of it is seen.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.benchmarks.harness import report_differences
from tests.benchmarks.peer_corl import make_trainer, turned
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.nets import StackedLinear

BOUND = 1e-4
B, O, A, STEPS = 64, 17, 6, 8  # noqa: E741
# Ours and theirs, where it is not the default of both
OURS: dict[str, dict[str, Any]] = {"iql": {"lr_steps": STEPS}, "awac": {"temperature": 0.1}}
THEIRS: dict[str, dict[str, Any]] = {"iql": {"max_timesteps": STEPS}, "awac": {"awac_lambda": 0.1}}
# Our networks, and the attributes of their trainer that hold them: two for a pair of critics
NETWORKS: dict[str, dict[str, tuple[str, ...]]] = {
    "iql": {"value": ("vf",), "critic": ("qf",), "actor": ("actor",)},
    "awac": {"critic": ("_critic_1", "_critic_2"), "actor": ("_actor",)},
    "td3_bc": {"critic": ("critic_1", "critic_2"), "actor": ("actor",)},
    "bc": {"": ("actor",)},
}
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "iql": {"": ("q_target",)},
    "awac": {"": ("_target_critic_1", "_target_critic_2")},
    "td3_bc": {"critic": ("critic_1_target", "critic_2_target"), "actor": ("actor_target",)},
    "bc": {},
}
LOSSES: dict[str, dict[str, str]] = {
    "iql": {"loss/value": "value_loss", "loss/critic": "q_loss", "loss/actor": "actor_loss"},
    "awac": {"loss/critic": "critic_loss", "loss/actor": "actor_loss"},
    "td3_bc": {"loss/critic": "critic_loss", "loss/actor": "actor_loss"},
    "bc": {"loss/actor": "actor_loss"},
}


def pairs(agent: Any, trainer: Any, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Our parameters, and theirs in the same layout."""
    for module, networks in ((agent.model, NETWORKS[name]), (agent.target, TARGETS[name])):
        for ours, attributes in networks.items():
            theirs = [part for attribute in attributes for part in getattr(trainer, attribute).modules()]
            linear = [part for part in theirs if isinstance(part, nn.Linear)]
            network = module.get_submodule(ours) if ours else module
            layers = [part for part in network.modules() if isinstance(part, nn.Linear | StackedLinear)]
            for k, layer in enumerate(layers):
                if isinstance(layer, nn.Linear):
                    yield from zip((layer.weight, layer.bias), (linear[k].weight, linear[k].bias), strict=True)
                else:  # two critics, one after the other
                    members = [linear[k], linear[len(layers) + k]]
                    yield layer.weight, torch.stack([member.weight.t() for member in members])
                    yield layer.bias, torch.stack([member.bias.unsqueeze(0) for member in members])
    if name in ("iql", "awac"):
        yield agent.model.log_std, trainer.actor.log_std if name == "iql" else trainer._actor._log_std


@contextlib.contextmanager
def given(noise: Tensor) -> Iterator[None]:
    """Both sides' next calls for normal noise return `noise[0]`, `noise[1]`, ..., in turn; ours may ask for all at once."""
    theirs = iter(noise)
    with (
        mock.patch("torch.randn", lambda *_, **__: noise if len(noise) > 1 else noise[0]),
        mock.patch("torch.randn_like", lambda _: next(theirs)),
        mock.patch("torch.distributions.normal._standard_normal", lambda *_, **__: next(theirs)),
    ):
        yield


def differences(root: Path, name: str) -> dict[str, float]:
    """By what is compared: the largest difference over max(1, the largest number), over all steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    trainer, agent = make_trainer(root, name, O, A, **THEIRS.get(name, {})), make_agent(name, OURS.get(name, {}), O, A)
    networks = [*NETWORKS[name].values(), *TARGETS[name].values()]
    with torch.no_grad():
        for p in (p for parts in networks for part in parts for p in getattr(trainer, part).parameters()):
            p.add_(0.1 * normal(*p.shape))  # values of some size, other targets than critics
        for ours, theirs in pairs(agent, trainer, name):
            ours.copy_(theirs)
    start = [ours.detach().clone() for ours, _ in pairs(agent, trainer, name)]
    found: dict[str, float] = {}

    def compare(what: str, ours: Tensor, theirs: Tensor) -> None:
        difference = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
        found[what] = max(found.get(what, 0.0), difference)

    full = torch.ones(B, 1, dtype=torch.bool)
    for _ in range(STEPS):
        terminated = torch.arange(B).unsqueeze(1) % 5 == 0
        batch = Batch(normal(B, 2, O), normal(B, 1, A).clamp(-1, 1), normal(B, 1), terminated, full)
        with given(normal(2 if name == "awac" else 1, B, A)):
            other = (trainer.update if name == "awac" else trainer.train)(turned(batch))
            metrics = agent.update(batch)
        for what, key in LOSSES[name].items():
            if (key in other) != (what in metrics):
                raise SystemExit(f"{name}: only one side has a {what} in this step")
            if key in other:
                compare(what, metrics[what], torch.tensor(other[key]))
    with torch.no_grad():
        for ours, theirs in pairs(agent, trainer, name):
            compare(f"weights after {STEPS} steps", ours, theirs)
        moved = min((now - then).abs().max().item() for (now, _), then in zip(pairs(agent, trainer, name), start, strict=True))
    if not moved > 1e-5:
        raise SystemExit(f"{name}: some weights moved by {moved:.0e} only, so that nothing is compared")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: differences(arguments.peer, name) for name in NETWORKS}
    report_differences(results, BOUND)


if __name__ == "__main__":
    main()
