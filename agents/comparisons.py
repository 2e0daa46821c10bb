"""Configurations side by side: what is compared with what, fairly, and what can be said of it in plain words.

Where a sweep varied more than a configuration is made of, each configuration stands with the best of its other settings. Every third
seed chooses which is best and doesn't count any further: the best of several by the same seeds looks better than it is. (To let
both parts choose for each other and count all seeds finds differences where there are none, at 5 % in 9 to 16 of 100 cases: what
one part chooses depends on what the other is scored by. See Bengio and Grandvalet, No unbiased estimator of the variance of k-fold
cross-validation, 2004.)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents import statistics
from agents.config import ConfigError, nearest
from agents.scores import Environment, Score
from agents.statistics import Difference, Estimate
from agents.swept import configuration, is_number

CHOOSES = 3  # one seed in so many


@dataclass(frozen=True)
class Configuration:
    """A configuration's runs, one a seed. `chosen` is the best of its other settings where there was a choice, by seeds that aren't among them or, where `flattered`, are."""

    name: str
    scores: list[Score]
    chosen: str = ""
    flattered: bool = False

    @property
    def said(self) -> str:
        """Its name in a sentence, with the settings that were chosen for it."""
        return f"{self.name} ({self.chosen})" if self.chosen else self.name

    def numbers(self, name: str) -> np.ndarray:
        """A number of every run, such as `final`, [seeds]."""
        return np.array([getattr(score, name) for score in self.scores], float)

    @property
    def failures(self) -> int:
        """How many of its runs failed."""
        return sum(score.failed for score in self.scores)

    @property
    def reached(self) -> int:
        """How many of its runs came to the threshold."""
        return int(np.isfinite(self.numbers("reached")).sum())

    @property
    def seconds(self) -> float:
        """The median of the times that its runs took; NaN where none is known."""
        known = self.numbers("seconds")
        known = known[np.isfinite(known)]
        return float(np.median(known)) if len(known) else math.nan

    @property
    def by_seed(self) -> dict[int, float]:
        """The final return of each seed."""
        return {score.seed: score.final for score in self.scores}


@dataclass(frozen=True)
class Comparison:
    """A configuration against the baseline in one environment; p-values are corrected for all comparisons of the report."""

    environment: str
    name: str
    baseline: str
    difference: Difference
    improvement: Estimate
    improvement_p: float
    said: tuple[str, str]  # both, with the settings that were chosen for them
    p: float = math.nan
    tests: int = 1


def configurations(environment: Environment, by: Sequence[str], swept: Sequence[str]) -> list[Configuration]:
    """The configurations of an environment by the keys that make one; `swept` are all that differ."""
    others = [key for key in swept if key not in by]
    grouped: dict[str, dict[str, list[Score]]] = {}
    for score in environment.scores:
        grouped.setdefault(configuration(score.settings, by), {}).setdefault(configuration(score.settings, others), []).append(score)
    seeds = sorted({score.seed for score in environment.scores})
    choosing = set(seeds[::CHOOSES] if len(seeds) > CHOOSES else seeds)
    return [_best(name, grouped[name], choosing) for name in sorted(grouped, key=_natural(environment, by))]


def _natural(environment: Environment, by: Sequence[str]) -> Callable[[str], tuple]:
    """Orders names by the values that they are made of, numbers by size."""
    values = {configuration(score.settings, by): [_ordered(score.settings.get(key)) for key in by] for score in environment.scores}
    return lambda name: (values[name], name)


def _ordered(value: Any) -> tuple:
    """Orders what is not there before numbers, and numbers before words."""
    return (1, float(value), "") if is_number(value) else (0, 0.0, "") if value is None else (2, 0.0, str(value))


def _best(name: str, settings: Mapping[str, list[Score]], choosing: Set[int]) -> Configuration:
    """The configuration of runs by their other settings, with that which is best by the choosing seeds and the runs that the other seeds have of it."""
    if len(settings) == 1:
        return Configuration(name, _by_seed(next(iter(settings.values()))))
    chosen = max(settings, key=lambda setting: _mean_of(settings[setting], choosing))
    others = [score for score in settings[chosen] if score.seed not in choosing]
    return Configuration(name, _by_seed(others or settings[chosen]), chosen, flattered=not others)


def _mean_of(scores: Sequence[Score], seeds: Set[int]) -> float:
    found = [score.final for score in scores if score.seed in seeds]
    return float(np.mean(found)) if found and not any(map(math.isnan, found)) else -math.inf


def _by_seed(scores: Sequence[Score]) -> list[Score]:
    return sorted(scores, key=lambda score: score.seed)


def find_baseline(wanted: str | None, names: Sequence[str]) -> str | None:
    """The configuration to compare with: the one named, or mse, or the first; None where there is nothing to compare."""
    if len(names) < 2:
        if wanted and wanted not in names:
            raise ConfigError(f"--baseline {wanted}: there is only {', '.join(names)}")
        return None
    if wanted is None:
        return next((name for name in names if name.split()[0] == "mse"), names[0])
    if wanted in names:
        return wanted
    # A word of a name, or the value in it: huber, learning_rate=0.001 or 0.001.
    if len(found := [name for name in names if wanted in {part for word in name.split() for part in (word, word.partition("=")[2])}]) == 1:
        return found[0]
    what = f"may be {' or '.join(found)}; say which" if found else f"is no configuration of these runs; there is {', '.join(names)}{nearest(wanted, names)}"
    raise ConfigError(f"--baseline {wanted} {what}")


def compared(found: Mapping[str, Sequence[Configuration]], baseline: str | None) -> list[Comparison]:
    """Every configuration against the baseline of its environment, corrected together."""
    pairs = [(name, other, one) for name, here in found.items() for other in here for one in here if one.name == baseline != other.name]
    raw = [_compared(name, x, y) for name, x, y in pairs]
    p, improvement_p = statistics.holm([each.difference.p for each in raw]), statistics.holm([each.improvement_p for each in raw])
    tests = max(int(np.isfinite(p).sum()), 1)
    return [
        dataclasses.replace(each, improvement_p=float(q), p=float(p), tests=tests)
        for each, p, q in zip(raw, p, improvement_p, strict=True)
    ]


def _compared(environment: str, x: Configuration, y: Configuration) -> Comparison:
    """By pairs of the seeds that both have where they share most of them, else all of x against all of y."""
    common = sorted(x.by_seed.keys() & y.by_seed.keys())
    paired = len(common) >= max(2, 0.5 * max(len(x.scores), len(y.scores)))
    if paired:
        one, other = (np.array([each.by_seed[seed] for seed in common]) for each in (x, y))
        improvement = statistics.paired_improvement(one, other)
    else:
        one, other = x.numbers("final"), y.numbers("final")
        improvement = statistics.probability_of_improvement([one], [other])
    enough = min(len(one), len(other)) > 1
    p = statistics.improvement_p(one, other, paired) if enough else math.nan
    return Comparison(environment, x.name, y.name, statistics.difference(one, other, paired), improvement, p, (x.said, y.said))


def sentence(comparison: Comparison, worth: float | None = None) -> str:
    """What a comparison says; where nothing can be told, how many seeds would tell a difference of `worth`, or the one seen."""
    (x, y), found = comparison.said, comparison.difference
    seeds = f"{found.seeds} {'paired ' if found.paired else ''}seeds"
    if found.seeds < 2:
        return f"Of {x} and {y} there is one seed, which tells nothing of chance (difference {plain(found.value)})."
    if not found.deviation and not found.value:
        return f"{x} and {y} are the same at all {seeds}."
    if not found.deviation and comparison.p >= 1 - statistics.LEVEL:
        return f"{x} is {'ahead of' if found.value > 0 else 'behind'} {y} by {plain(abs(found.value))} at all {seeds}, which are too few to tell it from chance (p = {comparison.p:.2g})."
    by = f"{plain(abs(found.value), found.margin)} ± {plain(found.margin, found.margin)} (95%)"
    if comparison.p < 1 - statistics.LEVEL:
        return f"{x} {'beats' if found.value > 0 else 'loses to'} {y} by {by}, {seeds}."
    signed = by if found.value >= 0 else f"−{by}"
    if abs(found.value) > found.margin:
        told = f"{x} may be {'ahead of' if found.value > 0 else 'behind'} {y} by {by}, {seeds}, but not once corrected for {comparison.tests} comparisons (p = {comparison.p:.2g})"
    else:
        told = f"No difference between {x} and {y} can be told at {seeds} ({signed.replace(' (95%)', ', 95%')})"
    return f"{told}; {_needed(comparison, worth)}."


def _needed(comparison: Comparison, worth: float | None) -> str:
    found = comparison.difference
    told = statistics.smallest_told(found.deviation, found.seeds, found.paired, comparison.tests)
    worth = worth or _rounded(abs(found.value))
    needed = statistics.seeds_needed(worth, found.deviation, found.paired, comparison.tests)
    smallest = f"{found.seeds} seeds can show one of {_rounded(told, 2):,g}"
    if needed <= found.seeds or not worth:
        return smallest
    count = f"more than {statistics.MOST_SEEDS:,}" if math.isinf(needed) else f"about {_rounded(needed, 2):,.0f}"
    return f"{smallest}, {count} would be needed to see one of {worth:,g}"


def _rounded(number: float, digits: int = 1) -> float:
    return float(f"{number:.{digits}g}")


def plain(number: float, scale: float | None = None) -> str:
    """A number with as many decimals as its scale, by default itself, has use for: two digits of an error, three of a value."""
    if not math.isfinite(number):
        return "–" if math.isnan(number) else "∞"
    size = abs(scale if scale else number)
    decimals = max((1 if scale else 2) - math.floor(math.log10(size)), 0) if size > 0 else 0
    return f"{number:,.{min(decimals, 6)}f}".replace("-", "−")
