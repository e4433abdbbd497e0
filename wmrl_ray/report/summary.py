"""Runs -> the report's numbers, as one plain dict (the same that report.json holds and the page shows)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from wmrl_ray.config import flatten
from wmrl_ray.report.runs import Run
from wmrl_ray.report.stats import improvement, performance_profile, summarize, summarize_strata
from wmrl_ray.run.provenance import OF_A_SESSION, changed
from wmrl_ray.run.settings import NOT_LEARNED, is_among

# Where a run was computed, not what was computed: runs that differ only here are seeds of one experiment.
NOT_AN_EXPERIMENT = NOT_LEARNED | {"seed"}

PROFILE_POINTS = 101

SCALES = {  # one table each, never mixed: a score of 60 on one is not a 60 on the other
    "stand_in": "Stand-in datasets",
    "published": "D4RL datasets (published reference scores)",
    "own": "Datasets with reference scores of their own",
    "returns": "Datasets and environments without reference scores (raw returns)",
}

# The names of D4RL's files, and of what our studies import them as: hopper-medium-v2, d4rl/antmaze-large-play-v2, also with
# intents. Why not Minari's D4RL/...: those are remakes, in other simulators, with reference scores of their own.
D4RL_NAME = re.compile(
    r"(d4rl/)?(maze2d|antmaze|halfcheetah|hopper|walker2d|ant|pen|hammer|door|relocate|kitchen|minigrid|carla|flow)-[\w-]+-v\d+"
)


# The folder of a Worker in a sweep: bc-intents-skip4-s0. Each seed's dataset has the intents of a Manager of its own.
WORKER = re.compile(r"[^/]+?-(?P<variant>(?P<kind>intents|random)(-.+)?)-s\d+")
WITH = {"intents": "with intents", "random": "with random vectors"}


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one experiment on one dataset, which differ only in the seed, and in their Managers' seed."""

    label: str  # algorithm, with the settings that tell it from its siblings
    dataset: str
    scale: str
    runs: list[Run]

    @property
    def metric(self) -> str:
        return "eval/return_mean" if self.scale == "returns" else "eval/score_mean"


def scale_of(run: Run) -> str:
    """The key in SCALES of the run's dataset. Only D4RL's references are published: others are what its maker stored."""
    if run.dataset.get("stand_in"):
        return "stand_in"
    has_references = run.dataset.get("ref_min_score") is not None and run.dataset.get("ref_max_score") is not None
    if not has_references:
        return "returns"
    return "published" if D4RL_NAME.fullmatch(str(run.dataset.get("name"))) else "own"


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups by algorithm, dataset (its content, not only its name) and every setting but the seed."""
    names = _dataset_names(runs)
    members: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        experiment = experiment_of(run) + ((("variant", worker["variant"]),) if (worker := _worker(run)) else ())
        members[(scale_of(run), names[_dataset_key(run)], run.algorithm, experiment)].append(run)
    siblings: dict[tuple, list[tuple]] = defaultdict(list)
    for *where, experiment in members:
        siblings[tuple(where)].append(experiment)
    groups = []
    for (scale, dataset, algorithm, experiment), group in members.items():
        label = algorithm + _what_differs(experiment, siblings[scale, dataset, algorithm])
        groups.append(Group(label, dataset, scale, sorted(group, key=lambda run: run.seed)))
    return sorted(groups, key=lambda g: (list(SCALES).index(g.scale), g.dataset, g.label))


def summarize_report(groups: Sequence[Group]) -> dict[str, Any]:
    """All numbers of the report; plain values only."""
    runs = [run for group in groups for run in group.runs]
    warnings = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    scales = []
    for scale, title in SCALES.items():
        if members := [group for group in groups if group.scale == scale]:
            scales.append({"scale": scale, "title": title, **_scale(scale, members), **_over_datasets(members)})
    for group in groups:
        warnings += _group_warnings(group)
    return {
        "schema": "wmrl.report/v1",
        "scales": scales,
        "runs": [_run(group, run) for group in groups for run in group.runs],
        "config": _config_table(groups),
        "environment": _environment_table(runs),
        "warnings": warnings,
    }


def _scale(scale: str, groups: Sequence[Group]) -> dict[str, Any]:
    datasets = []
    for name in dict.fromkeys(group.dataset for group in groups):
        members = [group for group in groups if group.dataset == name]
        rows = [row for group in members if (row := _row(group)) is not None]
        rows.sort(key=lambda row: -(row["return"] if scale == "returns" else row["score"])["mean"])
        datasets.append({"name": name, "card": _card(members[0].runs[0].dataset), "rows": rows})
    return {"datasets": datasets, "aggregate": _aggregate(groups)}


def _row(group: Group) -> dict[str, Any] | None:
    """One line of the headline table, or None when no seed was evaluated."""
    evaluated = [run for run in group.runs if run.final(group.metric) is not None]
    if not evaluated:
        return None
    row: dict[str, Any] = {
        "label": group.label,
        "metric": group.metric,
        "seeds": [run.seed for run in evaluated],
        "updates": [int(run.evaluations[-1]["update"]) for run in evaluated],
        "episodes": sum(int(run.evaluations[-1].get("eval/episodes", 0)) for run in evaluated),
        "updates_per_s": _mean([run.updates_per_s for run in evaluated]),
        "seconds": _mean([run.seconds for run in evaluated]),
    }
    for short, key in (("score", "eval/score_mean"), ("return", "eval/return_mean"), ("success", "eval/success_mean")):
        values = [value for run in evaluated if (value := run.final(key)) is not None]
        row[short] = dataclasses.asdict(summarize(values)) if len(values) == len(evaluated) else None
    return row


def _aggregate(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Over all datasets of one scale, for experiments that were run on every one of them (nothing else is comparable)."""
    return [
        {"label": label, "datasets": len(strata), "score": dataclasses.asdict(summarize_strata(strata))}
        for label, strata in _on_every_dataset(groups).items()
    ]


def _over_datasets(groups: Sequence[Group]) -> dict[str, Any]:
    """The performance profiles of the same experiments, and for each pair of them how likely the first one's run is better."""
    every = _on_every_dataset(groups)
    values = [value for strata in every.values() for stratum in strata for value in stratum]
    if len(every) < 2:
        return {"profiles": None, "improvement": []}
    grid = np.linspace(min(0.0, min(values)), max(100.0, max(values)), PROFILE_POINTS)
    curves = {label: performance_profile(strata, grid) for label, strata in every.items()}
    profiles = {"tau": grid.tolist(), "curves": {label: [_plain(part) for part in curve] for label, curve in curves.items()}}
    pairs = [
        {"first": first, "second": second, **dataclasses.asdict(improvement(every[first], every[second]))}
        for first, second in itertools.combinations(every, 2)
    ]
    return {"profiles": profiles, "improvement": pairs}


def _plain(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _on_every_dataset(groups: Sequence[Group]) -> dict[str, list[list[float]]]:
    """label -> its scores on each dataset, for labels that have some on all of at least two."""
    datasets = {group.dataset for group in groups}
    if len(datasets) < 2 or groups[0].scale == "returns":
        return {}
    found = {}
    for label in dict.fromkeys(group.label for group in groups):
        own = {group.dataset: group for group in groups if group.label == label}
        scores = [[v for r in group.runs if (v := r.final(group.metric)) is not None] for _, group in sorted(own.items())]
        if len(own) == len(datasets) and all(scores):
            found[label] = scores
    return found


def _group_warnings(group: Group) -> list[str]:
    where = f"{group.label} on {group.dataset}"
    warnings = []
    repeated = [seed for seed, count in Counter(run.seed for run in group.runs).items() if count > 1]
    if repeated:
        warnings.append(f"{where}: seed {repeated[0]} is there more than once, so the spread over seeds is too small")
    updates = {run.evaluations[-1]["update"] for run in group.runs if run.evaluations}
    if len(updates) > 1:
        warnings.append(
            f"{where}: seeds were evaluated after different numbers of updates ({', '.join(map(str, sorted(updates)))})"
        )
    if len(group.runs) == 1:
        warnings.append(f"{where}: one seed only, so nothing is known about the spread")
    return warnings


def _run(group: Group, run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "label": group.label,
        "dataset": group.dataset,
        "seed": run.seed,
        "complete": run.is_complete,
        "updates": run.num_updates,
        "planned_updates": int(run.config.get("num_updates", 0)),
        "score": run.final("eval/score_mean"),
        "return": run.final("eval/return_mean"),
        "return_std": run.final("eval/return_std"),
        "success": run.final("eval/success_mean"),
        "episodes": run.final("eval/episodes"),
        "seconds": run.seconds,
        "updates_per_s": run.updates_per_s,
    }


def _card(card: dict[str, Any]) -> dict[str, Any]:
    """The card without long arrays and this machine's paths; with the score of the data's own behaviour."""
    shown: dict[str, Any] = {"stand_in": None, "sha256": None}  # for the page: a run without a dataset has neither
    shown |= {key: value for key, value in card.items() if key not in ("obs_mean", "obs_std", "env_spec", "cache_path")}
    low, high, mean = (card.get(key) for key in ("ref_min_score", "ref_max_score", "return_mean"))
    if low is not None and high is not None and mean is not None and high != low and has_comparable_episodes(card):
        shown["behaviour_score"] = 100.0 * (mean - low) / (high - low)
    return shown


def has_comparable_episodes(card: dict[str, Any]) -> bool:
    """Whether the data's episodes are episodes of the environment: a longer piece of a log collects more than an episode can.

    card: a dataset card as a dict.
    """
    limit = json.loads(card.get("env_spec") or "{}").get("max_episode_steps")
    longest = card.get("episode_length_max")
    return limit is not None and longest is not None and longest <= limit


def _config_table(groups: Sequence[Group]) -> dict[str, Any]:
    """What all experiments share, and each key in which they differ: {key: {experiment: value}}.

    One column for each label; a label that was configured differently on different datasets gets one for each of those.
    """
    configs = [{k: v for k, v in flatten(g.runs[0].config) if k not in ("algorithm", "seed", "dataset", "env")} for g in groups]
    versions: dict[str, set[str]] = defaultdict(set)
    for group, config in zip(groups, configs, strict=True):
        versions[group.label].add(repr(config))
    columns: dict[str, dict[str, Any]] = {}
    for group, config in zip(groups, configs, strict=True):
        columns.setdefault(group.label if len(versions[group.label]) == 1 else f"{group.label} on {group.dataset}", config)
    keys = dict.fromkeys(key for config in columns.values() for key in config)
    different = {key: {label: config.get(key) for label, config in columns.items()} for key in keys}
    different = {key: row for key, row in different.items() if len({repr(value) for value in row.values()}) > 1}
    shared = {key: next(iter(columns.values())).get(key) for key in keys if key not in different}
    return {"labels": list(columns), "different": different, "shared": shared}


def _environment_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each distinct environment once, with the runs made in it, and where a resumed run changed to it.

    Commands and start times differ by nature and are left out.
    """
    seen: dict[str, dict[str, Any]] = {}
    for run in runs:
        before = None
        for session in run.sessions:
            if before is not None and not changed(before, session):
                continue
            name = run.name if before is None else f"{run.name} from update {session['update']:,}"
            flat = {key: value for key, value in flatten(session) if key not in OF_A_SESSION}
            key = repr(sorted(flat.items(), key=lambda item: item[0]))
            seen.setdefault(key, {"values": flat, "runs": []})["runs"].append(name)
            before = session
    return [entry for entry in seen.values() if entry["values"]]


def experiment_of(run: Run) -> tuple:
    """Every setting that defines the experiment besides the dataset, as sorted (key, repr) pairs."""
    skipped = NOT_AN_EXPERIMENT | {"dataset", "env"}
    return tuple(sorted((key, repr(value)) for key, value in flatten(run.config) if not is_among(key, skipped)))


def _what_differs(experiment: tuple, siblings: Sequence[tuple]) -> str:
    """` (agent.horizon=3)`: the settings that not all experiments of this algorithm share."""
    shared = set(siblings[0]).intersection(*map(set, siblings[1:]))
    own = [f"{key.removeprefix('agent.')}={value}" for key, value in experiment if (key, value) not in shared]
    return f" ({', '.join(own)})" if own else ""


def _worker(run: Run) -> re.Match[str] | None:
    """Of a sweep's Worker, whose dataset without the vectors is known: its seeds belong together."""
    return WORKER.fullmatch(run.path.name) if run.dataset.get("base_sha256") else None


def _dataset_key(run: Run) -> tuple[str, str]:
    if worker := _worker(run):  # Why not its own sha256: that is another one for every seed
        name, sha = run.base
        return f"{name} {WITH[worker['kind']]}", f"{sha}-{run.dataset.get('obs_dim')}"
    name = run.dataset.get("name") or run.dataset.get("uri") or run.config.get("dataset")
    return str(name), str(run.dataset.get("sha256") or "")


def _dataset_names(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """A display name for each dataset; two contents under one name show the start of their hashes."""
    keys = dict.fromkeys(_dataset_key(run) for run in runs)
    count = Counter(name for name, _ in keys)
    return {(name, sha): name if count[name] == 1 else f"{name} [{sha[:8] or 'no hash'}]" for name, sha in keys}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
