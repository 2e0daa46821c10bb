"""Statistics against rliable, SciPy, enumeration, and simulations of what intervals and tests promise."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agents import statistics

RLIABLE = json.loads((Path(__file__).parents[1] / "references" / "rliable.json").read_text())
STRATA = {name: [np.array(scores) for scores in found] for name, found in RLIABLE["scores"].items()}
STATISTICS = {"iqm": statistics.interquartile_mean, "mean": statistics.mean, "median": statistics.median}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("side", STRATA)
def test_estimates_are_rliables_to_three_digits(name, side):
    value, low, high = RLIABLE["estimates"][side][RLIABLE["statistics"].index(name)]
    found = statistics.estimate(STRATA[side], STATISTICS[name], resamples=100_000)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_the_probability_of_improvement_is_rliables_to_three_digits():
    found = statistics.probability_of_improvement(STRATA["x"], STRATA["y"], resamples=50_000)
    value, low, high = RLIABLE["improvement"]
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("side", STRATA)
def test_performance_profiles_are_rliables_to_three_digits(side):
    found = np.stack(statistics.profile_band(STRATA[side], np.array(RLIABLE["levels"]), resamples=20_000), -1)
    assert found == pytest.approx(np.array(RLIABLE["profiles"][side]), abs=1e-3)


def test_the_bootstrap_of_a_few_seeds_has_the_quantiles_of_all_resamples():
    scores = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    means = np.sort([np.mean(drawn) for drawn in itertools.product(scores, repeat=5)])
    low, high = means[math.ceil(0.025 * len(means)) - 1], means[math.ceil(0.975 * len(means)) - 1]
    assert statistics.estimate([scores], statistics.mean, resamples=200_000)[1:] == pytest.approx((low, high), abs=0.21)


def test_one_seed_has_no_interval():
    assert math.isnan(statistics.estimate([np.array([3.0])]).low)
    found = statistics.difference(np.array([3.0]), np.array([1.0]), paired=True)
    assert found.value == 2 and math.isnan(found.margin) and math.isnan(found.p)


def test_infinite_scores_keep_a_median():
    found = statistics.estimate([np.array([10.0, 20.0, math.inf, math.inf, math.inf])], statistics.median)
    assert found.value == math.inf and found.low in (10, 20) and found.high == math.inf


def test_differences_are_scipys():
    x, y = np.random.default_rng(0).normal((5, 4), (2, 3), (12, 2)).T
    paired, welch = statistics.difference(x, y, paired=True), statistics.difference(x[:9], y, paired=False)
    theirs = stats.ttest_rel(x, y)
    assert paired.p == pytest.approx(theirs.pvalue) and paired.value - paired.margin == pytest.approx(theirs.confidence_interval().low)
    theirs = stats.ttest_ind(x[:9], y, equal_var=False)
    assert welch.p == pytest.approx(theirs.pvalue) and welch.value + welch.margin == pytest.approx(theirs.confidence_interval().high)


def test_equal_pairs_and_pairs_that_differ_alike():
    ten = np.full(8, 10.0)
    assert statistics.difference(ten, ten, paired=True)[:3] == (0, 0, 1)
    assert statistics.difference(ten + 1, ten, paired=True)[:3] == (1, 0, 2 / 2**8)
    assert statistics.improvement_p(ten, ten, paired=True) == statistics.improvement_p(ten, ten, paired=False) == 1


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize("paired", [True, False])
def test_a_few_seeds_at_the_top_and_at_the_bottom_are_told_apart_by_their_number_alone(seeds, paired):
    """Where nothing spreads Student's test would be sure with two seeds; a permutation test isn't."""
    top, bottom = np.full(seeds, 500.0), np.full(seeds, 9.0)
    theirs = stats.permutation_test((top, bottom), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples" if paired else "independent", n_resamples=np.inf)
    assert statistics.difference(top, bottom, paired).p == pytest.approx(theirs.pvalue)
    assert statistics.difference(top[:2], bottom[:2], paired).p > 0.05
    assert statistics.difference(np.repeat(top, 1000), np.repeat(bottom, 1000), paired).p == 0


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7), st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_the_probability_of_improvement_counts_pairs(x, y):
    counted = np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y])
    found = statistics.probability_of_improvement([np.array(x, float)], [np.array(y, float)], resamples=10)
    back = statistics.probability_of_improvement([np.array(y, float)], [np.array(x, float)], resamples=10)
    assert found.value == pytest.approx(counted) and found.value + back.value == pytest.approx(1)


def test_paired_improvement_has_wilsons_interval():
    x = np.array([1.0] * 7 + [-1.0])
    theirs = stats.binomtest(7, 8).proportion_ci(method="wilson")
    assert statistics.paired_improvement(x, np.zeros(8)) == pytest.approx((7 / 8, theirs.low, theirs.high))


def test_holms_p_values():
    # Worked by hand: 3·0.01, max(2·0.03, …), max(1·0.04, …); NaN is no test.
    assert statistics.holm([0.04, 0.01, math.nan, 0.03]) == pytest.approx([0.06, 0.03, math.nan, 0.06], nan_ok=True)
    assert statistics.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def _bimodal(generator, shape):
    """Returns as CartPole has them: most runs at the top, some far below."""
    return np.where(generator.random(shape) < 0.7, 500.0, generator.uniform(20, 450, shape))


@pytest.mark.parametrize(("draw", "expected"), [(lambda g, shape: g.normal(0, 50, shape), 0), (_bimodal, 0)], ids=["normal", "bimodal"])
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_differences_cover_and_false_findings_are_rare(draw, expected, paired):
    generator, count = np.random.default_rng(1), 2000
    found = [statistics.difference(*draw(generator, (2, 10)), paired=paired) for _ in range(count)]
    covered = np.mean([abs(each.value - expected) <= each.margin for each in found])
    assert 0.94 <= covered <= 0.975
    assert np.mean([each.p < 0.05 for each in found]) == pytest.approx(1 - covered, abs=1e-3)


def test_intervals_of_the_interquartile_mean_cover():
    generator = np.random.default_rng(2)
    found = [statistics.estimate([generator.normal(0, 1, 20)], resamples=500) for _ in range(600)]
    assert 0.90 <= np.mean([each.low <= 0 <= each.high for each in found]) <= 0.97


def test_holm_keeps_false_findings_among_several_rare():
    generator, wrong = np.random.default_rng(3), 0
    for _ in range(1500):
        baseline = generator.normal(size=8)
        p = [statistics.difference(generator.normal(size=8), baseline, paired=True).p for _ in range(5)]
        wrong += statistics.holm(p).min() < 0.05
    assert wrong / 1500 <= 0.06


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("tests", [1, 4])
def test_as_many_seeds_as_are_needed_find_the_difference_four_times_in_five(paired, tests):
    generator, worth, spread = np.random.default_rng(4), 10.0, 15.0
    deviation = spread * math.sqrt(2)
    seeds = int(statistics.seeds_needed(worth, deviation, paired, tests))
    x, y = generator.normal(worth, spread, (2000, seeds)), generator.normal(0, spread, (2000, seeds))
    found = np.mean([statistics.difference(a, b, paired).p < 0.05 / tests for a, b in zip(x, y, strict=True)])
    assert found == pytest.approx(statistics.POWER, abs=0.04)
    assert statistics.smallest_told(deviation, seeds, paired, tests) == pytest.approx(worth, rel=0.03)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("tests", [1, 10, 200])
def test_the_smallest_difference_that_seeds_show_is_found_four_times_in_five(paired, seeds, tests):
    """However many tests: against the noncentral t distribution integrated over χ²."""
    shift, freedom = statistics.smallest_told(1.0, seeds, paired, tests) * math.sqrt(seeds), (seeds - 1) * (1 if paired else 2)
    critical, chances = stats.t.ppf(1 - 0.025 / tests, freedom), (np.arange(100_000) + 0.5) / 100_000
    found = stats.norm.sf(critical * np.sqrt(stats.chi2.ppf(chances, freedom) / freedom) - shift).mean()
    assert found == pytest.approx(statistics.POWER, abs=1e-3)


def test_seeds_needed_are_cohens():
    # Cohen's table: d = 0.5, two sides, 5 %, power 0.8 takes 64 of each, and 34 pairs at d_z = 0.5.
    assert statistics.seeds_needed(0.5, math.sqrt(2), paired=False) == 64
    assert statistics.seeds_needed(0.5, 1.0, paired=True) == 34
    assert statistics.seeds_needed(0.0, 1.0, paired=True) == statistics.seeds_needed(1e-9, 1.0, paired=True) == math.inf


def test_the_area_and_the_crossing_of_a_curve():
    steps, values = np.array([0.0, 10.0, 30.0]), np.array([0.0, 10.0, 10.0])
    assert statistics.area(steps, values) == pytest.approx((50 + 200) / 30)
    assert statistics.crossing(steps, values, 10) == 10 and statistics.crossing(steps, values, 11) == math.inf


def test_bands_are_estimates_at_each_point():
    curves = np.random.default_rng(5).normal(size=(9, 4))
    value, low, high = statistics.band(curves, resamples=2000)
    for point in range(4):
        one = statistics.estimate([curves[:, point]], resamples=2000)
        assert (value[point], low[point], high[point]) == pytest.approx(one, abs=0.08)
