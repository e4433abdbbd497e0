"""Numbers over seeds: mean, sample deviation, interquartile mean, stratified bootstrap intervals, performance profiles, the
probability of improvement, Welch's test.
"""

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


@dataclass(frozen=True)
class Improvement:
    """P(a run of the first > a run of the second on the same dataset), ties counting half, the mean over datasets. The ends of
    the 95% interval are None where neither has more than one seed.
    """

    probability: float
    ci_low: float | None
    ci_high: float | None


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
    columns = _resampled(strata, num_resamples, np.random.default_rng(seed))
    low, high = _interval(statistic(np.concatenate(columns, axis=-1)), confidence)
    return float(low), float(high)


def performance_profile(
    strata: Sequence[Sequence[float] | np.ndarray], tau: np.ndarray, *, num_resamples: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(fraction, low, high) [K]: the share of runs whose score is above tau [K], each dataset counting alike, and the 95%
    interval at each tau (None where no dataset has two seeds). The area under it from 0 on is the mean; where it crosses a half
    is the median run.
    """
    share = np.mean([_above(np.asarray(stratum, dtype=np.float64), tau) for stratum in strata], axis=0)
    if max(map(len, strata)) < 2:
        return share, None, None
    columns = _resampled(strata, num_resamples, np.random.default_rng(seed))
    low, high = _interval(np.mean([_above(column, tau) for column in columns], axis=0), 0.95)
    return share, low, high


def improvement(
    first: Sequence[Sequence[float] | np.ndarray],
    second: Sequence[Sequence[float] | np.ndarray],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Improvement:
    """The probability of improvement of `first` over `second`, which have one sequence of per-seed values for each dataset.

    Each dataset's is Mann and Whitney's U divided by the number of pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} datasets against {len(second)}; both need the same ones")
    point = float(np.mean([_wins(np.asarray(x, float), np.asarray(y, float)) for x, y in zip(first, second, strict=True)]))
    if max(map(len, [*first, *second])) < 2:
        return Improvement(point, None, None)
    generator = np.random.default_rng(seed)
    both = (_resampled(strata, num_resamples, generator) for strata in (first, second))
    low, high = _interval(np.mean([_wins(x, y) for x, y in zip(*both, strict=True)], axis=0), 0.95)
    return Improvement(point, float(low), float(high))


def _resampled(
    strata: Sequence[Sequence[float] | np.ndarray], num_resamples: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """[R, n] of each stratum: its values, drawn with replacement."""
    columns = []
    for stratum in strata:
        values = np.asarray(stratum, dtype=np.float64)
        columns.append(values[generator.integers(len(values), size=(num_resamples, len(values)))])
    return columns


def _interval(estimates: np.ndarray, confidence: float) -> np.ndarray:
    """Percentiles [2, ...] of estimates [R, ...]."""
    tail = (1.0 - confidence) / 2.0
    return np.quantile(estimates, [tail, 1.0 - tail], axis=0)


def _above(values: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """[..., n], [K] -> [..., K]: the share of the values above each tau, without an array of [..., n, K]."""
    return np.stack([(values > t).mean(-1) for t in tau], axis=-1)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[..., n], [..., m] -> [...]: the share of pairs in which x is larger, ties counting half."""
    difference = np.sign(x[..., :, None] - y[..., None, :])
    return (difference.mean((-2, -1)) + 1.0) / 2.0


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
    # Why not of one seed each: resampling one value gives that value, an interval of no width
    low, high = bootstrap_interval(strata) if max(map(len, strata)) > 1 else (None, None)
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
