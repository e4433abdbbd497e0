"""A search: settings that are tried on one dataset by one algorithm, each on all seeds, and judged by the mean over them.

A trial is one point of the space with all of the study's seeds: no point is better because of a lucky one. Without scheduler
and with random points, a search is nothing but more cells; what is here is for those whose next step depends on results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wmrl_ray.config import ConfigError, check, did_you_mean, from_dict, merged, to_dict
from wmrl_ray.space import Point, Space, corners

Settings = dict[str, Any]  # of runs, as in a training YAML

# What `train.evaluation_metrics` has; a success, a score and a plan not everywhere.
METRICS = tuple(
    f"eval/{name}"
    for name in (
        *("return_mean", "return_std", "length_mean", "episodes", "success_mean", "score_mean", "score_std"),
        *("plan_nan_frac", "plan_value_mean", "plan_std_mean"),
    )
)


@dataclass(frozen=True)
class TuneSpec:
    """How points are found and judged, and what a run may use. Times are counted in evaluations of a run (`eval_every`)."""

    num_samples: int = 1  # points of `search`, for each row, column, variant and point of the grid
    seed: int = 0  # of the points that are drawn
    searcher: Literal["random", "optuna"] = "random"
    scheduler: Literal["asha", "pbt"] | None = None
    metric: str = "eval/return_mean"  # of an evaluation; the mean over seeds counts
    mode: Literal["max", "min"] = "max"
    max_concurrent: int | None = None  # trials at a time; None: as many as there is room for
    grace_period: int = 1  # asha: evaluations before a trial may be stopped
    reduction_factor: float = 3.0  # asha: one of this many goes on
    perturbation_interval: int = 1  # pbt: evaluations between exploits
    quantile_fraction: float = 0.25  # pbt: the worst of these shares take the state of the best
    resample_probability: float = 0.25  # pbt: of drawing a setting again in place of multiplying it by 0.8 or 1.2
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    max_failures: int = 3  # times that a run whose process crashed is started again
    trial_timeout_s: float = 600.0  # of no sign of life from its process (slow is not lifeless) until it is ended; 0: never

    def __post_init__(self) -> None:
        for name in ("num_samples", "grace_period", "perturbation_interval"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}; it must be at least 1")
        for name in ("seed", "cpus_per_run", "gpus_per_run", "max_failures", "trial_timeout_s"):
            check(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}; it must not be negative")
        check(
            self.gpus_per_run <= 1 or self.gpus_per_run.is_integer(),
            f"gpus_per_run = {self.gpus_per_run}; a share of one GPU (up to 1), or a whole number of them",
        )
        check(self.max_concurrent is None or self.max_concurrent >= 1, f"max_concurrent = {self.max_concurrent}; at least 1")
        check(
            self.max_concurrent is None or self.is_adaptive,
            f"max_concurrent = {self.max_concurrent} without scheduler or searcher; points that are drawn at random are plain "
            "runs, as many at a time as there is room for: set cpus_per_run instead",
        )
        check(
            self.metric in METRICS,
            f"metric = {self.metric!r}{did_you_mean(self.metric, METRICS)}; evaluations have {', '.join(METRICS)}",
        )
        check(self.reduction_factor > 1, f"reduction_factor = {self.reduction_factor}; it must be above 1")
        check(0 < self.quantile_fraction <= 0.5, f"quantile_fraction = {self.quantile_fraction}; it must be in (0, 0.5]")
        check(0 <= self.resample_probability <= 1, f"resample_probability = {self.resample_probability}; it must be in [0, 1]")
        check(
            self.scheduler != "pbt" or self.searcher == "random",
            f"scheduler = 'pbt' with searcher = {self.searcher!r}; a population starts at random: drop one of them",
        )
        check(self.scheduler != "pbt" or self.num_samples >= 2, f"num_samples = {self.num_samples}; a population is 2 or more")
        check(
            self.scheduler != "pbt" or self.max_concurrent is None or self.max_concurrent >= self.num_samples,
            f"max_concurrent = {self.max_concurrent} with a population of num_samples = {self.num_samples}, whose members take "
            "turns by themselves and wait for each other; leave max_concurrent out",
        )

    @property
    def is_adaptive(self) -> bool:
        """Whether what runs next depends on results."""
        return self.scheduler is not None or self.searcher != "random"


@dataclass(frozen=True)
class Search:
    """One search. prefix: of its runs' folders. configs: seed -> settings of the run without the point. trials: the points that
    are known before anything runs; none where a searcher chooses them.
    """

    row: str
    dataset: str | None
    column: str
    variant: str
    prefix: str
    configs: dict[int, Settings]
    space: Space
    tune: TuneSpec
    trials: list[Point] = field(default_factory=list)
    blocked: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.row, self.column, self.variant

    @property
    def folder(self) -> str:
        """Of its records."""
        return f"{self.prefix}-search"

    @property
    def rungs(self) -> list[int]:
        """The updates at which trials are judged."""
        config = next(iter(self.configs.values()))
        every, total = config["eval_every"], config["num_updates"]
        return [*range(every, total, every), total]

    def config(self, point: Point, seed: int) -> Settings:
        """Of the run. Raises ConfigError, naming the trial."""
        from wmrl_ray.run.config import RunConfig  # Why here: it loads torch

        try:
            return to_dict(from_dict(RunConfig, merged(self.configs[seed], point)).resolved())
        except ConfigError as error:
            raise ConfigError(f"{self.prefix}, {point}: {error}") from None

    def run(self, name: str, seed: int) -> str:
        """The folder of a trial's run, relative to the sweep's."""
        return f"{self.prefix}-{name}-s{seed}"

    def variant_of(self, name: str) -> str:
        """As in study.json."""
        return f"{self.variant}-{name}"

    def check(self) -> None:
        """Every trial that is known, or else every end of the space. Raises ConfigError, naming it."""
        config = next(iter(self.configs.values()))
        check(
            config["eval_every"] > 0,
            f"{self.prefix}: eval_every = 0; tune.{'scheduler' if self.tune.scheduler else 'searcher'} judges runs by their "
            "evaluations: set run.eval_every",
        )
        spec, evaluations = self.tune, len(self.rungs)
        if spec.scheduler == "asha":
            check(
                spec.grace_period < evaluations,
                f"{self.prefix}: tune.grace_period = {spec.grace_period} with {evaluations} evaluations in a run: no trial "
                "would be stopped early; lower it, or run.eval_every",
            )
        if spec.scheduler == "pbt":
            check(
                spec.perturbation_interval < evaluations,
                f"{self.prefix}: tune.perturbation_interval = {spec.perturbation_interval} with {evaluations} evaluations in a "
                "run: no member would ever take another's state; lower it, or run.eval_every",
            )
        for point in self.trials or corners(self.space):
            self.config(point, next(iter(self.configs)))
        for key in self.space:
            check(
                key not in ("num_updates", "eval_every", "updates_per_call", "seed", "dataset", "env", "algorithm"),
                f"search: {key}; the trials of a search are judged at the same updates of the same task",
            )
