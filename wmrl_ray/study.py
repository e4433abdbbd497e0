"""A study: the cells of a paper's table, each a training run. YAML -> plan, before anything is read, made or trained.

    plan = expand(from_dict(Study, values), stand_ins=True)   # every cell named, validated, and with what it waits for

A cell is one number of the table for one seed: a dataset (row), an algorithm (column), a variant. The variants `flat` and
`baseline` train on the dataset as it is; `intents` waits for a Manager of the same dataset and seed, which all its Workers
share, and trains on the dataset with that Manager's intents; `random` has random vectors of the same size in their place.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wmrl_ray.config import ConfigError, check, did_you_mean, flatten, from_dict, set_key, to_dict
from wmrl_ray.data.source import is_local

SCHEMA = "wmrl.study/v1"
VARIANTS = ("flat", "baseline", "intents", "random")
MANAGER = "manager"

Settings = dict[str, Any]  # of runs, as in a training YAML


@dataclass(frozen=True)
class DatasetSpec:
    """A row. uri: where its data is expected. stand_in: the Minari id of our own dataset for the same task, or None.

    family: which of an algorithm's settings it takes. env: to evaluate in; None: the dataset's own. The rest says how to come
    by the original: source, the package that makes its HDF5 file; ref_scores, the returns that score 0 and 100 (the file does
    not say); minari, the id of a remake that Minari hosts.
    """

    uri: str
    family: str = ""
    stand_in: str | None = None
    source: str | None = None
    env: str | None = None
    ref_scores: tuple[float, ...] | None = None
    minari: str | None = None

    def __post_init__(self) -> None:
        check(
            self.ref_scores is None or len(self.ref_scores) == 2,
            f"ref_scores = {self.ref_scores}; two are needed, the returns that score 0 and 100",
        )


@dataclass(frozen=True)
class RunSpec:
    """Settings of an algorithm's runs: `run` on every dataset, and over them those of the dataset's family."""

    run: Settings = field(default_factory=dict)
    families: dict[str, Settings] = field(default_factory=dict)
    not_implemented: str | None = None  # why, and where the paper's numbers come from: its cells are named, and blocked


@dataclass(frozen=True)
class Study:
    """What a study's YAML holds. Settings nearer to the end count: run, variants, the algorithm's, its family's, grid."""

    paper: str
    table: str
    variants: dict[str, Settings]
    datasets: dict[str, DatasetSpec]
    algorithms: dict[str, RunSpec]
    rows: list[str] | None = None  # of datasets; None: all
    columns: list[str] | None = None  # of algorithms; None: all
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    run: Settings = field(default_factory=dict)
    manager: RunSpec | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)  # `manager.<setting>`: values; multiplies the cells with intents

    def __post_init__(self) -> None:
        lists = {"rows": self.rows, "columns": self.columns, "seeds": self.seeds, **self.grid}
        for name, values in lists.items():
            check(values is None or len(values) > 0, f"{name} = []; name at least one, or leave {name} out for all")
            check(
                values is None or len(set(map(repr, values))) == len(values), f"{name} = {values}; one of them is there twice"
            )
        _known("rows", self.rows or [], self.datasets)
        _known("columns", self.columns or [], self.algorithms)
        _known("variants", self.variants, VARIANTS)
        families = {spec.family for spec in self.datasets.values()}
        for name, spec in {MANAGER: self.manager or RunSpec(), **self.algorithms}.items():
            _known(f"families of {name}", spec.families, families)
        check(bool(self.datasets and self.algorithms and self.variants), "datasets, algorithms and variants must not be empty")
        for name in (self.paper, self.table, *self.datasets, *self.algorithms):
            # Why: they name folders and files below --out
            inside = name not in ("", ".") and ".." not in name.split("/") and not name.startswith(("/", "~"))
            check(
                inside and "\\" not in name and "\0" not in name,
                f"name {name!r} leads out of the sweep's folder; choose another",
            )
        check(all(seed >= 0 for seed in self.seeds), f"seeds = {self.seeds}; none may be negative")
        check(
            self.manager is not None or not {"intents", "random"} & set(self.variants),
            "the variants 'intents' and 'random' need settings of a Manager: add manager: {run: {...}}",
        )
        for axis in self.grid:
            check(
                axis.startswith(f"{MANAGER}.") and "intents" in self.variants,
                f"grid axis {axis!r}; an axis is a setting of the Manager of the variant 'intents', such as manager.agent.skip",
            )

    @property
    def row_names(self) -> list[str]:
        return list(self.datasets) if self.rows is None else self.rows

    @property
    def column_names(self) -> list[str]:
        return list(self.algorithms) if self.columns is None else self.columns


@dataclass(frozen=True)
class Cell:
    """One run of a table. run: its folder, relative to the sweep's. config: of RunConfig, None where nothing is implemented.

    With intents, config's dataset is the plain one still; manager: the folder of the run whose intents go behind its
    observations. random_dim: the size of the random vectors there. blocked: one line, why it cannot run and what to do.
    """

    row: str
    dataset: str
    column: str
    variant: str
    seed: int
    run: str
    config: Settings | None = None
    manager: str | None = None
    random_dim: int | None = None
    blocked: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """As in study.json."""
        names = ("row", "dataset", "column", "variant", "seed", "run", "manager", "blocked")
        return {name: getattr(self, name) for name in names}

    @property
    def key(self) -> tuple[Any, ...]:
        return self.row, self.column, self.variant, self.seed


@dataclass(frozen=True)
class Plan:
    """All cells of a study, and the Managers that they wait for: run folder -> config."""

    paper: str
    table: str
    stand_ins: bool
    cells: list[Cell]
    managers: dict[str, Settings]

    def select(self, patterns: Sequence[str]) -> Plan:
        """The cells that match a pattern ROW/COLUMN/VARIANT, whose parts may hold * and ? and be left out from the end.

        Raises:
            ConfigError: a pattern that matches none.
        """
        for pattern in patterns:
            if not any(_matches(cell, pattern) for cell in self.cells):
                parts = zip(("rows", "columns", "variants"), zip(*(c.key[:3] for c in self.cells), strict=True), strict=True)
                names = "; ".join(f"{name}: {', '.join(dict.fromkeys(values))}" for name, values in parts)
                raise ConfigError(f"--only {pattern!r} (ROW/COLUMN/VARIANT) matches no cell; {names}")
        cells = [cell for cell in self.cells if not patterns or any(_matches(cell, pattern) for pattern in patterns)]
        needed = {cell.manager for cell in cells if not cell.blocked}
        return replace(self, cells=cells, managers={run: c for run, c in self.managers.items() if run in needed})


def is_study(values: Mapping[str, Any]) -> bool:
    """Whether a YAML's content is a study's and not a single run's."""
    return "algorithm" not in values and not {"datasets", "algorithms", "table"}.isdisjoint(values)


def expand(
    study: Study,
    *,
    stand_ins: bool = False,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    is_here: Callable[[str], bool] = is_local,
) -> Plan:
    """Every cell of the study, validated.

    Args:
        stand_ins: take each row's stand-in in place of the original.
        seeds: in place of the study's.
        overrides: settings for all runs; below the name of a column or `manager`, for its runs alone.
        is_here: whether the dataset at a URI can be opened without a download.

    Raises:
        ConfigError: a setting that some run or agent does not take; the message names its cell.
    """
    settings = _Settings(study, overrides or {})
    cells: list[Cell] = []
    managers: dict[str, Settings] = {}
    here: dict[str, bool] = {}
    for row, seed in itertools.product(study.row_names, study.seeds if seeds is None else seeds):
        spec = study.datasets[row]
        uri = spec.stand_in if stand_ins else spec.uri
        absent = None
        if uri is None:
            uri, absent = spec.uri, f"there is no stand-in for {row}; get the original, and sweep without --stand-ins"
        elif not here.setdefault(uri, is_here(uri)):
            absent = how_to_get(row, spec, uri)
        base = {"dataset": uri, "seed": seed, "env": spec.env if uri == spec.uri else None}
        variants = list(_variants(study, lambda point, row=row, base=base: settings.manager(row, base, point)))
        for column, (variant, point, suffix) in itertools.product(study.column_names, variants):
            run = f"{row}/{column}-{variant}{suffix}-s{seed}"
            cell = Cell(row, uri, column, variant + suffix, seed, run)
            if reason := study.algorithms[column].not_implemented:
                cells.append(replace(cell, blocked=reason))
                continue
            cell = replace(cell, config=settings.of(column, row, base, run, study.variants[variant]), blocked=absent)
            if variant == "intents":
                cell = replace(cell, manager=f"{row}/{MANAGER}{suffix}-s{seed}")
                if cell.manager not in managers:
                    managers[str(cell.manager)] = settings.manager(row, base, point)
            elif variant == "random":
                dim = settings.manager(row, base, {})["agent"]["model"]["latent_dim"]
                cell = replace(cell, random_dim=int(dim))
            cells.append(cell)
    return Plan(study.paper, study.table, stand_ins, cells, managers).select([])


def how_to_get(row: str, spec: DatasetSpec, uri: str) -> str:
    """One line for a dataset that is not on this machine."""
    from wmrl_ray.data.makers import MAKERS

    absent = f"dataset {uri!r} is not on this machine"
    makers = [maker.name for maker in MAKERS.values() if maker.dataset_id == uri]
    if makers:
        return f"{absent}; make it: wmrl data make {makers[0]}"
    if uri != spec.uri or spec.source is None:
        return f"{absent}; make, download or import it there (wmrl data --help)"
    scores = "" if spec.ref_scores is None else " --ref-min {:.10g} --ref-max {:.10g}".format(*spec.ref_scores)
    line = (
        f"{absent}; {spec.source} writes its HDF5 file (gym.make({row!r}).get_dataset()), then: "
        f"wmrl data import FILE {uri} --env {spec.env or 'ENV'}{scores}"
    )
    if spec.env is None:
        line += (
            f" (ENV: you have to supply an environment in {spec.source}'s coordinates as a Gymnasium "
            "id, module:id; none of the mazes here is in them)"
        )
    if spec.minari:
        line += f"; or a remake with scores of its own, as uri of this row: minari download {spec.minari}"
    return line if spec.stand_in is None else f"{line}; or --stand-ins"


class _Settings:
    """Layers of settings -> a run's configuration, checked, with all defaults written out."""

    def __init__(self, study: Study, overrides: Mapping[str, Any]):
        self.study = study
        names = {MANAGER, *study.algorithms}
        self.special = {key: value for key, value in overrides.items() if key in names}  # for one algorithm's runs
        self.common = {key: value for key, value in overrides.items() if key not in names}
        for key, value in self.special.items():
            check(isinstance(value, Mapping), f"--set {key}={value!r}; name a setting below it, such as {key}.num_updates")

    def of(self, algorithm: str, row: str, base: Settings, run: str, *nearer: Settings) -> Settings:
        """Of a run of `algorithm` on `row`. Raises ConfigError, naming the run."""
        from wmrl_ray.core.agents import agent_config  # Why here: it loads torch
        from wmrl_ray.run import RunConfig

        study = self.study
        spec = (study.manager or RunSpec()) if algorithm == MANAGER else study.algorithms[algorithm]
        variant, *point = [*nearer, {}]
        family = spec.families.get(study.datasets[row].family, {})
        try:
            # Why from the defaults: a setting below `agent.plan` leaves the agent's other defaults for it as they are
            values: Settings = {"algorithm": algorithm, **base, "agent": to_dict(agent_config(algorithm, {}))}
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from None
        for layer in (study.run, variant, spec.run, family, self.common, self.special.get(algorithm, {}), *point):
            for key, value in flatten(layer):
                fixed = key in ("algorithm", "dataset", "seed", "env")
                check(not fixed, f"{run}: {key} = {value!r}; the study's rows, columns and seeds decide it")
                set_key(values, key, copy.deepcopy(value))
        try:
            return to_dict(from_dict(RunConfig, values).resolved())
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from None

    def manager(self, row: str, base: Settings, point: Settings) -> Settings:
        """Of the Manager at a point of the grid."""
        nested: Settings = {}
        for key, value in point.items():
            set_key(nested, key, value)
        return self.of(MANAGER, row, base, f"{row}/{MANAGER}-s{base['seed']}", {}, nested)


def _variants(study: Study, manager: Callable[[Settings], Settings]) -> Iterator[tuple[str, Settings, str]]:
    """(variant, point of the grid, its suffix in folder names); the point that changes nothing has no suffix."""
    for variant in study.variants:
        if variant != "intents" or not study.grid:
            yield variant, {}, ""
            continue
        plain = dict(flatten(manager({})))
        for values in itertools.product(*study.grid.values()):
            point = {axis.removeprefix(f"{MANAGER}."): value for axis, value in zip(study.grid, values, strict=True)}
            changed = any(plain.get(key) != value for key, value in point.items())
            name = "".join(f"-{key.rpartition('.')[2]}{value}" for key, value in point.items())
            yield variant, point, name if changed else ""


def _matches(cell: Cell, pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) <= 3 and all(map(fnmatch.fnmatchcase, map(str, cell.key), parts))


def _known(what: str, names: Sequence[str] | Mapping[str, Any], known: Any) -> None:
    for name in names:
        check(name in known, f"{what}: unknown {name!r}{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
