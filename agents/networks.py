"""Networks as values: `init` makes parameters, calling applies them. Nothing is stored in between."""

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor

from rlloss.frozen import frozen

Parameters = dict[str, Tensor]

# Up to this width a linear layer is written as sums.
NARROW = 8

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
        """Weights `layer.weight` and biases `layer.bias` [outputs], layers from 0; for a weight's shape see `linear`."""
        widths = (math.prod(features), *self.hidden, outputs)
        parameters = {}
        for layer, (inputs, width) in enumerate(itertools.pairwise(widths)):
            bound = inputs**-0.5
            parameters[f"{layer}.weight"] = torch.empty(sorted((width, inputs))).uniform_(-bound, bound, generator=generator)
            parameters[f"{layer}.bias"] = torch.empty(width).uniform_(-bound, bound, generator=generator)
        return parameters

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Outputs [batch, outputs] of observations [batch, *features]."""
        activation, last = ACTIVATIONS[self.activation], len(self.hidden)
        x = observation.reshape(observation.shape[0], -1)
        for layer in range(last + 1):
            x = linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
            x = activation(x) if layer < last else x
        return x


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer whose weight has its wider side last.

        y = x W + b

    Narrow layers, such as the first and the last of a control problem, are sums that compile into
    one loop with what stands around them; a matrix product costs them several times as much.

    Args:
        x: [batch, inputs].
        weight: [inputs, outputs] if inputs < outputs, else [outputs, inputs].
        bias: [outputs].
    """
    widening = x.shape[1] < bias.shape[0]
    if min(weight.shape) > NARROW:
        return (x @ weight if widening else x @ weight.T) + bias
    if widening:
        return (x[:, :, None] * weight).sum(1) + bias
    return torch.stack([(x * row).sum(-1) for row in weight.unbind()], -1) + bias
