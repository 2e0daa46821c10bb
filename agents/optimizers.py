"""Optimisers as pure functions over dicts of parameters; they agree with torch.optim.

Each has `init(parameters) -> state` and `step(parameters, gradient, state, progress) -> (parameters, state)`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agents.networks import Parameters
from agents.schedules import Linear, Schedule
from rlloss.checks import in_range
from rlloss.frozen import frozen
from rlloss.numbers import once


class Optimizer(Protocol):
    """A pure optimiser: its state is a pytree of tensors."""

    def init(self, parameters: Parameters) -> NamedTuple:
        """The state before the first step."""

    def step(self, parameters: Parameters, gradient: Parameters, state: NamedTuple, progress: Tensor) -> tuple[Parameters, NamedTuple]:
        """The parameters and the state after one step."""

    def rate(self, progress: Tensor) -> Tensor:
        """The learning rate at this progress, 0-dim."""


class AdamState(NamedTuple):
    """First and second moments of the gradient, and β₁ᵗ and β₂ᵗ after t steps.

    The powers are kept, not t: a compiled program would raise them anew for every few parameters.
    """

    mean: Parameters
    square: Parameters
    power1: Tensor
    power2: Tensor


@frozen
class Adam:
    """Adam, with weight decay added to the gradient as torch.optim.Adam does.

        m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  θ ← θ − η · m̂ / (√v̂ + ε)

    Source: Kingma and Ba, arXiv 1412.6980.
    """

    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 3e-4
    weight_decay: float = 0.0
    schedule: Schedule = Linear()

    def __post_init__(self) -> None:
        in_range("learning_rate", self.learning_rate, 0)
        in_range("beta1", self.beta1, 0, 1, below=True)
        in_range("beta2", self.beta2, 0, 1, below=True)
        in_range("eps", self.eps, 0)
        in_range("weight_decay", self.weight_decay, 0)

    def rate(self, progress: Tensor) -> Tensor:
        """The learning rate at this progress, 0-dim."""
        return self.learning_rate * self.schedule(progress)

    def init(self, parameters: Parameters) -> AdamState:
        """Zero moments, no step taken."""
        return AdamState(_zeros(parameters), _zeros(parameters), torch.ones(()), torch.ones(()))

    def step(self, parameters: Parameters, gradient: Parameters, state: AdamState, progress: Tensor) -> tuple[Parameters, AdamState]:
        """One step; see the class for the formula."""
        power1, power2 = self.beta1 * state.power1, self.beta2 * state.power2
        size, scale = once(self.rate(progress) / (1 - power1)), once((1 - power2).rsqrt())
        gradient = _decayed(parameters, gradient, self.weight_decay)
        mean = {name: m + (gradient[name] - m) * (1 - self.beta1) for name, m in state.mean.items()}
        square = {name: self.beta2 * v + (1 - self.beta2) * gradient[name] ** 2 for name, v in state.square.items()}
        moved = {name: p - size * mean[name] / (square[name].sqrt() * scale + self.eps) for name, p in parameters.items()}
        return moved, AdamState(mean, square, power1, power2)


class RMSPropState(NamedTuple):
    """The running mean of squared gradients."""

    square: Parameters


@frozen
class RMSProp:
    """RMSProp, ε outside the root as in torch.optim.RMSprop.

        v ← αv + (1−α)g²,  θ ← θ − η · g / (√v + ε)

    Source: Tieleman and Hinton, Lecture 6.5 (2012).
    """

    learning_rate: float = 2.5e-4
    alpha: float = 0.95
    eps: float = 1e-2
    weight_decay: float = 0.0
    schedule: Schedule = Linear()

    def __post_init__(self) -> None:
        in_range("learning_rate", self.learning_rate, 0)
        in_range("alpha", self.alpha, 0, 1, below=True)
        in_range("eps", self.eps, 0)
        in_range("weight_decay", self.weight_decay, 0)

    def rate(self, progress: Tensor) -> Tensor:
        """The learning rate at this progress, 0-dim."""
        return self.learning_rate * self.schedule(progress)

    def init(self, parameters: Parameters) -> RMSPropState:
        """A zero running mean."""
        return RMSPropState(_zeros(parameters))

    def step(self, parameters: Parameters, gradient: Parameters, state: RMSPropState, progress: Tensor) -> tuple[Parameters, RMSPropState]:
        """One step; see the class for the formula."""
        rate = self.rate(progress)
        gradient = _decayed(parameters, gradient, self.weight_decay)
        square = {name: self.alpha * v + (1 - self.alpha) * gradient[name] ** 2 for name, v in state.square.items()}
        moved = {name: p - rate * gradient[name] / (square[name].sqrt() + self.eps) for name, p in parameters.items()}
        return moved, RMSPropState(square)


class SGDState(NamedTuple):
    """The velocity of every parameter."""

    velocity: Parameters


@frozen
class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD without dampening.

        u ← μu + g,  θ ← θ − η · u

    Source: Polyak, Some methods of speeding up the convergence of iteration methods (1964).
    """

    learning_rate: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = Linear()

    def __post_init__(self) -> None:
        in_range("learning_rate", self.learning_rate, 0)
        in_range("momentum", self.momentum, 0, 1, below=True)
        in_range("weight_decay", self.weight_decay, 0)

    def rate(self, progress: Tensor) -> Tensor:
        """The learning rate at this progress, 0-dim."""
        return self.learning_rate * self.schedule(progress)

    def init(self, parameters: Parameters) -> SGDState:
        """Zero velocity."""
        return SGDState(_zeros(parameters))

    def step(self, parameters: Parameters, gradient: Parameters, state: SGDState, progress: Tensor) -> tuple[Parameters, SGDState]:
        """One step; see the class for the formula."""
        rate = self.rate(progress)
        gradient = _decayed(parameters, gradient, self.weight_decay)
        velocity = {name: self.momentum * u + gradient[name] for name, u in state.velocity.items()}
        return {name: p - rate * velocity[name] for name, p in parameters.items()}, SGDState(velocity)


def clip_by_global_norm(gradient: Parameters, limit: float | Tensor) -> tuple[Parameters, Tensor]:
    """The gradient scaled down to a norm of at most `limit`, and its norm before.

        g · min(1, limit / (‖g‖ + 1e-6))

    Source: Pascanu, Mikolov and Bengio, arXiv 1211.5063; constants as in torch.nn.utils.clip_grad_norm_.
    """
    norm = sum((g * g).sum() for g in gradient.values()).sqrt()
    scale = once((limit / (norm + 1e-6)).clamp(max=1.0))
    return {name: g * scale for name, g in gradient.items()}, norm


def _zeros(parameters: Parameters) -> Parameters:
    return {name: torch.zeros_like(p) for name, p in parameters.items()}


def _decayed(parameters: Parameters, gradient: Parameters, weight_decay: float | Tensor) -> Parameters:
    return {name: g + weight_decay * parameters[name] for name, g in gradient.items()}
