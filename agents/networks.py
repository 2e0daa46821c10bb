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
    """A function of parameters and encoded observations, to the features that a head reads."""

    def width(self, features: tuple[int, ...]) -> int:
        """How many features come out for observations of shape `features`."""

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """Initial parameters for observations of shape `features`."""

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Features [batch, width] of encoded observations [batch, *features]."""


@frozen
class MLP:
    """A multilayer perceptron, initialised like torch.nn.Linear: weights and biases U(±1/√inputs).

        φ ← activation(norm(W φ + b)),  with `layer_norm` as in `normalized`, else norm(x) = x

    Source: Rumelhart, Hinton and Williams (1986); with the norm in Q-learning Gallici et al., arXiv 2407.04811.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of at least 1, got {list(self.hidden)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation}")

    def width(self, features: tuple[int, ...]) -> int:
        """The last hidden width; that of the observation without hidden layers."""
        return (math.prod(features), *self.hidden)[-1]

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """`0.weight`, `0.bias` [width] and so on, for a weight's shape see `linear`; `0.norm.weight` of 1 and `0.norm.bias` of 0 [width]."""
        parameters = {}
        for layer, (inputs, width) in enumerate(itertools.pairwise((math.prod(features), *self.hidden))):
            parameters |= named(f"{layer}.", uniform(generator, inputs, width) | (unit_norm(width) if self.layer_norm else {}))
        return parameters

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Features [batch, width] of observations [batch, *features]."""
        x = observation.reshape(observation.shape[0], -1)
        for layer in range(len(self.hidden)):
            x = linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
            x = ACTIVATIONS[self.activation](normalized(x, parameters, f"{layer}.") if self.layer_norm else x)
        return x


def named(prefix: str, parameters: Parameters) -> Parameters:
    """Parameters with a prefix before each name."""
    return {f"{prefix}{name}": parameter for name, parameter in parameters.items()}


def part(prefix: str, parameters: Parameters) -> Parameters:
    """The parameters whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): parameter for name, parameter in parameters.items() if name.startswith(prefix)}


def widens(inputs: int, outputs: int) -> bool:
    """Whether a `linear` layer's weight is [inputs, outputs], not [outputs, inputs]."""
    return inputs < outputs and inputs <= NARROW


def uniform(generator: torch.Generator, inputs: int, outputs: int) -> Parameters:
    """`weight` and `bias` of a `linear` layer, U(±1/√inputs) as in torch.nn.Linear."""
    bound, shape = inputs**-0.5, (inputs, outputs) if widens(inputs, outputs) else (outputs, inputs)
    weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return {"weight": weight, "bias": torch.empty(outputs).uniform_(-bound, bound, generator=generator)}


def unit_norm(width: int) -> Parameters:
    """`norm.weight` of 1 and `norm.bias` of 0 [width] for `normalized`."""
    return {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}


def normalized(x: Tensor, parameters: Parameters, prefix: str) -> Tensor:
    """Layer normalisation of [..., width] by the parameters `norm` with a prefix.

        y = (x − mean x) / √(var x + 10⁻⁵) · scale + shift

    Source: Ba et al., arXiv 1607.06450.
    """
    return torch.nn.functional.layer_norm(x, x.shape[-1:], parameters[f"{prefix}norm.weight"], parameters[f"{prefix}norm.bias"])


def linear(x: Tensor, weight: Tensor, bias: Tensor, along_batch: bool = False) -> Tensor:
    """A linear layer y = x Wᵀ + b, [batch, outputs] of x [batch, inputs].

    Narrow layers, such as the first and the last of a control problem, are sums that compile into
    one loop with what stands around them; a matrix product costs them several times as much.

    Args:
        x: [batch, inputs].
        weight: [outputs, inputs]; [inputs, outputs] where the layer `widens` few inputs, so that its sums run along outputs.
        bias: [outputs].
        along_batch: keep neighbours in the batch side by side in memory, not neighbours among outputs.
    """
    inputs, outputs = x.shape[1], bias.shape[0]
    if widens(inputs, outputs):
        return (x[:, :, None] * weight).sum(1) + bias
    if min(inputs, outputs) <= NARROW:
        sums = [(x * row).sum(-1) for row in weight.unbind()]
        return (torch.stack(sums) + bias[:, None]).T if along_batch else torch.stack(sums, -1) + bias
    return (weight @ x.T).T + bias if along_batch else x @ weight.T + bias
