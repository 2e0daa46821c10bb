"""Value transforms: h(v), the space in which a value head learns, and h⁻¹.

Any value loss takes one. Targets and values stay in the units of the return; only the loss, and the
spacing of a categorical head's support, live in the space of h. A running transform has a state, which the
learner keeps: `settled` makes a value loss of its present one.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from rlloss.checks import floating, in_range
from rlloss.frozen import frozen


class Transform(Protocol):
    """A strictly increasing function of values, and its inverse."""

    def __call__(self, value: Tensor) -> Tensor:
        """h(v), elementwise."""

    def inverse(self, transformed: Tensor) -> Tensor:
        """h⁻¹(x), elementwise."""


@runtime_checkable
class RunningTransform(Protocol):
    """A transform that follows the returns."""

    def init(self) -> Any:
        """The state before any return was seen."""

    def update(self, state: Any, returns: Tensor, mask: Tensor | None = None) -> Any:
        """The state after a batch of returns, any shape."""

    def transform(self, state: Any) -> "Affine":
        """h in a state."""

    def kept(self, before: Any, after: Any) -> tuple[Tensor, Tensor]:
        """The scale and shift, 0-dim, of outputs x = h(v) with which they keep their value v."""


@frozen
class Identity:
    """Values as they are.

        h(v) = v

    For: returns of moderate size.
    Source: the usual case.
    """

    def __call__(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def inverse(self, transformed: Tensor) -> Tensor:
        """The value itself."""
        return transformed


@frozen
class SignedLog:
    """The signed logarithm.

        h(v) = sign(v)·log(1 + |v|),  h⁻¹(x) = sign(x)·(exp|x| − 1)

    For: returns over many orders of magnitude.
    Source: Hafner et al., Mastering diverse domains through world models, arXiv 2301.04104.
    """

    def __call__(self, value: Tensor) -> Tensor:
        """h(v), elementwise."""
        return _odd(torch.log1p, value)

    def inverse(self, transformed: Tensor) -> Tensor:
        """h⁻¹(x), elementwise."""
        return _odd(torch.expm1, transformed)


@frozen
class SignedHyperbolic:
    """The signed hyperbolic transform: a square root that keeps a slope of at least ε.

        h(v) = sign(v)·(√(|v| + 1) − 1) + εv
        h⁻¹(x) = sign(x)·(((√(1 + 4ε(|x| + 1 + ε)) − 1)/(2ε))² − 1)

    For: large returns, less strongly than the logarithm.
    Source: Pohlen et al., Observe and look further, arXiv 1805.11593.
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        in_range("epsilon", self.epsilon, 0, above=True)

    def __call__(self, value: Tensor) -> Tensor:
        """h(v), elementwise."""
        magnitude = value.abs()
        # v/(√ + 1), not √ − 1: the difference cancels for small values.
        return value / ((magnitude + 1).sqrt() + 1) + self.epsilon * value

    def inverse(self, transformed: Tensor) -> Tensor:
        """h⁻¹(x), elementwise."""
        # With u = √(|v| + 1) − 1: εu² + (1 + 2ε)u = |x|, solved without cancellation, and |v| = u(u + 2).
        slope = 1 + 2 * self.epsilon
        u = 2 * transformed / (slope + (slope * slope + 4 * self.epsilon * transformed.abs()).sqrt())
        return u * (u.abs() + 2)


@frozen
class Affine:
    """A fixed scale and shift.

        h(v) = (v − shift)/scale

    For scalar and quantile heads: a categorical head's support is given in units of the return, and evenly spaced with it and without.

    For: returns whose size is known, and the transform of a running scale.
    Source: van Hasselt et al., Learning values across many orders of magnitude, arXiv 1602.07714.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        in_range("scale", self.scale, 0, above=True)
        in_range("shift", self.shift, -math.inf, above=True)

    def __call__(self, value: Tensor) -> Tensor:
        """h(v), elementwise."""
        return (value - self.shift) / self.scale

    def inverse(self, transformed: Tensor) -> Tensor:
        """h⁻¹(x), elementwise."""
        return transformed * self.scale + self.shift


class Moments(NamedTuple):
    """A running mean and variance of returns, and how much of a whole batch's weight they have seen."""

    mean: Tensor
    variance: Tensor
    seen: Tensor


@frozen
class PopArt:
    """A running scale of returns that keeps a head's values when it moves.

        μ ← μ + a(E[G] − μ),  σ² ← (1−a)(σ² + a(E[G] − μ)²) + a·Var[G],  a = β/(1 − (1−β)ᵗ);  h(v) = (v − μ)/σ

    It is no transform itself, since its state changes: `transform(moments)` is that of a moment, `settled` a value
    loss with it. The support of a categorical head is then in units of the scale, and moves with it: ±5 holds what
    lies within five deviations of the mean. Its probabilities are kept, since no move of logits keeps every value.

    For: returns whose size isn't known, or grows during training.
    Source: van Hasselt et al., Learning values across many orders of magnitude, arXiv 1602.07714.
    """

    step_size: float = 3e-4
    min_scale: float = 1e-4

    def __post_init__(self) -> None:
        in_range("step_size", self.step_size, 0, 1, above=True)
        in_range("min_scale", self.min_scale, 0, above=True)

    def init(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Moments:
        """The moments before any return was seen; their transform is the identity."""
        zero = torch.zeros((), dtype=dtype, device=device)
        return Moments(zero, zero + 1, zero)

    def update(self, moments: Moments, returns: Tensor, mask: Tensor | None = None) -> Moments:
        """The moments after a batch of returns, any shape, of which those outside of a mask don't count; without gradient."""
        floating(returns=returns)
        returns = returns.detach()
        step_size = self.step_size if mask is None else self.step_size * mask.any()
        seen = moments.seen + step_size * (1 - moments.seen)
        share, mean = step_size / seen.clamp(min=1e-30), _mean(returns, mask)
        # Deviations, not squares: a mean of squares less a squared mean loses a small variance in rounding.
        deviation = _mean((returns - mean) ** 2, mask)
        variance = (1 - share) * (moments.variance + share * (mean - moments.mean) ** 2) + share * deviation
        return Moments(moments.mean + share * (mean - moments.mean), variance, seen)

    def __call__(self, value: Tensor) -> Tensor:
        """Raises TypeError: h needs a state."""
        raise TypeError("PopArt has a state: use the value loss that settled(value_loss, moments) gives")

    inverse = __call__

    def transform(self, moments: Moments) -> Affine:
        """h at these moments; its scale is at least 10⁻⁴ of the mean, so that float32 can tell what lies within it apart."""
        return Affine(torch.maximum(moments.variance.sqrt().clamp(min=self.min_scale), 1e-4 * moments.mean.abs()), moments.mean)

    def kept(self, before: Moments, after: Moments) -> tuple[Tensor, Tensor]:
        """The scale and shift, 0-dim, of outputs x = h(v) with which they keep their value v when h moves.

            x′ = x·σ/σ′ + (μ − μ′)/σ′,  so that a last layer has w′ = w·σ/σ′ and b′ = (σb + μ − μ′)/σ′

        Before any return was seen there is no value worth keeping: outputs stay what they are.
        """
        old, new, begun = self.transform(before), self.transform(after), before.seen > 0
        scale, shift = old.scale / new.scale, (old.shift - new.shift) / new.scale
        return torch.where(begun, scale, torch.ones_like(scale)), torch.where(begun, shift, torch.zeros_like(shift))


Loss = TypeVar("Loss")


def settled(value_loss: Loss, state: Any) -> Loss:
    """A value loss whose running transform stands still, as it is in a state; one without such a transform as it is.

        ℓ with h = `transform.transform(state)`, of outputs and targets of the same shapes [...]

    Fields that the value loss names in `in_units_of_scale` are taken to units of the return, x ← h⁻¹(x).

    For: acting, targets and losses between two updates of the state.
    Source: van Hasselt et al., Learning values across many orders of magnitude, arXiv 1602.07714.
    """
    running = getattr(value_loss, "transform", None)
    if not isinstance(running, RunningTransform):
        return value_loss
    still, transform = copy.copy(value_loss), running.transform(state)
    fields = {"transform": transform} | {name: transform.inverse(getattr(value_loss, name)) for name in getattr(value_loss, "in_units_of_scale", ())}
    for name, field in fields.items():
        object.__setattr__(still, name, field)  # Not replace(): it would check numbers, which may be traced.
    return still


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean()
    return torch.where(mask, x, torch.zeros_like(x)).sum() / mask.sum().clamp(min=1)


def _odd(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """sign(x)·f(|x|) for f(0) = 0, with f's gradient at 0, where that of sign(x)·|x| would be 0."""
    return torch.where(x >= 0, function(x.clamp(min=0)), -function((-x).clamp(min=0)))
