"""Heads as values: from a network's features to the outputs of every action, [batch, actions, outputs]."""

from typing import Protocol

import torch
from torch import Tensor

from agents.networks import Parameters, linear, named, part, uniform, widens
from rlloss.checks import in_range
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
        """The parameters with which outputs x become scale·x + shift, both [outputs]."""


@frozen
class Linear:
    """One linear layer, after a hidden one if that has a width.

        x = W φ + b,  or W relu(W′φ + b′) + b
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        in_range("hidden", self.hidden, 0)

    def numbers(self, width: int, shape: Shape) -> int:
        """None."""
        return 0

    def init(self, generator: torch.Generator, width: int, shape: Shape) -> Parameters:
        """`weight` and `bias`, `hidden.weight` and `hidden.bias`, as in torch.nn.Linear."""
        hidden = named("hidden.", uniform(generator, width, self.hidden)) if self.hidden else {}
        return hidden | uniform(generator, self.hidden or width, shape[0] * shape[1])

    def __call__(self, parameters: Parameters, features: Tensor, shape: Shape, noise: Tensor | None = None) -> Tensor:
        """Outputs [batch, actions, outputs] of features [batch, width]."""
        if self.hidden:
            features = linear(features, parameters["hidden.weight"], parameters["hidden.bias"]).relu()
        # Losses over many outputs sum them for the whole batch at once.
        return linear(features, parameters["weight"], parameters["bias"], along_batch=True).unflatten(-1, shape)

    def rescaled(self, parameters: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
        """The parameters with which outputs x become scale·x + shift, both [outputs]."""
        return _rescaled(parameters, ("weight", "bias"), scale, shift)


@frozen
class Noisy:
    """Linear layers whose weights are noisy, to an extent that is learned: exploration without ε.

        x = (W + Σ ⊙ f(ε) f(ε′)ᵀ) φ + b + σ ⊙ f(ε),  f(x) = sign(x) √|x|,  ε and ε′ standard normal

    At first Σ and σ are `sigma`/√inputs everywhere. One call has one noise for its whole batch.

    Source: Fortunato et al., Noisy networks for exploration, arXiv 1706.10295, with factorised noise.
    """

    hidden: int = 0
    sigma: float = 0.5

    def __post_init__(self) -> None:
        in_range("hidden", self.hidden, 0)
        in_range("sigma", self.sigma, 0)

    def numbers(self, width: int, shape: Shape) -> int:
        """One for each input and each output of each layer."""
        return width + 2 * self.hidden + shape[0] * shape[1]

    def init(self, generator: torch.Generator, width: int, shape: Shape) -> Parameters:
        """`weight`, `bias` as in torch.nn.Linear, `noise.weight` and `noise.bias` for Σ and σ, the same with `hidden.` before it."""
        hidden = named("hidden.", self._layer(generator, width, self.hidden)) if self.hidden else {}
        return hidden | self._layer(generator, self.hidden or width, shape[0] * shape[1])

    def _layer(self, generator: torch.Generator, inputs: int, outputs: int) -> Parameters:
        mean = uniform(generator, inputs, outputs)
        return mean | {f"noise.{name}": torch.full_like(parameter, self.sigma * inputs**-0.5) for name, parameter in mean.items()}

    def __call__(self, parameters: Parameters, features: Tensor, shape: Shape, noise: Tensor | None = None) -> Tensor:
        """Outputs [batch, actions, outputs] of features [batch, width]; without noise those of the mean weights."""
        if self.hidden:
            count = features.shape[1] + self.hidden
            features = noisy_linear(features, part("hidden.", parameters), None if noise is None else noise[:count]).relu()
            noise = None if noise is None else noise[count:]
        return noisy_linear(features, parameters, noise).unflatten(-1, shape)

    def rescaled(self, parameters: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
        """The parameters with which outputs x become scale·x + shift, both [outputs], whatever the noise."""
        return _rescaled(parameters, ("weight", "bias", "noise.weight", "noise.bias"), scale, shift)


@frozen
class Dueling:
    """A value of the state, and advantages of the actions over their mean; each stream is a head of its own.

        x = V(φ) + A(φ) − mean over actions of A(φ),  for each output of an action

    Source: Wang et al., Dueling network architectures, arXiv 1511.06581; for distributions Hessel et al., arXiv 1710.02298.
    """

    stream: Head = Linear()

    def numbers(self, width: int, shape: Shape) -> int:
        """Those of both streams, the value's first."""
        return self._value_numbers(width, shape) + self.stream.numbers(width, shape)

    def _value_numbers(self, width: int, shape: Shape) -> int:
        return self.stream.numbers(width, (1, shape[1]))

    def init(self, generator: torch.Generator, width: int, shape: Shape) -> Parameters:
        """The streams' own parameters, with `value.` and `advantage.` before their names."""
        value = named("value.", self.stream.init(generator, width, (1, shape[1])))
        return value | named("advantage.", self.stream.init(generator, width, shape))

    def __call__(self, parameters: Parameters, features: Tensor, shape: Shape, noise: Tensor | None = None) -> Tensor:
        """Outputs [batch, actions, outputs] of features [batch, width]."""
        count = self._value_numbers(features.shape[1], shape)
        of_value, of_advantage = (None, None) if noise is None else (noise[:count], noise[count:])
        value = self.stream(part("value.", parameters), features, (1, shape[1]), of_value)
        advantage = self.stream(part("advantage.", parameters), features, shape, of_advantage)
        return value + advantage - advantage.mean(1, keepdim=True)

    def rescaled(self, parameters: Parameters, scale: Tensor, shift: Tensor) -> Parameters:
        """The parameters with which outputs x become scale·x + shift, both [outputs]: the value alone is shifted."""
        value = self.stream.rescaled(part("value.", parameters), scale, shift)
        advantage = self.stream.rescaled(part("advantage.", parameters), scale, torch.zeros_like(shift))
        return named("value.", value) | named("advantage.", advantage)


def _rescaled(parameters: Parameters, names: tuple[str, ...], scale: Tensor, shift: Tensor) -> Parameters:
    """The parameters of a last layer with which outputs x of every action become scale·x + shift, both [outputs]."""
    bias = parameters["bias"]
    actions, inputs = len(bias) // len(scale), parameters["weight"].numel() // len(bias)
    along = {1: scale.repeat(actions), 2: scale.repeat(actions) if widens(inputs, len(bias)) else scale.repeat(actions)[:, None]}
    last = {name: parameters[name] * along[parameters[name].ndim] for name in names}
    return parameters | last | {"bias": last["bias"] + shift.repeat(actions)}


def noisy_linear(x: Tensor, parameters: Parameters, noise: Tensor | None) -> Tensor:
    """A linear layer [batch, outputs] of x [batch, inputs] with `noise` [inputs + outputs], or with its mean weights.

        y = x (W + Σ ⊙ f(ε) f(ε′)ᵀ)ᵀ + b + σ ⊙ f(ε),  f(x) = sign(x) √|x|

    Source: Fortunato et al., arXiv 1706.10295, equations 10 and 11.
    """
    weight, bias = parameters["weight"], parameters["bias"]
    if noise is None:
        return linear(x, weight, bias)
    noise = noise.sign() * noise.abs().sqrt()
    of_inputs, of_outputs = noise.split([x.shape[1], bias.shape[0]])
    rows, columns = (of_inputs, of_outputs) if widens(len(of_inputs), len(of_outputs)) else (of_outputs, of_inputs)
    return linear(x, weight + parameters["noise.weight"] * rows[:, None] * columns, bias + parameters["noise.bias"] * of_outputs)
