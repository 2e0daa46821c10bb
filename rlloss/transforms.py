"""Value transforms: h(v), the space in which a value head learns, and h⁻¹.

Any value loss takes one. Targets and values stay in the units of the return; only the loss, and the
spacing of a categorical head's support, live in the space of h.
"""

import math
from typing import NamedTuple, Protocol

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
        return value.sign() * value.abs().log1p()

    def inverse(self, transformed: Tensor) -> Tensor:
        """h⁻¹(x), elementwise."""
        return transformed.sign() * transformed.abs().expm1()


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
        x = transformed.abs()
        # With u = √(|v| + 1) − 1: εu² + (1 + 2ε)u = x, solved without cancellation, and |v| = u(u + 2).
        slope = 1 + 2 * self.epsilon
        u = 2 * x / (slope + (slope * slope + 4 * self.epsilon * x).sqrt())
        return transformed.sign() * u * (u + 2)


@frozen
class Affine:
    """A fixed scale and shift.

        h(v) = (v − shift)/scale

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
    """A running mean and mean square of returns, and the weight that the zeros they began with still have."""

    mean: Tensor
    square: Tensor
    zeros: Tensor


@frozen
class PopArt:
    """A running scale of returns that keeps a head's values when it moves.

        μ ← (1−β)μ + βE[G],  ν ← (1−β)ν + βE[G²],  σ = √(ν − μ²);  h(v) = (v − μ)/σ

    It is no transform itself, since its state changes: `transform(moments)` is the one of a moment.

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
        return Moments(zero, zero, zero + 1)

    def update(self, moments: Moments, returns: Tensor) -> Moments:
        """The moments after a batch of returns, any shape; none of it is differentiated."""
        floating(returns=returns)
        returns, keep = returns.detach(), 1 - self.step_size
        mean = keep * moments.mean + self.step_size * returns.mean()
        square = keep * moments.square + self.step_size * (returns * returns).mean()
        return Moments(mean, square, keep * moments.zeros)

    def transform(self, moments: Moments) -> Affine:
        """h at these moments, the weight of the zeros at the start taken out."""
        seen = 1 - moments.zeros
        some = seen > 0
        weight = torch.where(some, seen, torch.ones_like(seen))
        mean, square = moments.mean / weight, moments.square / weight
        scale = (square - mean * mean).clamp(min=0).sqrt().clamp(min=self.min_scale)
        return Affine(torch.where(some, scale, torch.ones_like(scale)), mean)

    def preserve(self, weight: Tensor, bias: Tensor, before: Affine, after: Affine) -> tuple[Tensor, Tensor]:
        """The last layer's weight and bias, any shapes, that give the same values after the scale has moved.

            w′ = w·σ/σ′,  b′ = (σb + μ − μ′)/σ′
        """
        ratio = before.scale / after.scale
        return weight * ratio, bias * ratio + (before.shift - after.shift) / after.scale
