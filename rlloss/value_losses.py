"""Value losses: how a head's outputs become a value, a target and a loss.

A network asks its value loss how many numbers a value needs, so any loss fits any agent:

    outputs   numbers per value: 1 for MSE and Huber, more for the heads in `distributional.py`
    value     [..., outputs] → [...]: the expected value, for acting, bootstrapping and advantages
    target    reward, discount, next outputs → the Bellman backup in the head's own space
    of_return a return that is computed already → a target in the head's own space
    expected  a target → the scalar it stands for [...]
    __call__  outputs [..., outputs], target → the elementwise loss [...]

Targets are linear: the mean of two targets stands for the mean of their values, though only for categorical
heads it is their mixture. With a nonlinear transform a scalar head learns h⁻¹(E[h(G)]), not E[G]. A loss of your own is a
dataclass with `ScalarHead` as base and one method, `pointwise`; one with another kind of head has the
six members above, and a seventh if it takes a running transform such as PopArt:

    moved     scale and shift, 0-dim, with which values in the space of h are kept → those of each output, [outputs]
"""

import abc
import dataclasses
import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlloss import pointwise
from rlloss.checks import floating, has_outputs, in_range, same_shape
from rlloss.frozen import frozen
from rlloss.numbers import like, times
from rlloss.transforms import Identity, RunningTransform, Transform


@runtime_checkable
class ValueLoss(Protocol):
    """The interface of every value loss; see the top of this file for shapes."""

    @property
    def outputs(self) -> int:
        """Numbers per value that the head must produce."""

    def value(self, outputs: Tensor) -> Tensor:
        """The expected value [...] of a head's outputs [..., outputs]."""

    def target(self, reward: Tensor, discount: Tensor, next_outputs: Tensor) -> Tensor:
        """The Bellman backup of next outputs [..., outputs] in the head's space, without gradient."""

    def of_return(self, returns: Tensor) -> Tensor:
        """The target for returns [...] that are computed already (λ-returns, GAE), without gradient."""

    def expected(self, target: Tensor) -> Tensor:
        """The scalar value [...] a target stands for."""

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The elementwise loss [...] of a head's outputs [..., outputs] against a target."""


class ScalarTarget:
    """What all losses share whose target is a number: the Bellman backup on the value itself."""

    def target(self, reward: Tensor, discount: Tensor, next_outputs: Tensor) -> Tensor:
        """The Bellman backup r + d·V(s′), shape [...].

        Args:
            reward: r [...].
            discount: d = γ·(1 − terminated) [...]; truncation is not termination. Where it is 0 the next outputs may be anything.
            next_outputs: outputs at the next state [..., outputs].

        Raises:
            ValueError: shapes differ.

        Source: Sutton, Learning to predict by the methods of temporal differences (1988).
        """
        next_value = self.value(next_outputs)
        same_shape(reward=reward, discount=discount, next_value=next_value)
        return (reward + times(discount, next_value)).detach()

    def of_return(self, returns: Tensor) -> Tensor:
        """The target for a return [...]: the return itself, without gradient."""
        return returns.detach()

    def expected(self, target: Tensor) -> Tensor:
        """The scalar a target [...] stands for: the target itself."""
        return target


@frozen
class ScalarHead(ScalarTarget, abc.ABC):
    """The base of losses with one output per value; they add `pointwise`, and `curvature` if it isn't 1.

        ℓ = pointwise(x − h(y)),  divided by ℓ″(0) with matched curvature;  V = h⁻¹(x)

    for an output x and a target y. `transform` is h. `matched_curvature` makes ℓ″(0) = 1, Huber's, so
    that a comparison of two shapes isn't confounded with a factor in the learning rate.

    For: values without uncertainty.
    Source: Sutton, Learning to predict by the methods of temporal differences (1988).
    """

    matched_curvature: bool = dataclasses.field(default=False, kw_only=True)
    transform: Transform | RunningTransform = dataclasses.field(default=Identity(), kw_only=True)

    outputs = 1
    curvature = None  # ℓ″(0) before matching; None where there is none, or nobody said

    def __post_init__(self) -> None:
        if self.matched_curvature and self.curvature is None:
            raise ValueError(f"matched_curvature needs a curvature at zero, which {type(self).__name__} has not, or doesn't say; leave it false")

    @abc.abstractmethod
    def pointwise(self, error: Tensor) -> Tensor:
        """The loss of an error, elementwise."""

    def value(self, outputs: Tensor) -> Tensor:
        """The value [...] of outputs [..., 1]: h⁻¹(x)."""
        has_outputs(outputs, self.outputs)
        return self.transform.inverse(outputs.squeeze(-1))

    def moved(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The scale [1] and shift [1] of the output."""
        return scale[None], shift[None]

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """x − h(y) [...], refusing shapes that differ; no gradient reaches the target y."""
        floating(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        output = outputs.squeeze(-1)
        same_shape(value=output, target=target)
        return output - self.transform(target.detach())

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of outputs [..., 1] against target [...]."""
        error = self.error(outputs, target)
        loss = self.pointwise(error)
        same_shape(error=error, loss=loss)
        return loss / self.curvature if self.matched_curvature else loss


@frozen
class MSE(ScalarHead):
    """The squared error of a scalar value head.

        ℓ(e) = e²,  ℓ″(0) = 2

    For: the default, and with Adam often the best choice.
    Source: Mnih et al., Human-level control through deep reinforcement learning (2015), before clipping.
    """

    curvature = 2.0

    def pointwise(self, error: Tensor) -> Tensor:
        """e², elementwise."""
        return pointwise.squared_error(error)


@frozen
class AbsoluteError(ScalarHead):
    """The absolute error of a scalar value head.

        ℓ(e) = |e|

    For: heavy-tailed targets; it learns their median.
    Source: Laplace, Mémoire sur la probabilité des causes (1774).
    """

    def pointwise(self, error: Tensor) -> Tensor:
        """|e|, elementwise."""
        return pointwise.absolute_error(error)


@frozen
class Huber(ScalarHead):
    """The Huber loss of a scalar value head, DQN's "error clipping".

        ℓ(e) = ½e² if |e| ≤ δ, δ(|e| − ½δ) otherwise,  ℓ″(0) = 1

    For: TD errors with outliers.
    Source: Huber, Robust estimation of a location parameter (1964); Mnih et al. (2015).
    """

    delta: float = 1.0

    curvature = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("delta", self.delta, 0, above=True)

    def pointwise(self, error: Tensor) -> Tensor:
        """Huber's loss, elementwise."""
        return pointwise.huber(error, self.delta)

    def linear_zone(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Where an error lies beyond δ, so that its gradient is clipped: bool [...]."""
        return self.error(outputs, target).abs() > self.delta


@frozen
class SmoothL1(ScalarHead):
    """The smooth absolute error of a scalar value head: Huber's loss divided by its δ.

        ℓ(e) = ½e²/β if |e| ≤ β, |e| − ½β otherwise,  ℓ″(0) = 1/β

    For: gradients within ±1 whatever β; what torch, and so stable-baselines3's DQN, calls Huber's.
    Source: Girshick, Fast R-CNN, arXiv 1504.08083.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("beta", self.beta, 0, above=True)

    @property
    def curvature(self) -> float | Tensor:
        """ℓ″(0) = 1/β."""
        return 1 / self.beta

    def pointwise(self, error: Tensor) -> Tensor:
        """The smooth absolute error, elementwise."""
        return pointwise.smooth_l1(error, self.beta)

    def linear_zone(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Where an error lies beyond β: bool [...]."""
        return self.error(outputs, target).abs() > self.beta


@frozen
class PseudoHuber(ScalarHead):
    """The pseudo-Huber loss of a scalar value head.

        ℓ(e) = δ²(√(1 + (e/δ)²) − 1),  ℓ″(0) = 1

    For: Huber's purpose with continuous second derivatives.
    Source: Charbonnier et al., Deterministic edge-preserving regularization (1997).
    """

    delta: float = 1.0

    curvature = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("delta", self.delta, 0, above=True)

    def pointwise(self, error: Tensor) -> Tensor:
        """The pseudo-Huber loss, elementwise."""
        return pointwise.pseudo_huber(error, self.delta)


@frozen
class LogCosh(ScalarHead):
    """The log-cosh loss of a scalar value head.

        ℓ(e) = log cosh(e),  ℓ″(0) = 1

    For: a smooth Huber loss with no parameter.
    Source: Green, Bayesian reconstructions from emission tomography data (1990).
    """

    curvature = 1.0

    def pointwise(self, error: Tensor) -> Tensor:
        """log cosh(e), elementwise."""
        return pointwise.log_cosh(error)


@frozen
class Quantile(ScalarHead):
    """The quantile loss of a scalar value head.

        ℓ(e) = (1[e > 0] − τ)·e

    For: pessimistic (τ < ½) or optimistic (τ > ½) values.
    Source: Koenker and Bassett, Regression quantiles (1978).
    """

    tau: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("tau", self.tau, 0, 1, above=True, below=True)

    def pointwise(self, error: Tensor) -> Tensor:
        """The quantile loss, elementwise."""
        return pointwise.quantile(error, self.tau)


@frozen
class Expectile(ScalarHead):
    """The expectile loss of a scalar value head.

        ℓ(e) = |1[e > 0] − τ|·e²,  ℓ″(0) = 1, the mean of both sides

    For: values between the mean (τ = ½) and the maximum (τ → 1), as in implicit Q-learning.
    Source: Newey and Powell, Asymmetric least squares (1987); Kostrikov et al., arXiv 2110.06169.
    """

    tau: float = 0.5

    curvature = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("tau", self.tau, 0, 1, above=True, below=True)

    def pointwise(self, error: Tensor) -> Tensor:
        """The expectile loss, elementwise."""
        return pointwise.expectile(error, self.tau)


@frozen
class Robust(ScalarHead):
    """Barron's general robust loss of a scalar value head.

        ℓ(e) = |α−2|/α · ((x²/|α−2| + 1)^(α/2) − 1),  x = e/c,  ℓ″(0) = 1/c²

    α = 2 is ½x², 1 Charbonnier's, 0 Cauchy's, −2 Geman and McClure's, −∞ Welsch's loss.

    For: sweeping how much outliers count.
    Source: Barron, A general and adaptive robust loss function, arXiv 1701.03077.
    """

    alpha: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("alpha", self.alpha, -math.inf, 2)
        in_range("scale", self.scale, 0, above=True)

    @property
    def curvature(self) -> float | Tensor:
        """ℓ″(0) = 1/c²."""
        return 1 / (self.scale * self.scale)

    def pointwise(self, error: Tensor) -> Tensor:
        """The general robust loss, elementwise."""
        return pointwise.robust(error, self.alpha, self.scale)


@frozen
class GaussianNLL(ScalarTarget):
    """The Gaussian negative log-likelihood of a head with two outputs per value: mean and log-variance.

        ℓ = ½(s + e²·exp(−s)),  e = x − h(y),  s clamped to ±log_variance_limit;  V = h⁻¹(x)

    For: targets whose noise differs between states.
    Source: Nix and Weigend, Estimating the mean and variance of the target probability distribution (1994).
    """

    log_variance_limit: float = 10.0
    transform: Transform | RunningTransform = dataclasses.field(default=Identity(), kw_only=True)

    outputs = 2

    def __post_init__(self) -> None:
        in_range("log_variance_limit", self.log_variance_limit, 0, above=True)

    def value(self, outputs: Tensor) -> Tensor:
        """The value [...] of outputs [..., 2]."""
        has_outputs(outputs, self.outputs)
        return self.transform.inverse(outputs[..., 0])

    def moved(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The scale [2] and shift [2]: only the mean is moved, for a log-variance that follows h would soon lie beyond its limit."""
        return torch.stack([scale, torch.ones_like(scale)]), torch.stack([shift, torch.zeros_like(shift)])

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of outputs [..., 2] against target [...]; no gradient reaches the target."""
        floating(outputs=outputs, target=target)
        has_outputs(outputs, self.outputs)
        mean, log_variance = outputs.unbind(-1)
        same_shape(value=mean, target=target)
        limit = like(log_variance, self.log_variance_limit)
        return pointwise.gaussian_nll(mean - self.transform(target.detach()), log_variance.clamp(-limit, limit))
