"""Temperatures as values: how much a soft actor-critic pays for the entropy of its policy."""

import math
from typing import Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from agents.networks import Parameters
from rlloss import empirical_loss, frozen, temperature_loss
from rlloss.checks import in_range
from rlloss.numbers import like


class Temperature(Protocol):
    """α > 0, a function of parameters."""

    def init(self) -> Parameters:
        """Initial parameters; none where nothing is learned."""

    def __call__(self, parameters: Parameters, reference: Tensor) -> Tensor:
        """α, 0-dim, with the dtype and device of a reference."""

    def terms(self, parameters: Parameters, log_probability: Tensor, weight: Tensor | None, space: spaces.Space) -> dict[str, Tensor]:
        """What is minimised over the parameters, by name, for log π(a|s) [batch] of actions of a space; none where nothing is learned."""


@frozen
class LearnedTemperature:
    """A temperature that is raised while the policy's entropy is below a target H̄, and lowered while it is above.

        log α ← log α − η ∇ 1/n Σ −w·α·(log π(a|s) + H̄);  Box: H̄ = `entropy_per_number`·numbers,  Discrete: H̄ = `entropy_share`·log actions

    The numbers of an action lie within ±1, where the uniform policy has log 2 nats each, the highest entropy. A share near 1, such as
    the 0.98 of its paper, asks two actions to be all but equally likely, and α may grow without end.

    Source: Haarnoja et al., arXiv 1812.05905; Discrete: Christodoulou, arXiv 1910.07207.
    """

    initial: float = 1.0
    entropy_per_number: float = -1.0
    entropy_share: float = 0.89

    def __post_init__(self) -> None:
        in_range("initial", self.initial, 0, above=True)
        in_range("entropy_per_number", self.entropy_per_number, -math.inf, math.log(2), above=True)
        in_range("entropy_share", self.entropy_share, 0, 1)

    def init(self) -> Parameters:
        """log α."""
        return {"log": torch.tensor(math.log(self.initial))}

    def __call__(self, parameters: Parameters, reference: Tensor) -> Tensor:
        """α, 0-dim."""
        return parameters["log"].exp()

    def terms(self, parameters: Parameters, log_probability: Tensor, weight: Tensor | None, space: spaces.Space) -> dict[str, Tensor]:
        """The loss of log α."""
        discrete = isinstance(space, spaces.Discrete)
        target = self.entropy_share * math.log(space.n) if discrete else self.entropy_per_number * math.prod(space.shape)
        return {"temperature": empirical_loss(temperature_loss(parameters["log"], log_probability, target), weight)}


@frozen
class FixedTemperature:
    """A temperature that stays. Source: Haarnoja et al., Soft actor-critic, arXiv 1801.01290, where it is 1 and rewards are scaled."""

    temperature: float = 0.2

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0)

    def init(self) -> Parameters:
        """None."""
        return {}

    def __call__(self, parameters: Parameters, reference: Tensor) -> Tensor:
        """α, 0-dim."""
        return like(reference, self.temperature)

    def terms(self, parameters: Parameters, log_probability: Tensor, weight: Tensor | None, space: spaces.Space) -> dict[str, Tensor]:
        """None."""
        return {}
