"""Same weights, same inputs: what the public TD-MPC2 code computes, and what ours does. Largest differences, and their bound.

python -m tests.benchmarks.parity_tdmpc2 --peer PATH     # PATH: a checkout of nicklashansen/tdmpc2, or its git folder

Weights are drawn anew (at first every reward and value is 0); random numbers are given to both sides alike.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from tests.benchmarks.harness import report_differences
from tests.benchmarks.peer import checkout
from tests.benchmarks.peer_tdmpc2 import PeerTDMPC2
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import sample_pair, squashed_sample

BOUND = 1e-4
B, H = 16, 3
SIZES = {"walker, 24/6": ((24,), 6), "humanoid, 67/21": ((67,), 21), "pixels, 9x64x64/6": ((9, 64, 64), 6)}


@contextlib.contextmanager
def given(normal: list[Tensor], permutations: list[Tensor]) -> Iterator[None]:
    """Their next calls of `randn_like`, `randn` and `randperm` return these, in turn."""
    numbers, orders = iter(normal), iter(permutations)
    with (
        mock.patch("torch.randn_like", lambda x, **_: next(numbers).view_as(x)),
        mock.patch("torch.randperm", lambda n, **_: next(orders)),
    ):
        yield


def differences(peer: PeerTDMPC2, obs_shape: tuple[int, ...], action_dim: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    theirs = peer.agent.model
    with torch.no_grad():
        for p in [*theirs.parameters(), *theirs._target_Qs_params.values(True, True)]:
            if isinstance(p, Tensor) and p.is_floating_point():
                p.add_(0.05 * normal(*p.shape))
    config = {"model": {"dropout": 0.0}, "episode_len": 500}
    agent = make_agent("tdmpc2", config, obs_shape if len(obs_shape) > 1 else obs_shape[0], action_dim)
    model = agent.model
    order = peer.copy_to(model)
    obs = normal(B, *obs_shape) if len(obs_shape) == 1 else torch.randint(0, 256, (B, *obs_shape), generator=generator).byte()
    actions, noise, pair = normal(B, H, action_dim).clamp(-1, 1), normal(B, action_dim), normal(5)
    heads = sample_pair(pair)
    found: dict[str, float] = {}

    def compare(name: str, ours: Tensor, other: Tensor) -> None:
        found[name] = (ours - other).abs().max().item() / max(1.0, other.abs().max().item())

    with torch.no_grad():
        no_shift = (
            mock.patch.object(type(peer.shift), "forward", lambda self, x: x.float())
            if peer.shift
            else contextlib.nullcontext()
        )
        with no_shift:
            z_theirs = theirs.encode(obs, None)
        z = model.encode(obs)
        compare("encoder", z, z_theirs[:, order])
        a = actions[:, 0]
        compare("dynamics", model.next(z, a), theirs.next(z_theirs, a, None)[:, order])
        compare("reward", model.reward_logits(z, a), theirs.reward(z_theirs, a, None))
        compare(
            "decoded reward", model.reward(z, a), peer.math.two_hot_inv(theirs.reward(z_theirs, a, None), peer.settings)[:, 0]
        )
        compare("Q, all heads", model.q_logits(z, a), theirs.Q(z_theirs, a, None, return_type="all"))
        with given([noise], [heads]):
            sampled, info = theirs.pi(z_theirs, None)
            compare("Q, mean of two", model.q(z, a, heads).mean(0), theirs.Q(z_theirs, a, None, return_type="avg")[:, 0])
        mean, log_std = model.policy(z)
        compare("policy's action", squashed_sample(mean, log_std, noise), sampled)
        compare("log std", log_std, info["log_std"])
        compare("entropy term", agent.entropy(mean, log_std, noise), info["scaled_entropy"][:, 0])
        peer.settings.num_samples = B
        with given([noise], [heads]):
            value = peer.agent._estimate_value(z_theirs, actions.transpose(0, 1), None)[:, 0]
        compare("value of a plan", agent.returns(agent.start(z), actions, noise, pair), value)
    if len(obs_shape) == 1:
        found |= losses(peer, agent, obs_shape, action_dim, normal)
    return found


def losses(peer: PeerTDMPC2, agent, obs_shape: tuple[int, ...], action_dim: int, normal) -> dict[str, float]:  # noqa: ANN001
    """One update's losses and gradient norms, with the same batch, noise and heads and no dropout."""
    for module in peer.agent.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = Batch(
        normal(B, H + 1, *obs_shape),
        normal(B, H, action_dim).clamp(-1, 1),
        normal(B, H) * 3,
        torch.zeros(B, H, dtype=torch.bool),
        torch.ones(B, H, dtype=torch.bool),
    )
    peer.settings.batch_size = B
    peer.set_batch(batch)
    noise, pairs = normal(B, 2 * H + 1, action_dim), normal(2, 5)
    agent.target.critic.load_state_dict(agent.model.critic.state_dict())
    theirs = peer.agent.model
    theirs._target_Qs_params.update_(theirs._Qs.params.data)
    turned = [part.transpose(0, 1).contiguous() for part in (noise[:, :H], noise[:, H:])]
    with given(turned, [sample_pair(pair) for pair in pairs]):
        other = peer.update()
    drawn = iter([noise, pairs])
    with mock.patch("torch.randn", lambda *_, **__: next(drawn)):
        ours = agent.update(batch)
    names = {
        "loss/consistency": "consistency_loss",
        "loss/reward": "reward_loss",
        "loss/critic": "value_loss",
        "loss/model": "total_loss",
        "loss/actor": "pi_loss",
        "grad_norm/model": "grad_norm",
        "grad_norm/actor": "pi_grad_norm",
        "q/scale": "pi_scale",
    }
    found = {name: abs(ours[name] - other[key]).item() / max(1.0, abs(other[key]).item()) for name, key in names.items()}
    with torch.no_grad():
        after = make_agent("tdmpc2", {"episode_len": 500}, obs_shape[0], action_dim).model
        peer.copy_to(after)
        pairs_of = zip(agent.model.parameters(), after.parameters(), strict=True)
        found["weights after the update"] = max((p - q).abs().max().item() for p, q in pairs_of)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    with checkout(arguments.peer, "tdmpc2") as root:
        for name, (obs_shape, action_dim) in SIZES.items():
            results[name] = differences(PeerTDMPC2(root, obs_shape, action_dim), obs_shape, action_dim)
    report_differences(results, BOUND)


if __name__ == "__main__":
    main()
