"""A study: the cells of a paper's table, each a training run. YAML -> plan, before anything is read, made or trained.

    plan = expand(from_dict(Study, values), stand_ins=True)   # every cell named, validated, and with what it waits for

A cell is one number of the table for one seed: a dataset (row), an algorithm (column), a variant. The variants `flat` and
`baseline` train on the dataset as it is; `intents` waits for a Manager of the same dataset and seed, which all its Workers
share, and trains on the dataset with that Manager's intents; `random` has random vectors of the same size in their place.
A grid multiplies the cells by settings that are listed, and `search` by settings that are drawn; where what is drawn, or how
long it runs, depends on results (`tune`), the plan holds searches in place of cells.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wmrl_ray.config import ConfigError, check, did_you_mean, flatten, from_dict, merged, to_dict
from wmrl_ray.data.files import slug
from wmrl_ray.data.source import is_local
from wmrl_ray.rows import DatasetSpec, how_to_get, no_stand_in, not_whole
from wmrl_ray.search import Search, TuneSpec
from wmrl_ray.space import Point, draw, make_space, point_name

SCHEMA = "wmrl.study/v1"
VARIANTS = ("flat", "baseline", "intents", "random")
MANAGER = "manager"
MOST_BYTES = 80  # of a name that folders are named after, and of what a grid adds: with both, a file system takes it

Settings = dict[str, Any]  # of runs, as in a training YAML


@dataclass(frozen=True)
class RunSpec:
    """Settings of an algorithm's runs: `run` on every dataset, and over them those of the dataset's family."""

    run: Settings = field(default_factory=dict)
    families: dict[str, Settings] = field(default_factory=dict)
    not_implemented: str | None = None  # why, and where the paper's numbers come from: its cells are named, and blocked


@dataclass(frozen=True)
class Study:
    """What a study's YAML holds. Of a setting the last counts: run, variants, the algorithm's, its family's, grid, search."""

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
    # setting: values, all combinations of them; `manager.<setting>` multiplies the cells with intents alone
    grid: dict[str, list[Any]] = field(default_factory=dict)
    search: dict[str, dict[str, Any]] = field(default_factory=dict)  # setting: {kind: numbers}, see space.KINDS
    tune: TuneSpec = field(default_factory=TuneSpec)

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
            inside = not {"", ".", ".."} & set(name.split("/")) and not name.startswith("~")
            check(
                inside and "\\" not in name and "\0" not in name,
                f"name {name!r} leads out of the sweep's folder; choose another",
            )
            check(name in self.datasets or "/" not in name, f"name {name!r} has a slash in it; choose another")
            longest = max(len(part.encode()) for part in name.split("/"))
            check(longest <= MOST_BYTES, f"name {name!r} has {longest} bytes; folders are named after it: at most {MOST_BYTES}")
        check(all(seed >= 0 for seed in self.seeds), f"seeds = {self.seeds}; none may be negative")
        check(
            self.manager is not None or not {"intents", "random"} & set(self.variants),
            "the variants 'intents' and 'random' need settings of a Manager: add manager: {run: {...}}",
        )
        for axis in [*self.grid, *self.search]:
            check(
                not axis.startswith(f"{MANAGER}.") or "intents" in self.variants,
                f"{axis} is a setting of the Manager, and there is no variant 'intents' that has one; name a run's, such as "
                "agent.lr",
            )
            check(axis != "seed", "seed: seeds are an axis of their own; set seeds: [0, 1, 2]")
        check(not (both := self.grid.keys() & self.search.keys()), f"{', '.join(sorted(both))}: in grid and in search")
        make_space(self.search)  # for its errors
        if not self.search:
            check(
                not self.tune.is_adaptive and self.tune.num_samples == 1,
                "tune draws from search: {setting: {kind: ...}}; add it",
            )
        check(
            not self.tune.is_adaptive or not {"intents", "random"} & set(self.variants),
            f"tune.scheduler and tune.searcher are for the variants 'flat' and 'baseline', not {', '.join(self.variants)}, "
            "which need runs before them; draw at random without scheduler",
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
    dataset: str | None
    column: str
    variant: str
    seed: int
    run: str
    config: Settings | None = None
    manager: str | None = None
    random_dim: int | None = None
    blocked: str | None = None
    point: Point = field(default_factory=dict)  # the settings by which a grid or a search tells it from its siblings

    @property
    def record(self) -> dict[str, Any]:
        """As in study.json."""
        names = ("row", "dataset", "column", "variant", "seed", "run", "manager", "blocked", "point")
        return {name: getattr(self, name) for name in names}

    @property
    def key(self) -> tuple[Any, ...]:
        return self.row, self.column, self.variant, self.seed


@dataclass(frozen=True)
class Plan:
    """All cells of a study, the Managers that they wait for (run folder -> config), and its searches."""

    paper: str
    table: str
    stand_ins: bool
    cells: list[Cell]
    managers: dict[str, Settings]
    searches: list[Search] = field(default_factory=list)
    tune: TuneSpec = field(default_factory=TuneSpec)

    def select(self, patterns: Sequence[str]) -> Plan:
        """The cells that match a pattern ROW/COLUMN/VARIANT, whose parts may hold * and ? and be left out from the end.

        Raises:
            ConfigError: a pattern that matches none.
        """
        keys = [c.key[:3] for c in self.cells] + [s.key for s in self.searches]
        for pattern in patterns:
            if not any(_matches(key, pattern) for key in keys):
                parts = zip(("rows", "columns", "variants"), zip(*keys, strict=True), strict=True)
                names = "; ".join(f"{name}: {', '.join(dict.fromkeys(values))}" for name, values in parts)
                raise ConfigError(f"--only {pattern!r} (ROW/COLUMN/VARIANT) matches no cell; {names}")

        def chosen(key: tuple[Any, ...]) -> bool:
            return not patterns or any(_matches(key, pattern) for pattern in patterns)

        cells = [cell for cell in self.cells if chosen(cell.key[:3])]
        needed = {cell.manager for cell in cells if not cell.blocked}
        managers = {run: c for run, c in self.managers.items() if run in needed}
        return replace(self, cells=cells, managers=managers, searches=[s for s in self.searches if chosen(s.key)])


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
    searches: dict[tuple[str, ...], Search] = {}
    space = make_space(study.search)
    points = draw(space, study.tune.num_samples, study.tune.seed) if space else [{}]
    for row, seed in itertools.product(study.row_names, study.seeds if seeds is None else seeds):
        spec = study.datasets[row]
        uri = spec.stand_in if stand_ins else spec.uri
        absent = spec.not_available
        if uri is None and spec.uri is not None:
            uri, absent = spec.uri, no_stand_in(row, spec)
        elif uri is not None and absent is None:
            is_there = here.setdefault(uri, is_here(uri))
            absent = not_whole(uri) if is_there else how_to_get(row, spec, uri)
        base = {"dataset": uri, "seed": seed, "env": spec.env if uri == spec.uri else None}
        base |= {"env_config": spec.env_config} if spec.env_config and uri == spec.uri else {}
        for column, variant in itertools.product(study.column_names, study.variants):
            prefix = f"{row}/{column}-{variant}"
            cell = Cell(row, uri, column, variant, seed, f"{prefix}-s{seed}")
            if reason := study.algorithms[column].not_implemented:
                cells.append(replace(cell, blocked=reason))
                continue
            make = _Maker(settings, column, row, base, variant)
            own_points = map(make.of_variant, points)
            drawn = list({point_name(point): point for point in own_points}.values())  # once is enough of what is drawn twice
            for point, suffix in make.grid():
                if study.tune.is_adaptive:
                    key = (row, column, variant + suffix)
                    config = make.config(point, f"{prefix}{suffix}-s{seed}")
                    first = [] if study.tune.searcher == "optuna" else drawn
                    new = Search(*key[:1], uri, *key[1:], f"{prefix}{suffix}", {}, space, study.tune, first, absent)
                    searches.setdefault(key, new).configs[seed] = config
                    continue
                for drawn_point in drawn:
                    both, name = point | drawn_point, suffix + (f"-{point_name(drawn_point)}" if drawn_point else "")
                    run = f"{prefix}{name}-s{seed}"
                    own = replace(
                        cell, variant=variant + name, run=run, config=make.config(both, run), blocked=absent, point=both
                    )
                    if variant == "intents":
                        mine = make.manager_suffix(both, name)
                        own = replace(own, manager=f"{row}/{MANAGER}{mine}-s{seed}")
                        managers.setdefault(str(own.manager), make.manager(both))
                    elif variant == "random":
                        own = replace(own, random_dim=int(make.manager({})["agent"]["model"]["latent_dim"]))
                    cells.append(own)
    for search in searches.values():
        search.check()
    _check_distinct(cell.run for cell in cells)
    return Plan(study.paper, study.table, stand_ins, cells, managers, list(searches.values()), study.tune).select([])


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
        from wmrl_ray.run.config import RunConfig

        study = self.study
        spec = (study.manager or RunSpec()) if algorithm == MANAGER else study.algorithms[algorithm]
        variant, *point = [*nearer, {}]
        family = spec.families.get(study.datasets[row].family, {})
        try:
            # Why from the defaults: a setting below `agent.plan` leaves the agent's other defaults for it as they are
            values: Settings = {"algorithm": algorithm, **base, "agent": to_dict(agent_config(algorithm, {}))}
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from None
        layers = (study.run, variant, spec.run, family, self.common, self.special.get(algorithm, {}), *point)
        for key, value in itertools.chain.from_iterable(layer.items() for layer in layers):
            fixed = key in ("algorithm", "dataset", "seed", "env")
            check(not fixed, f"{run}: {key} = {value!r}; the study's rows, columns and seeds decide it")
        try:
            config = from_dict(RunConfig, merged(values, *layers)).resolved()
            for key, number in (("online.num_runners", config.online.num_runners), ("num_learners", config.num_learners)):
                check(number == 0, f"{key} = {number}; a run of a sweep is one process: set {key} = 0, and run more at a time")
            return to_dict(config)
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from None


@dataclass(frozen=True)
class _Maker:
    """Makes the configurations of one column's runs in one row, for one seed and one variant."""

    settings: _Settings
    column: str
    row: str
    base: Settings
    variant: str

    def config(self, point: Point, run: str) -> Settings:
        own = {key: value for key, value in point.items() if not _is_managers(key)}
        return self.settings.of(self.column, self.row, self.base, run, self.settings.study.variants[self.variant], own)

    def manager(self, point: Point) -> Settings:
        """Of the Manager at a point, whose other settings are the Worker's."""
        own = {key.partition(".")[2]: value for key, value in point.items() if _is_managers(key)}
        run = f"{self.row}/{MANAGER}-s{self.base['seed']}"
        return self.settings.of(MANAGER, self.row, self.base, run, {}, own)

    def manager_suffix(self, point: Point, suffix: str) -> str:
        """Of the Manager's folder: the Worker's own settings make no other Manager."""
        mine = {key: value for key, value in point.items() if _is_managers(key)}
        if mine == point:
            return suffix
        return self._suffix(mine, dict(flatten(self.manager({}))), f"{MANAGER}.") if mine else ""

    def of_variant(self, axes: Mapping[str, Any]) -> dict[str, Any]:
        """Without a Manager's where the variant has none."""
        return {axis: value for axis, value in axes.items() if self.variant == "intents" or not _is_managers(axis)}

    def grid(self) -> Iterator[tuple[Point, str]]:
        """(point of the grid, its suffix in folder names); the point that changes nothing has no suffix."""
        grid = self.of_variant(self.settings.study.grid)
        if not grid:
            yield {}, ""
            return
        plain = dict(flatten(self.config({}, f"{self.row}/{self.column}-{self.variant}")))
        if any(map(_is_managers, grid)):
            plain |= {f"{MANAGER}.{key}": value for key, value in flatten(self.manager({}))}
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            yield point, self._suffix(point, plain)

    def _suffix(self, point: Point, plain: Mapping[str, Any], prefix: str = "") -> str:
        changed = any(plain.get(key.removeprefix(prefix)) != value for key, value in point.items())
        parts = [slug(f"{key.rpartition('.')[2]}{value}", MOST_BYTES // 2) for key, value in point.items()]
        return f"-{slug('-'.join(parts), MOST_BYTES)}" if changed else ""


def _is_managers(setting: str) -> bool:
    return setting.startswith(f"{MANAGER}.")


def _check_distinct(runs: Iterable[str]) -> None:
    """Raises ConfigError where two cells would be one folder."""
    for run, count in Counter(runs).items():
        check(count == 1, f"{run}: {count} cells have this name; is a value of the grid there twice, in two spellings?")


def _matches(key: tuple[Any, ...], pattern: str) -> bool:
    parts = pattern.split("/")
    return len(parts) <= 3 and all(map(fnmatch.fnmatchcase, map(str, key), parts))


def _known(what: str, names: Sequence[str] | Mapping[str, Any], known: Any) -> None:
    for name in names:
        check(name in known, f"{what}: unknown {name!r}{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
