"""A run that goes on from another run's checkpoint with other settings: what population-based training does to its worst.

The new run is a folder of its own, whose config.json holds the settings from here on and whose lineage.json says what was
learned under which settings before. Nothing of the other run is changed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from wmrl_ray import checkpoint
from wmrl_ray.config import ConfigError, check, to_dict
from wmrl_ray.core.agents import Agent, agent_config, make_agent
from wmrl_ray.data.files import write_json, write_text
from wmrl_ray.run import log
from wmrl_ray.run.config import FROM_ENVIRONMENT, RunConfig
from wmrl_ray.run.folder import SESSIONS, RunDir

LINEAGE = "lineage.json"
# Of an optimiser's groups: what comes with the new settings and not with the old state.
OF_SETTINGS = ("lr", "betas", "eps", "weight_decay", "amsgrad")


def fork(source: Path, donor: Path, config: RunConfig, path: Path, point: dict[str, Any]) -> RunDir:
    """Makes the run `path`, which continues the checkpoint `source` of the run `donor` with the settings of `config`.

    Weights, optimisers' moments, replay, unfinished episodes and random streams are the donor's; learning rates and whatever
    else an optimiser is made with are those of `config`. metrics.jsonl begins with the donor's lines up to the checkpoint.

    Args:
        point: the settings that changed, for lineage.json.

    Raises:
        ConfigError: `path` holds a run already, or the agent that `config` describes has other tensors than the checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    run, before = RunDir(path), RunDir(donor)
    check(not run.exists(), f"{path} already holds a run")
    tree, meta = checkpoint.load(source)
    update = int(meta["update"])
    own = to_dict(agent_config(config.algorithm, config.agent))
    found = {key: meta["agent"].get(key) for key in FROM_ENVIRONMENT if own.get(key, 0) is None}
    config = dataclasses.replace(config, agent={**config.agent, **found})
    agent = make_agent(config.algorithm, config.agent, _sizes(meta["obs_dim"]), meta["action_dim"], seed=config.seed)
    tree["agent"] = _adopted(agent, tree["agent"], f"{path.name} from {donor.name} at update {update}")
    meta = {**meta, "agent": to_dict(agent.config), "run": to_dict(config)}

    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name in ("dataset.json", "environment.json"):
        if (before.path / name).exists():
            shutil.copy2(before.path / name, path / name)
    lines = [line for line in before.read_metrics() if line["update"] <= update]
    write_text(path / log.FILE, log.as_log(lines))
    sessions = [session for session in before.sessions() if session["update"] <= update]
    write_json(path / SESSIONS, {"sessions": sessions})
    mine = {"run": path.name, "from_update": update, "from_run": donor.name, "settings": point}
    write_json(path / LINEAGE, [*lineage(donor), mine])
    checkpoint.save(run.checkpoint_path(update), tree, meta)
    run.write_config(config)  # last: it makes the folder a run
    return run


def lineage(path: Path) -> list[dict[str, Any]]:
    """What a run was before: [{run, from_update, from_run, settings}, ...], oldest first; one entry for a run of one piece."""
    file = Path(path) / LINEAGE
    if file.exists():
        return json.loads(file.read_text())
    return [{"run": Path(path).name, "from_update": 0, "from_run": None, "settings": None}]


def _adopted(agent: Agent, state: dict[str, Any], what: str) -> dict[str, Any]:
    """The state, with the hyper-parameters of the agent's own optimisers."""
    own = {
        name: [{key: group[key] for key in OF_SETTINGS if key in group} for group in optimizer.param_groups]
        for name, optimizer in agent.optimizers.items()
    }
    try:
        agent.set_state(state)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{what}: the settings make another network ({reason}); search settings that keep its sizes"
        ) from None
    for name, optimizer in agent.optimizers.items():
        for group, settings in zip(optimizer.param_groups, own[name], strict=True):
            group.update(settings)
    return agent.get_state()


def _sizes(obs_dim: Any) -> Any:
    return tuple(obs_dim) if isinstance(obs_dim, list) else obs_dim
