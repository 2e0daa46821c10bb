"""Networks as values: `init` makes parameters, calling applies them. Nothing is stored in between."""

import math
from typing import Protocol

import torch
from torch import Tensor

from rlloss.frozen import frozen

Parameters = dict[str, Tensor]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


class Network(Protocol):
    """A function of parameters and encoded observations."""

    def init(self, generator: torch.Generator, features: tuple[int, ...], outputs: int) -> Parameters:
        """Initial parameters for observations of shape `features` and so many outputs."""

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Outputs [batch, outputs] of encoded observations [batch, *features]."""


@frozen
class MLP:
    """A multilayer perceptron, initialised like torch.nn.Linear: weights and biases U(±1/√inputs)."""

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of at least 1, got {list(self.hidden)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation}")

    def init(self, generator: torch.Generator, features: tuple[int, ...], outputs: int) -> Parameters:
        """Weights `layer.weight` [outputs, inputs] and biases `layer.bias` [outputs], layers from 0."""
        widths = (math.prod(features), *self.hidden, outputs)
        parameters = {}
        for layer, (inputs, width) in enumerate(zip(widths, widths[1:])):
            bound = inputs**-0.5
            parameters[f"{layer}.weight"] = torch.empty(width, inputs).uniform_(-bound, bound, generator=generator)
            parameters[f"{layer}.bias"] = torch.empty(width).uniform_(-bound, bound, generator=generator)
        return parameters

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Outputs [batch, outputs] of observations [batch, *features]."""
        x = observation.flatten(1)
        for layer in range(len(self.hidden)):
            x = ACTIVATIONS[self.activation](_linear(parameters, layer, x))
        return _linear(parameters, len(self.hidden), x)


def _linear(parameters: Parameters, layer: int, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
