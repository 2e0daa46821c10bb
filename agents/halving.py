"""Successive halving (Jamieson & Talwalkar, 2016): at each rung the worse settings are pruned, and the time goes to the better ones.

All settings stop at the same step, so that they are compared whole, whatever order they come in. Those that are pruned leave the
population, which frozen ones wouldn't: they would be computed on. The others continue from their checkpoints in smaller populations, which
leaves them what they are alone. Whatever sweeps, a grid or a search, needn't know of it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlloss.checks import in_range


@dataclass(frozen=True)
class Halving:
    """Prune at these environment steps, and keep that share of the settings each time, at least one."""

    rungs: tuple[int, ...] = ()
    keep: float = 0.5

    def __post_init__(self) -> None:
        in_range("keep", self.keep, 0, 1)
        if list(self.rungs) != sorted({rung for rung in self.rungs if rung > 0}):
            raise ValueError(f"rungs must be steps above 0 that increase, got {list(self.rungs)}")

    def left(self, settings: int, rung: int) -> int:
        """How many of so many settings are left after the `rung`-th rung, counted from 0."""
        return max(settings if rung < 0 else math.ceil(self.left(settings, rung - 1) * self.keep), 1)


class Pruned(float):
    """The mean evaluation return that a run had when it was pruned, at `step`."""

    def __new__(cls, value: float, step: int) -> "Pruned":
        """A number that knows its step."""
        made = super().__new__(cls, value)
        made.step = step
        return made


def by_setting(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The places of configs that differ in the seed alone, together."""
    alike: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        alike.setdefault(repr({**config, "seed": None}), []).append(place)
    return list(alike.values())


def worst(alive: Sequence[Sequence[int]], values: Mapping[int, float | None], left: int) -> list[list[int]]:
    """Those settings, as places of runs, that aren't among the `left` best by the mean over their runs; one with a run that failed or returned NaN is the worst."""

    def mean(places: Sequence[int]) -> float:
        found = [values[place] for place in places]
        whole = None not in found and not any(map(math.isnan, found))
        return statistics.fmean(found) if whole else -math.inf

    return sorted(map(list, alive), key=mean, reverse=True)[left:]
