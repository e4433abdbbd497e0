"""Which settings of a run say how long and where it is computed and what is recorded of it, not what it learns."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

# Runs that differ only here learn the same: a report takes them for seeds of one experiment.
NOT_LEARNED = frozenset(
    [
        "eval_every",
        "eval_episodes",
        "checkpoint_every",
        "num_to_keep",
        "log_every",
        "track",
        "learner_resources",
        "runner_resources",
        "device",
        "num_eval_runners",
        "envs_per_runner",
        "max_failures",
        "call_timeout_s",
        "placement_timeout_s",
        "online.replay_unfinished",
    ]
)

# What a resumed run may change. Why apart: runs of different lengths are no seeds of one experiment, nor are those of other
# batches (of `batch_size` for every learner) or of other runners' unfinished episodes.
MAY_CHANGE = NOT_LEARNED | {"num_updates", "num_learners", "online.num_runners"}


def is_among(key: str, settings: Set[str]) -> bool:
    """Whether a dotted key is one of the settings, or a part of one as `learner_resources.a_node` is."""
    return any(key == name or key.startswith(f"{name}.") for name in settings)


def of_record(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json or a checkpoint holds, in today's settings: a run that is resumed learns as it did.

    Before `penalty_form` was a setting IQ-MPC's gradient penalty was a loss of its own; the weight of one that is off says
    nothing.
    """
    agent = values.get("agent")
    if values.get("algorithm") != "iq_mpc" or not isinstance(agent, Mapping) or "penalty_form" in agent:
        return dict(values)
    others = {key: value for key, value in agent.items() if key != "penalty_coef"}
    return {**values, "agent": {**agent, "penalty_form": "loss"} if agent.get("gradient_penalty") else others}
