"""Schedules: numbers that change with the progress of training."""

from typing import Protocol

from torch import Tensor

from rlloss.checks import in_range
from rlloss.frozen import frozen


class Schedule(Protocol):
    """A number as a function of progress, the share of environment steps done, 0 to 1."""

    def __call__(self, progress: Tensor) -> Tensor:
        """The number at this progress, 0-dim."""


@frozen
class Linear:
    """From `start` to `end` on a straight line, reached at progress `until` and held from there.

        x(p) = start + (end − start) · min(p / until, 1)
    """

    start: float = 1.0
    end: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        in_range("until", self.until, 0, 1, above=True)

    def __call__(self, progress: Tensor) -> Tensor:
        """The number at this progress, 0-dim."""
        return self.start + (self.end - self.start) * (progress / self.until).clamp(max=1.0)
