"""Same weights, same inputs: what the public IQ-MPC code computes, and what ours does. Largest differences, and their bound.

python -m tests.benchmarks.parity_iq_mpc --peer PATH     # PATH: a checkout of TobyLeelsz/iqmpc, or its git folder

Their `update_iq` (with `update_pi`), for both forms of the second term and with the gradient penalty, and
`_estimate_value_iq`. Weights are drawn anew, random numbers are given to both sides alike. Of what differs by the docstring of
`wmrl_ray/core/agents/iq_mpc.py` these are made equal: no dropout; their terminal value asks for the lower critic too; to our
scaled log pi its constant's share is added. And no gradient is clipped, since their norm has the policy's gradient in it, which
they throw away.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.benchmarks.harness import report_differences
from tests.benchmarks.peer import checkout
from tests.benchmarks.peer_iqmpc import PeerIQMPC
from wmrl_ray.core.agents import make_agent
from wmrl_ray.core.batch import Batch
from wmrl_ray.core.math import LOG_2PI, sample_pair

BOUND = 1e-4
B, H, Q, N = 16, 3, 5, 64  # rows of each kind, steps, critics, plans
SIZES = {"walker, 24/6": (24, 6), "object-hold, 91/39": (91, 39)}
BOTH = {"entropy_coef": 0.02}  # why not 1e-4: log pi should be seen beside Q


@contextlib.contextmanager
def given(normal: list[Tensor], pairs: list[Tensor], uniform: tuple[Tensor, ...] = ()) -> Iterator[None]:
    """Their next calls for normal and uniform noise, and for two critics, return these, in turn, and all of them."""
    numbers, chosen, between = iter(normal), iter(pairs), iter(uniform)
    with (
        mock.patch("torch.randn_like", lambda x, **_: next(numbers).expand_as(x)),
        mock.patch("torch.rand", lambda *_, **__: next(between)),
        mock.patch("numpy.random.choice", lambda *_, **__: next(chosen).numpy()),
    ):
        yield
    assert all(next(drawn, None) is None for drawn in (numbers, chosen, between)), (
        "they drew fewer random numbers than expected"
    )


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())


class Pair:
    """Both agents, with the same weights."""

    def __init__(self, root: Path, obs_dim: int, action_dim: int, objective: str, penalty: bool):
        self.generator, self.sizes, self.objective = torch.Generator().manual_seed(0), (obs_dim, action_dim), objective
        self.penalty = penalty
        torch.manual_seed(0)  # of their initial weights
        changed = {"dropout": 0.0, "batch_size": B, "grad_clip_norm": 1e9, "use_v0": objective == "initial", **BOTH}
        self.peer = PeerIQMPC(root, obs_dim, action_dim, gradient_penalty=penalty, **changed)
        with torch.no_grad():
            for p in self.peer.agent.model.parameters():  # critics, and their targets, each in its own way
                p.add_(0.05 * self.normal(*p.shape))
            for p in self.peer.agent.model._pi[-1].parameters():  # actions so small that both logs of 1 - tanh^2 agree
                p.mul_(0.2)
        self.ours = self.agent()
        self.order = self.peer.copy_to(self.ours.model, self.ours.target)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Noise that chooses two critics, and these."""
        noise = self.normal(Q)
        return noise, sample_pair(noise)

    def agent(self, **settings: Any) -> Any:
        config = {"model": {"num_bins": 1, "dropout": 0.0}, "episode_len": 100, "grad_clip": 1e9, "objective": self.objective}
        config |= {"gradient_penalty": self.penalty, "penalty_form": "critic", "penalty_coef": 1.0}
        agent = make_agent("iq_mpc", {**config, **BOTH, **settings}, *self.sizes)
        sample, A = agent.sample, self.sizes[1]
        missing = A * (A - 1) / 2 * LOG_2PI

        def with_constant(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            action, log_prob = sample(mean, log_std, noise)
            return action, log_prob + missing

        agent.sample = with_constant
        return agent

    @torch.no_grad()
    def networks(self) -> dict[str, float]:
        theirs, m, (O, A) = self.peer.agent.model, self.ours.model, self.sizes  # noqa: E741
        obs, action, noise, (_, heads) = self.normal(B, O), self.normal(B, A).clamp(-1, 1), self.normal(B, A), self.pair()
        z, other = m.encode(obs), theirs.encode(obs, None)
        with given([noise], [heads, heads]):
            _, sampled, log_prob, log_std = theirs.pi(other, None)
            q, target_q = (theirs.Q_original(other, action, None, target=target)[:, 0] for target in (False, True))
        ours, our_log_prob = self.ours.sample(*m.policy(z), noise)
        return {
            "encoder": distance(z, other[:, self.order]),
            "dynamics": distance(m.next(z, action), theirs.next(other, action, None)[:, self.order]),
            "policy's action": distance(ours, sampled),
            "log std": distance(m.policy(z)[1], log_std),
            "log pi": distance(our_log_prob, log_prob[:, 0]),
            "Q, lower of two": distance(m.q(z, action, heads).amin(0), q),
            "target Q, lower of two": distance(self.ours.target.q(z, action, heads).amin(0), target_q),
        }

    @torch.no_grad()
    def plans(self) -> dict[str, float]:
        """Both of our scores against `_estimate_value_iq`; the telescoped one up to a constant."""
        theirs, (O, A) = self.peer.agent.model, self.sizes  # noqa: E741
        obs, actions = self.normal(1, O), self.normal(N, H, A).clamp(-1, 1)
        draws, (noise, heads) = self.normal(H + 1, A), self.pair()
        asked, lower = theirs.Q_original, lambda *args, **settings: asked(*args, **(settings | {"return_type": "min"}))
        asked_for = [draws[t + k] for t in range(H) for k in (0, 1)] + [draws[H], draws[H]]
        with mock.patch.object(theirs, "Q_original", lower), given(asked_for, [heads] * (2 * H + 1)):
            z = theirs.encode(obs, None).expand(N, -1)
            value = self.peer.agent._estimate_value_iq(z, actions.transpose(0, 1), None)[:, 0]
        found = {}
        for score in ("algorithm_1", "telescoped"):
            agent = self.agent(plan_score=score)
            self.peer.copy_to(agent.model, agent.target)
            start = agent.start(agent.model.encode(obs)).expand(N, -1)
            ours = agent.returns(start, actions, self.normal(N, A), torch.cat([noise, draws.flatten()]))
            if score == "telescoped":
                ours, value = ours - ours.mean(), value - value.mean()
            found[f"value of a plan, {score}"] = distance(ours, value)
        return found

    def update(self) -> dict[str, float]:
        """Losses, gradient norms and weights of one update."""
        (O, A), agent, first = self.sizes, self.ours, self.objective == "initial"  # noqa: E741
        full = torch.ones(2 * B, H, dtype=torch.bool)
        batch = Batch(
            self.normal(2 * B, H + 1, O),
            self.normal(2 * B, H, A).clamp(-1, 1),
            self.normal(2 * B, H),
            ~full,
            full,
            is_expert=torch.arange(2 * B) >= B,
        )
        self.peer.set_batch(batch)
        noise, value_noise = self.normal(2 * B, 2 * H + 1, A), self.normal(*((B,) if first else (B, H)), A)
        chosen = [self.pair() for _ in range(4)]  # of targets, the second term, the penalty, the policy
        target, second, penalty, policy = (heads for _, heads in chosen)
        mix = torch.rand(B, H, 1, generator=self.generator)
        of_value = torch.zeros(H + 1, 2 * B, A)  # their V along the whole rollout, of which the second form reads a part
        if not first:
            of_value[:H, :B] = value_noise.transpose(0, 1)
        numbers = [of_value, noise[:, :H].transpose(0, 1), *([value_noise.unsqueeze(0)] if first else [])]
        numbers += [torch.zeros(A)] * H + [noise[:, H:].transpose(0, 1)]  # in the middle, of what they only report
        of_step = [*([penalty] * Q if self.penalty else []), target, target]
        pairs = [second, target, *([second] if first else []), *of_step * H, policy]
        uniform = mix.repeat_interleave(Q, 1).unbind(1) if self.penalty else ()
        with given([part.contiguous() for part in numbers], pairs, uniform):
            other = self.peer.update()
        drawn = iter([noise, value_noise, torch.stack([one for one, _ in chosen])])
        with mock.patch("torch.randn", lambda *_, **__: next(drawn)), mock.patch("torch.rand", lambda *_, **__: mix):
            ours = agent.update(batch)
        if self.penalty:  # which is a part of what they report
            ours["loss/critic"] = ours["loss/critic"] + agent.config.penalty_coef * ours["loss/penalty"]
            ours["loss/model"] = ours["loss/model"] + agent.penalty_weight * ours["loss/penalty"]
        names = {"consistency": "consistency_loss", "critic": "value_loss", "model": "total_loss", "actor": "pi_loss"}
        found = {f"loss/{name}": distance(ours[f"loss/{name}"], torch.tensor(other[key])) for name, key in names.items()}
        for name, optimizer in (("model", self.peer.agent.optim), ("actor", self.peer.agent.pi_optim)):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients if gradient is not None))
            found[f"grad_norm/{name}"] = distance(ours[f"grad_norm/{name}"], torch.tensor(norm))
        after = self.agent()
        self.peer.copy_to(after.model, after.target)
        for name, mine, wanted in (("weights", agent.model, after.model), ("target critics", agent.target, after.target)):
            both = zip(mine.parameters(), wanted.parameters(), strict=True)
            found[f"{name} after the update"] = max(distance(p.detach(), q.detach()) for p, q in both)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    with checkout(arguments.peer, "tdmpc2") as root:
        for name, sizes in SIZES.items():
            for objective, penalty in (("initial", False), ("td", False), ("initial", True)):
                both, what = Pair(root, *sizes, objective, penalty), f"{name}, {objective}{' + penalty' * penalty}"
                results[what] = both.networks() | both.plans() | both.update()
    report_differences(results, BOUND)


if __name__ == "__main__":
    main()
