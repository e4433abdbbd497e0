"""Statistics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wmrl_ray.report.stats import (
    Improvement,
    band,
    bootstrap_interval,
    improvement,
    iqm,
    performance_profile,
    summarize,
    summarize_strata,
    welch,
)


def test_iqm_drops_a_quarter_at_each_end():
    assert iqm(np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0])) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_iqm_of_five_values_drops_one_at_each_end():
    assert iqm(np.array([0.0, 10.0, 20.0, 30.0, 1000.0])) == pytest.approx(20.0)


def test_iqm_of_three_values_is_their_mean():
    assert iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)


def test_iqm_works_along_the_last_axis():
    assert iqm(np.array([[4.0, 1.0, 2.0, 9.0], [0.0, 0.0, 8.0, 8.0]])).tolist() == [3.0, 4.0]


def test_iqm_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        iqm(np.array([]))


def test_standard_deviation_is_the_sample_one():
    summary = summarize([2.0, 4.0, 9.0])
    assert (summary.n, summary.mean) == (3, 5.0)
    assert summary.std == pytest.approx(13.0**0.5)  # ((-3)^2 + (-1)^2 + 4^2) / 2


def test_one_seed_has_no_spread_and_no_interval():
    summary = summarize([7.0])
    assert (summary.mean, summary.iqm, summary.std, summary.ci_low, summary.ci_high) == (7.0, 7.0, None, None, None)


def test_the_interval_of_two_values_spans_both():
    # A resample of two gives 0, 5 or 10 with probabilities 1/4, 1/2, 1/4: both 2.5% tails lie on the extremes.
    assert bootstrap_interval([[0.0, 10.0]]) == (0.0, 10.0)


def test_the_interval_of_many_values_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(50.0, 10.0, 400)
    low, high = bootstrap_interval([values], lambda x: x.mean(axis=-1))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1)
    assert high == pytest.approx(values.mean() + half, abs=0.1)


def test_resampling_stays_inside_each_dataset():
    # Every seed of a dataset agrees, so a bootstrap that respects the strata has no spread at all.
    summary = summarize_strata([[0.0, 0.0], [100.0, 100.0]])
    assert (summary.mean, summary.iqm, summary.ci_low, summary.ci_high) == (50.0, 50.0, 50.0, 50.0)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        summarize([1.0, float("nan")])


def test_a_band_keeps_only_updates_that_every_seed_reached():
    x, mean, low, high = band(
        [(np.array([100, 200, 300]), np.array([1.0, 2.0, 3.0])), (np.array([100, 200]), np.array([3.0, 6.0]))]
    )
    assert x.tolist() == [100, 200]
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([2.0, 4.0], [1.0, 2.0], [3.0, 6.0])


def test_welchs_test_matches_a_worked_example():
    # means 2 and 6, variances 1 and 4 of 3 seeds each: t = 4 / sqrt(5 / 3) = 3.0984, df = (5/3)^2 / ((1/9 + 16/9) / 2) = 2.9412
    test = welch([1.0, 2.0, 3.0], [4.0, 6.0, 8.0])
    assert test.why is None
    assert test.p == pytest.approx(0.05479, abs=1e-5)  # Student's test, which pools the variances, gives 0.0362
    assert welch([4.0, 6.0, 8.0], [1.0, 2.0, 3.0]).p == pytest.approx(test.p)


@pytest.mark.parametrize(("a", "b"), [([1.0], [4.0, 6.0]), ([4.0, 6.0], [1.0]), ([1.0], [2.0])])
def test_one_seed_in_an_arm_is_no_test(a, b):
    assert (welch(a, b).p, welch(a, b).why) == (None, "one seed")


@pytest.mark.parametrize("other", [0.0, 50.0])
def test_two_arms_without_spread_are_no_test_and_no_warning(other, recwarn):
    assert (welch([0.0] * 3, [other] * 3).p, welch([0.0] * 3, [other] * 3).why) == (None, "no spread")
    assert not recwarn.list


def test_one_arm_without_spread_is_tested_against_the_others():
    p = welch([0.0, 0.0, 0.0], [50.0, 52.0, 54.0]).p
    assert p is not None and p < 0.001


def test_a_profile_is_the_share_of_runs_above_each_score_each_dataset_alike():
    strata = [[10.0, 20.0], [30.0, 40.0, 50.0, 60.0]]
    share, low, high = performance_profile(strata, np.array([0.0, 10.0, 15.0, 45.0, 60.0]))
    np.testing.assert_allclose(share, [1.0, 0.75, 0.75, 0.25, 0.0])
    assert low is not None and high is not None
    assert (low <= share).all() and (share <= high).all() and low[1] < high[1]


def test_one_seed_on_each_dataset_has_no_interval():
    strata = [[10.0], [50.0], [90.0]]
    assert (summarize_strata(strata).ci_low, summarize_strata(strata).ci_high) == (None, None)
    assert performance_profile(strata, np.array([0.0]))[1:] == (None, None)
    assert summarize_strata([[10.0], [50.0, 60.0]]).ci_low is not None


def test_the_probability_of_improvement_counts_pairs_on_each_dataset():
    found = improvement([[2.0, 4.0], [1.0]], [[1.0, 3.0], [1.0]])
    assert found.probability == pytest.approx((3 / 4 + 1 / 2) / 2)  # 2 > 1, 4 > 1, 4 > 3; and a tie
    assert found.ci_low is not None and found.ci_high is not None
    assert found.ci_low <= found.probability <= found.ci_high
    assert improvement([[2.0]], [[1.0]]) == Improvement(1.0, None, None)
    with pytest.raises(ValueError, match="1 datasets against 2"):
        improvement([[1.0]], [[1.0], [2.0]])


def test_all_of_it_is_what_rliable_says():
    """`make test-rliable` runs it, in a virtual environment of its own: what is locked has pandas 3."""
    try:  # Why not importorskip: beside pandas 3 it is there, and cannot be imported
        from rliable import library, metrics
    except Exception as error:
        pytest.skip(f"rliable cannot be imported: {error}")
    generator = np.random.default_rng(3)
    ours, theirs = generator.normal(60, 20, (10, 4)), generator.normal(50, 20, (10, 4))  # [seeds, datasets]
    strata, others = list(ours.T), list(theirs.T)
    assert summarize_strata(strata).iqm == pytest.approx(metrics.aggregate_iqm(ours))
    assert improvement(strata, others).probability == pytest.approx(metrics.probability_of_improvement(ours, theirs))
    tau = np.linspace(0, 120, 13)
    profile, bands = library.create_performance_profile({"ours": ours}, tau, reps=500)
    share, low, high = performance_profile(strata, tau, num_resamples=500)
    np.testing.assert_allclose(share, profile["ours"])
    np.testing.assert_allclose(np.stack([low, high]), bands["ours"], atol=0.06)

    _, intervals = library.get_interval_estimates({"ours": ours}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=1000)
    summary = summarize_strata(strata)
    np.testing.assert_allclose([summary.ci_low, summary.ci_high], intervals["ours"][:, 0], atol=1.0)
    pair = library.get_interval_estimates(
        {"pair": (ours, theirs)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=200
    )[1]["pair"]
    found = improvement(strata, others)
    np.testing.assert_allclose([found.ci_low, found.ci_high], pair[:, 0], atol=0.06)
