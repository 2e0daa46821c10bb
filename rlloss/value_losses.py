"""Value losses: how a head's outputs become a value, a target and a loss.

A network asks its value loss how many numbers a value needs, so any loss fits any agent:

    outputs   numbers per value: 1 for MSE and Huber
    value     [..., outputs] → [...]: the expected value, for acting, bootstrapping and advantages
    target    reward, discount, next outputs → the Bellman backup in the head's own space
    of_return a return that is computed already → a target in the head's own space
    expected  a target → the scalar it stands for [...]
    __call__  outputs [..., outputs], target → the elementwise loss [...]
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from rlloss.checks import in_range, same_shape
from rlloss.frozen import frozen
from rlloss.pointwise import huber, squared_error


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


class ScalarHead:
    """What all losses with one output per value share: the Bellman backup on the value itself."""

    outputs = 1

    def value(self, outputs: Tensor) -> Tensor:
        """The value [...] of outputs [..., 1]: the output itself."""
        return outputs.squeeze(-1)

    def target(self, reward: Tensor, discount: Tensor, next_outputs: Tensor) -> Tensor:
        """The Bellman backup r + d·V(s′), shape [...].

        Args:
            reward: r [...].
            discount: d = γ·(1 − terminated) [...]; truncation is not termination.
            next_outputs: outputs at the next state [..., 1].

        Raises:
            ValueError: shapes differ.

        Source: Sutton, Learning to predict by the methods of temporal differences (1988).
        """
        next_value = self.value(next_outputs)
        same_shape(reward=reward, discount=discount, next_value=next_value)
        return (reward + discount * next_value).detach()

    def of_return(self, returns: Tensor) -> Tensor:
        """The target for a return [...]: the return itself, without gradient."""
        return returns.detach()

    def expected(self, target: Tensor) -> Tensor:
        """The scalar a target [...] stands for: the target itself."""
        return target

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """value(outputs) − target [...], refusing shapes that differ."""
        value = self.value(outputs)
        same_shape(value=value, target=target)
        return value - target.detach()


@frozen
class MSE(ScalarHead):
    """The squared error of a scalar value head, ℓ(e) = e²; halved with matched curvature.

    `matched_curvature` makes ℓ″(0) = 1, Huber's, so that a comparison of the two shapes isn't
    confounded by a factor of two in the learning rate.

    Source: the temporal-difference loss of Mnih et al., Human-level control (2015), before clipping.
    """

    matched_curvature: bool = False

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of outputs [..., 1] against target [...]; no gradient reaches the target."""
        loss = squared_error(self.error(outputs, target))
        return 0.5 * loss if self.matched_curvature else loss


@frozen
class Huber(ScalarHead):
    """The Huber loss of a scalar value head: ½e² within δ, δ(|e| − ½δ) beyond; ℓ″(0) = 1.

    Raises ValueError unless 0 < δ. Source: Huber (1964); as DQN's "error clipping": Mnih et al. (2015).
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        in_range("delta", self.delta, 0, above=True)

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Elementwise loss [...] of outputs [..., 1] against target [...]; no gradient reaches the target."""
        return huber(self.error(outputs, target), self.delta)

    def linear_zone(self, error: Tensor) -> Tensor:
        """Where an error [...] lies beyond δ, so that its gradient is clipped: bool [...]."""
        return error.abs() > self.delta
