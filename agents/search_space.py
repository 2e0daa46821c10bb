"""What is searched, from Hydra's own words: `interval`, `range` and choices, with `tag(log, …)`; several seeds are averaged, not searched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from agents.config import ConfigError


@dataclass(frozen=True)
class SearchSpace:
    """The words that all trials have, those of the seeds of which a trial is the mean, and a distribution for each key that is searched."""

    fixed: tuple[str, ...]
    seeds: tuple[str, ...]
    searched: Mapping[str, BaseDistribution]

    def runs(self, values: Mapping[str, Any]) -> list[list[str]]:
        """The words of a trial's runs, one a seed."""
        chosen = [f"{key}={value}" for key, value in values.items()]
        return [[*self.fixed, *chosen, *([seed] if seed else [])] for seed in self.seeds]

    def corners(self) -> list[list[str]]:
        """The words of runs in which each key takes its extreme values, or each of its choices, beside the first of all others."""
        ends = {key: _extremes(distribution) for key, distribution in self.searched.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [self.runs(first)[0], *(self.runs({**first, key: value})[0] for key, values in ends.items() for value in values[1:])]


def search_space(overrides: Iterable[Override]) -> SearchSpace:
    """The search space of parsed command-line words; raises ConfigError for what can't be searched."""
    fixed, seeds, searched = [], ("",), {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(override.input_line)
        elif override.key_or_group == "seed":
            if override.is_interval_sweep():
                raise ConfigError("seed: a trial is the mean over its seeds, so say them: seed=0,1,2 or 'seed=range(3)'")
            seeds = tuple(f"{key}={value}" for value in override.sweep_string_iterator())
        else:
            searched[key] = _distribution(key, override)
    if not searched:
        raise ConfigError("there is nothing to search; give a key a range of values, such as 'optimizer.learning_rate=tag(log, interval(1e-4, 1e-2))'")
    return SearchSpace(tuple(fixed), seeds, searched)


def _extremes(distribution: BaseDistribution) -> tuple:
    """All choices, or the ends; of real numbers also one between them, which is no whole one."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    low, high = distribution.low, distribution.high
    between = (low + 0.4142 * (high - low),) if isinstance(distribution, FloatDistribution) and distribution.step is None else ()
    return (low, high, *between)


def _distribution(key: str, override: Override) -> BaseDistribution:
    try:
        if override.is_interval_sweep():
            return _interval(override.value())
        if override.is_range_sweep():
            return _range(sorted(override.sweep_iterator()), override.value().tags)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    return CategoricalDistribution(tuple(override.sweep_string_iterator()))


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    """Real numbers; whole ones for int(interval(…))."""
    whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    return (IntDistribution if whole else FloatDistribution)(sweep.start, sweep.end, log="log" in sweep.tags)


def _range(values: Sequence[int | float], tags: set[str]) -> BaseDistribution:
    """The numbers that Hydra's range has, without its end."""
    if "log" in tags:
        raise ValueError("a range has equal steps, so it can't be tagged log; use tag(log, interval(…)) or name the values")
    whole = all(isinstance(value, int) for value in values)
    step = values[1] - values[0] if len(values) > 1 else 1
    return (IntDistribution if whole else FloatDistribution)(values[0], values[-1], step=step)
