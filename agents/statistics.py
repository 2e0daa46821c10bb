"""What runs of a few seeds say: point estimates, intervals, comparisons and the seeds that they need.

Scores are arrays [seeds], a higher one is better. Where environments are taken together each is a stratum: its seeds are resampled
within it. Nothing here knows of runs or files.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 5_000
POWER = 0.8
MOST_SEEDS = 10_000

Statistic = Callable[[np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A number with the interval that it may lie in; NaN where it can't be told."""

    value: float
    low: float = math.nan
    high: float = math.nan


class Difference(NamedTuple):
    """By how much x is ahead of y on average: `value` ± `margin`, the p-value of no difference, and how many seeds it rests on."""

    value: float
    margin: float
    p: float
    seeds: int
    paired: bool
    deviation: float  # of the differences of pairs; where unpaired √(σx² + σy²)


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over the last axis."""
    return np.mean(scores, axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """The median over the last axis."""
    return np.median(scores, axis=-1)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half of the last axis: a quarter of the scores, rounded down, is left out at each end.

    Source: Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, arXiv 2108.13264.
    """
    return stats.trim_mean(scores, 0.25, axis=-1)


def resampled(strata: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Bootstrap samples [resamples, seeds] of each stratum [seeds], drawn with replacement within it.

    Source: Efron, Bootstrap methods (1979); by stratum: arXiv 2108.13264.
    """
    generator = np.random.default_rng(seed)
    return [np.asarray(scores)[generator.integers(len(scores), size=(resamples, len(scores)))] for scores in strata]


def estimate(strata: Sequence[np.ndarray], statistic: Statistic = interquartile_mean, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """A statistic of all scores together with its percentile interval by the stratified bootstrap; one seed gives none.

    Args:
        strata: scores [seeds] of each environment.
        statistic: [..., scores] → [...].
        resamples: how many bootstrap samples.
        seed: of the bootstrap.

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13; arXiv 2108.13264.
    """
    value = float(statistic(np.concatenate(strata)))
    if min(map(len, strata)) < 2:
        return Estimate(value)
    return Estimate(value, *_percentiles(statistic(np.concatenate(resampled(strata, resamples, seed), axis=-1))))


def _percentiles(values: np.ndarray) -> np.ndarray:
    """The bounds of the middle 95 % of the first axis."""
    return np.percentile(values, (50 - 50 * LEVEL, 50 + 50 * LEVEL), axis=0, method="inverted_cdf")  # Without interpolation values may be infinite.


def band(curves: np.ndarray, statistic: Statistic = interquartile_mean, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of curves [seeds, points] at each point, and the bounds of its bootstrap interval; whole curves are resampled."""
    value = statistic(curves.T)
    if len(curves) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    draws = np.random.default_rng(seed).integers(len(curves), size=(resamples, len(curves)))
    low, high = _percentiles(np.stack([statistic(points[draws]) for points in curves.T], axis=-1))
    return value, low, high


def performance_profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """The share of runs above each threshold [thresholds], each environment counting alike.

    Source: Dolan and Moré, Benchmarking optimization software with performance profiles (2002); arXiv 2108.13264.
    """
    return np.mean([(np.asarray(scores)[..., None] > thresholds).mean(-2) for scores in strata], axis=0)


def profile_band(strata: Sequence[np.ndarray], thresholds: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A performance profile with its pointwise bootstrap interval."""
    low, high = _percentiles(performance_profile(resampled(strata, resamples, seed), thresholds))
    return performance_profile(strata, thresholds), low, high


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The probability that a run of x is better than one of y in the same environment, ties as a half, averaged over environments.

    Every run is compared with every other. The interval is the stratified bootstrap's, both sides resampled.

    Source: Mann and Whitney (1947); arXiv 2108.13264.
    """
    value = float(np.mean([_ahead(a, b) for a, b in zip(x, y, strict=True)]))
    if min(map(len, [*x, *y])) < 2:
        return Estimate(value)
    drawn = zip(resampled(x, resamples, seed), resampled(y, resamples, seed + 1), strict=True)
    return Estimate(value, *_percentiles(np.mean([_ahead(a, b) for a, b in drawn], axis=0)))


def _ahead(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of pairs [..., n] × [..., m] with x > y, ties as a half; by ranks, which needs no matrix of pairs."""
    n, m = x.shape[-1], y.shape[-1]
    ranks = stats.rankdata(np.concatenate([x, y], -1), axis=-1)[..., :n]
    return (ranks.sum(-1) - n * (n + 1) / 2) / (n * m)


def paired_improvement(x: np.ndarray, y: np.ndarray) -> Estimate:
    """The probability that x is better than y at the same seed, ties as a half, with its Wilson interval.

    The bootstrap's would have no width where x is ahead at every seed.

    Source: Wilson, Probable inference (1927).
    """
    n, share, z = len(x), float(np.mean(np.sign(x - y) + 1) / 2), stats.norm.ppf(0.5 + LEVEL / 2)
    middle, width = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, (middle - width) / (1 + z * z / n), (middle + width) / (1 + z * z / n))


def improvement_p(x: np.ndarray, y: np.ndarray, paired: bool) -> float:
    """The two-sided p-value of x and y being better equally often: the sign test where paired, else Mann and Whitney's.

    Source: Dixon and Mood, The statistical sign test (1946); Mann and Whitney (1947).
    """
    if paired:
        ahead, behind = int((x > y).sum()), int((x < y).sum())
        return float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return float(stats.mannwhitneyu(x, y).pvalue) if np.ptp(np.concatenate([x, y])) else 1.0


def difference(x: np.ndarray, y: np.ndarray, paired: bool) -> Difference:
    """The difference of two means with Student's interval of pairs, or Welch's of two samples; one seed has no interval.

    Where scores don't spread at all, as where one side is always at the top and the other always at the bottom, p is Fisher's: the share
    of signs, or of ways to deal the scores out, that part the two as far.

    Source: Student, The probable error of a mean (1908); Welch, The generalization of "Student's" problem (1947); Fisher, The design of experiments (1935); for returns of agents
    Colas, Sigaud and Oudeyer, A hitchhiker's guide to statistical comparisons of reinforcement learning algorithms, arXiv 1904.06979.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    value, seeds = float(x.mean() - y.mean()), min(len(x), len(y))
    if seeds < 2:
        return Difference(value, math.nan, math.nan, seeds, paired, math.nan)
    if paired:
        deviation = float((x - y).std(ddof=1))
        error, freedom = deviation / math.sqrt(seeds), seeds - 1
    else:
        parts = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
        deviation, error = math.sqrt(x.var(ddof=1) + y.var(ddof=1)), math.sqrt(parts.sum())
        freedom = parts.sum() ** 2 / (parts**2 / [len(x) - 1, len(y) - 1]).sum() if error else math.inf
    if error <= 1e-12 * max(abs(x).max(), abs(y).max(), 1e-300):  # All pairs differ alike, and only their number can tell of chance.
        alike = 2 / (2**seeds if paired else math.comb(len(x) + len(y), len(x)))
        return Difference(value, 0.0, 1.0 if abs(value) <= 1e-12 * abs(x).max() else alike, seeds, paired, 0.0)
    margin = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return Difference(value, margin, float(2 * stats.t.sf(abs(value) / error, freedom)), seeds, paired, deviation)


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for being several, so that one false finding among all has at most their level; NaN is none.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p = np.asarray(p, float)
    corrected, tests = np.full_like(p, np.nan), int(np.isfinite(p).sum())
    order = np.argsort(p)[:tests]
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(tests, 0, -1)), 1)
    return corrected


def seeds_needed(worth: float, deviation: float, paired: bool, tests: int = 1) -> float:
    """How many seeds (of each, where unpaired) show a true difference of `worth` four times in five; inf above `MOST_SEEDS`.

    `deviation` is a `Difference`'s; the level is 5 % shared among so many tests. By the noncentral t distribution.

    Source: Cohen, Statistical power analysis (1988); for returns of agents Colas et al., How many random seeds? arXiv 1806.08295.
    """
    if not worth > 0:
        return math.inf
    counts = np.arange(2, MOST_SEEDS + 1)
    enough = np.nonzero(_power(worth, deviation, counts, paired, tests) >= POWER)[0]
    return float(counts[enough[0]]) if len(enough) else math.inf


def smallest_told(deviation: float, seeds: int, paired: bool, tests: int = 1) -> float:
    """The true difference that so many seeds show four times in five; arguments as in `seeds_needed`."""
    if seeds < 2 or not deviation > 0:
        return math.nan
    low, high = 0.0, 1e6 * deviation  # Two seeds and many tests take thousands of deviations.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, deviation, np.array([seeds]), paired, tests)[0] >= POWER else (middle, high)
    return high


def _power(worth: float, deviation: float, seeds: np.ndarray, paired: bool, tests: int) -> np.ndarray:
    """The probability that the two-sided test finds a true difference."""
    if not deviation > 0:
        return np.ones(len(seeds))
    freedom, shift = (seeds - 1) * (1 if paired else 2), worth / deviation * np.sqrt(seeds)
    critical = stats.t.ppf(1 - (1 - LEVEL) / (2 * tests), freedom)
    # Far out SciPy's distribution gives NaN; there t is its shift over √(χ²/ν).
    near, far = stats.nct.sf(critical, freedom, np.minimum(shift, critical + 30)), stats.chi2.cdf(freedom * (shift / critical) ** 2, freedom)
    return np.where((shift > critical + 30) | np.isnan(near), far, near)


def crossing(steps: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """The first step at which a curve is at or above the threshold; inf where it never is."""
    reached = np.nonzero(values >= threshold)[0]
    return float(steps[reached[0]]) if len(reached) else math.inf


def area(steps: np.ndarray, values: np.ndarray) -> float:
    """The area under a curve by trapezoids, divided by its length: the mean height, in the units of the values."""
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(steps) > 1 else math.nan
