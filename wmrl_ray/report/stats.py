"""Numbers over seeds: mean, sample deviation, interquartile mean, a stratified bootstrap interval, Welch's test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Summary:
    """One quantity over n seeds. std, ci_low and ci_high are None for one seed: it says nothing about the spread."""

    n: int
    mean: float
    std: float | None  # sample standard deviation (n - 1)
    iqm: float
    ci_low: float | None  # 95% percentile bootstrap interval of the IQM
    ci_high: float | None


@dataclass(frozen=True)
class Comparison:
    """Whether two arms differ. p is None where no test can be made; `why` then says why, and is None otherwise."""

    p: float | None
    why: str | None


def welch(baseline: Sequence[float], ours: Sequence[float]) -> Comparison:
    """Welch's two-sided t-test over the seeds of two arms (variances need not be equal).

    It estimates a variance from each arm. With one seed there is none, and with none in either arm the statistic is a
    division by zero, whatever the means are: then there is no test.
    """
    if min(len(baseline), len(ours)) < 2:
        return Comparison(None, "one seed")
    if np.ptp(baseline) == 0 and np.ptp(ours) == 0:
        return Comparison(None, "no spread")
    from scipy.stats import ttest_ind  # lazily: only reports on a study need it

    _, p = np.asarray(ttest_ind(ours, baseline, equal_var=False), dtype=np.float64)
    return Comparison(float(p), None)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean without the lowest and the highest floor(n / 4) values.

    The same trimming as the field's rliable; with fewer than four values nothing is cut and it is the mean.
    """
    values = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = values.shape[-1]
    if n == 0:
        raise ValueError("the interquartile mean of no values is undefined")
    cut = n // 4
    return values[..., cut : n - cut].mean(axis=-1)


def bootstrap_interval(
    strata: Sequence[Sequence[float] | np.ndarray],
    statistic: Statistic = iqm,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over all values, resampling seeds with replacement inside each stratum.

    strata: one sequence of per-seed values for each dataset. Resampling within them keeps every dataset's weight fixed.
    """
    generator = np.random.default_rng(seed)
    columns = []
    for stratum in strata:
        values = np.asarray(stratum, dtype=np.float64)
        columns.append(values[generator.integers(len(values), size=(num_resamples, len(values)))])  # [R, n]
    estimates = statistic(np.concatenate(columns, axis=-1))  # [R]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail])
    return float(low), float(high)


def summarize(values: Sequence[float] | np.ndarray) -> Summary:
    """The summary of one value per seed."""
    return summarize_strata([values])


def summarize_strata(strata: Sequence[Sequence[float] | np.ndarray]) -> Summary:
    """The summary over several datasets at once: every (dataset, seed) value counts once."""
    values = np.concatenate([np.asarray(stratum, dtype=np.float64) for stratum in strata])
    if len(values) == 0:
        raise ValueError("nothing to summarise: no seed has a value")
    if not np.isfinite(values).all():
        raise ValueError(f"cannot summarise values that are not finite: {values.tolist()}")
    low, high = bootstrap_interval(strata) if len(values) > 1 else (None, None)
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(values.mean()), std, float(iqm(values)), low, high)


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, mean, low, high) over seeds at the x that every seed has; low and high are the extremes, honest for few seeds.

    curves: (x [N] increasing, y [N]) for each seed. A shorter run shortens the curve: it never changes who is averaged.
    """
    common = np.asarray(curves[0][0])
    for x, _ in curves[1:]:
        common = np.intersect1d(common, x)
    values = np.stack([y[np.searchsorted(x, common)] for x, y in curves])  # [seeds, N]
    return common, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
