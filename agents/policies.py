"""Policies as values: what a network's outputs [batch, outputs] say about actions, one kind for each kind of action space."""

import math
from typing import Protocol

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import softplus

from agents.exploration import Softmax
from agents.heads import Linear
from agents.networks import Parameters
from agents.streams import normal_rows, paired
from rlloss.checks import in_range
from rlloss.frozen import frozen
from rlloss.penalties import entropy_bonus

# An action is drawn from the softmax of its logits.
DRAWN = Softmax(1.0)

# At first all actions are about as likely.
SMALL = 0.01

# What log σ is kept within where it depends on the state.
LOG_DEVIATIONS = -20.0, 2.0

# A squashed action is kept so far from ±1, where its density would be infinite.
EDGE = 1e-6


class Policy(Protocol):
    """π(a|s) as functions of what the network says of s, for a whole batch."""

    numbers: int
    """How many uniform random numbers one draw takes."""

    def init(self, generator: torch.Generator, width: int) -> Parameters:
        """Initial parameters for so many features."""

    def __call__(self, parameters: Parameters, features: Tensor) -> Tensor:
        """What is said of actions [batch, outputs], for features [batch, width]."""

    def draw(self, outputs: Tensor, uniforms: Tensor, explore: Tensor) -> Tensor:
        """Actions [batch, …] by uniforms [batch, numbers]; the likeliest where `explore`, 0-dim, is 0."""

    def log_probability(self, outputs: Tensor, action: Tensor) -> Tensor:
        """log π(a|s) [batch] of actions [batch, …]; of continuous ones the density's."""

    def entropy(self, outputs: Tensor) -> Tensor:
        """H(π(·|s)) [batch] in nats."""


@frozen
class Categories:
    """One of `counts[i]` categories for each part i of an action of some shape, independent of each other.

        log π(a|s) = Σᵢ log softmax(xᵢ)_{aᵢ}
    """

    counts: tuple[int, ...]
    shape: tuple[int, ...] = ()

    @property
    def numbers(self) -> int:
        """One a category."""
        return sum(self.counts)

    def init(self, generator: torch.Generator, width: int) -> Parameters:
        """Those of a linear layer, small."""
        return _small(generator, width, sum(self.counts))

    def __call__(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Logits [batch, Σ counts]."""
        return Linear()(parameters, features, (sum(self.counts), 1)).squeeze(-1)

    def draw(self, outputs: Tensor, uniforms: Tensor, explore: Tensor) -> Tensor:
        """Actions [batch, *shape], counted from 0."""
        pairs = zip(outputs.split(self.counts, -1), uniforms.split(self.counts, -1), strict=True)
        drawn = [DRAWN(logits, numbers, explore, explore)[0] for logits, numbers in pairs]
        return torch.stack(drawn, -1).reshape(len(outputs), *self.shape)

    def log_probability(self, outputs: Tensor, action: Tensor) -> Tensor:
        """log π(a|s) [batch]."""
        pairs = zip(outputs.split(self.counts, -1), action.reshape(len(action), -1).unbind(-1), strict=True)
        return sum(logits.log_softmax(-1).gather(-1, column[:, None]).squeeze(-1) for logits, column in pairs)

    def entropy(self, outputs: Tensor) -> Tensor:
        """H [batch], the sum of all parts'."""
        return sum(-entropy_bonus(logits) for logits in outputs.split(self.counts, -1))


@frozen
class Normal:
    """Independent normal numbers, `count` of them, with a deviation of their own; squashed by tanh into ±1 if asked.

        u ~ N(μ(s), σ²),  log π(u|s) = −Σ ((u − μ)²/2σ² + log σ + ½ log 2π)
        squashed: a = tanh u,  log π(a|s) = log π(u|s) − Σ log(1 − a²)

    Source: Williams (1992); squashed: Haarnoja et al., arXiv 1801.01290, appendix C.
    """

    shape: tuple[int, ...]
    deviation: float = 1.0
    state_dependent: bool = False
    squashed: bool = False

    @property
    def count(self) -> int:
        """How many numbers an action is."""
        return math.prod(self.shape)

    @property
    def numbers(self) -> int:
        """One a number, made even."""
        return paired(self.count)

    def init(self, generator: torch.Generator, width: int) -> Parameters:
        """Those of a linear layer, small, and log σ [count] where that doesn't depend on the state."""
        outputs, log_deviation = (1 + self.state_dependent) * self.count, torch.full((self.count,), math.log(self.deviation))
        layer = _small(generator, width, outputs)
        if not self.state_dependent:
            return layer | {"log_deviation": log_deviation}
        return layer | {"bias": layer["bias"] + torch.cat([torch.zeros(self.count), log_deviation])}

    def __call__(self, parameters: Parameters, features: Tensor) -> Tensor:
        """μ and log σ [batch, 2 · count]."""
        outputs = Linear()(parameters, features, ((1 + self.state_dependent) * self.count, 1)).squeeze(-1)
        if self.state_dependent:
            mean, log_deviation = outputs.chunk(2, -1)
            return torch.cat([mean, log_deviation.clamp(*LOG_DEVIATIONS)], -1)
        return torch.cat([outputs, parameters["log_deviation"].expand_as(outputs)], -1)

    def draw(self, outputs: Tensor, uniforms: Tensor, explore: Tensor) -> Tensor:
        """Actions [batch, *shape]."""
        mean, log_deviation = outputs.chunk(2, -1)
        drawn = mean + explore * log_deviation.exp() * normal_rows(uniforms, self.count)
        return (torch.tanh(drawn) if self.squashed else drawn).unflatten(-1, self.shape)

    def sample(self, outputs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [batch, *shape] by uniforms [batch, numbers], differentiable in the outputs, and their log π(a|s) [batch].

            u = μ + σ·ε;  log(1 − tanh²u) = 2(log 2 − u − log(1 + exp(−2u))), finite where tanh u is ±1 in float32
        """
        mean, log_deviation = outputs.chunk(2, -1)
        noise = normal_rows(uniforms, self.count)
        drawn = mean + log_deviation.exp() * noise
        log_probability = -(0.5 * noise.square() + log_deviation + 0.5 * math.log(2 * math.pi)).sum(-1)
        if self.squashed:
            log_probability = log_probability - 2 * (math.log(2) - drawn - softplus(-2 * drawn)).sum(-1)
            drawn = torch.tanh(drawn)
        return drawn.unflatten(-1, self.shape), log_probability

    def log_probability(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The logarithm of the density [batch]."""
        mean, log_deviation = outputs.chunk(2, -1)
        action = action.flatten(1)
        if not self.squashed:
            return _log_density(action, mean, log_deviation)
        action = action.clamp(-1 + EDGE, 1 - EDGE)
        return _log_density(torch.atanh(action), mean, log_deviation) - torch.log1p(-action.square()).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """H [batch]; of squashed actions that before they are squashed, since theirs has no formula."""
        return (outputs.chunk(2, -1)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def _small(generator: torch.Generator, width: int, outputs: int) -> Parameters:
    """A linear layer whose outputs are near 0 at first."""
    return {name: SMALL * p for name, p in Linear().init(generator, width, (outputs, 1)).items()}


def _log_density(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    return -(0.5 * ((x - mean) * torch.exp(-log_deviation)).square() + log_deviation + 0.5 * math.log(2 * math.pi)).sum(-1)


@frozen
class Gaussian:
    """How Box actions are drawn: the settings of a `Normal` policy before the action space is known."""

    deviation: float = 1.0
    state_dependent: bool = False
    squashed: bool = False

    def __post_init__(self) -> None:
        in_range("deviation", self.deviation, 0, above=True)

    def __call__(self, shape: tuple[int, ...]) -> Normal:
        """The policy for actions of this shape."""
        return Normal(shape, self.deviation, self.state_dependent, self.squashed)


def fitting(space: spaces.Space, gaussian: Gaussian) -> Policy:
    """The policy that fits an action space; see `agents.actions` for which there are."""
    if isinstance(space, spaces.Discrete):
        return Categories((int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return Categories(tuple(int(n) for n in space.nvec.ravel()), space.shape)
    if isinstance(space, spaces.MultiBinary):
        return Categories((2,) * math.prod(space.shape), space.shape)
    return gaussian(space.shape)
