"""Heads as values: from a network's features to the outputs of every action, [batch, actions, outputs]."""

from typing import Protocol

import torch
from torch import Tensor

from agents.networks import Parameters, linear, uniform
from rlloss.frozen import frozen

Shape = tuple[int, int]  # actions, and outputs per action


class Head(Protocol):
    """The last layers of a network; how many outputs an action has is the value loss's affair."""

    def numbers(self, width: int, shape: Shape) -> int:
        """How many normal random numbers one call takes; 0 for a head without noise."""

    def init(self, generator: torch.Generator, width: int, shape: Shape) -> Parameters:
        """Initial parameters for so many features."""

    def __call__(self, parameters: Parameters, features: Tensor, shape: Shape, noise: Tensor | None = None) -> Tensor:
        """Outputs [batch, actions, outputs] of features [batch, width]; `noise` [numbers], None for none."""

    def rescaled(self, parameters: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
        """The parameters with which all outputs x become scale·x + shift."""


@frozen
class Linear:
    """One linear layer.

        x = W φ + b
    """

    def numbers(self, width: int, shape: Shape) -> int:
        """None."""
        return 0

    def init(self, generator: torch.Generator, width: int, shape: Shape) -> Parameters:
        """`weight` and `bias`, as in torch.nn.Linear."""
        return uniform(generator, width, shape[0] * shape[1])

    def __call__(self, parameters: Parameters, features: Tensor, shape: Shape, noise: Tensor | None = None) -> Tensor:
        """Outputs [batch, actions, outputs] of features [batch, width]."""
        return linear(features, parameters["weight"], parameters["bias"]).unflatten(-1, shape)

    def rescaled(self, parameters: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
        """The parameters with which all outputs x become scale·x + shift."""
        return {"weight": parameters["weight"] * scale, "bias": parameters["bias"] * scale + shift}
