"""How a target network follows the online network."""

from typing import Protocol

from agents.networks import Parameters
from rlloss.checks import in_range
from rlloss.frozen import frozen


class TargetNetwork(Protocol):
    """A rule in two parts: what happens at every update, and what happens every `every` environment steps."""

    @property
    def every(self) -> int:
        """Environment steps between two calls of `refresh`; 0 for never."""

    def track(self, target: Parameters, online: Parameters) -> Parameters:
        """The target's parameters after an update of the online network."""

    def refresh(self, target: Parameters, online: Parameters) -> Parameters:
        """The target's parameters after `every` environment steps."""


@frozen
class HardCopy:
    """θ⁻ ← θ every `every` environment steps. Source: Mnih et al., Human-level control (2015)."""

    every: int = 100

    def __post_init__(self) -> None:
        in_range("every", self.every, 1)

    def track(self, target: Parameters, online: Parameters) -> Parameters:
        """The target unchanged."""
        return target

    def refresh(self, target: Parameters, online: Parameters) -> Parameters:
        """The online parameters."""
        return online


@frozen
class Polyak:
    """θ⁻ ← (1 − τ)θ⁻ + τθ at every update. Source: Lillicrap et al., arXiv 1509.02971."""

    rate: float = 0.005
    every = 0

    def __post_init__(self) -> None:
        in_range("rate", self.rate, 0, 1, above=True)

    def track(self, target: Parameters, online: Parameters) -> Parameters:
        """The target moved by `rate` towards the online parameters."""
        return {name: old + self.rate * (online[name] - old) for name, old in target.items()}

    def refresh(self, target: Parameters, online: Parameters) -> Parameters:
        """The target unchanged: it moves at every update."""
        return target
