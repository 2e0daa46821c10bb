"""Regularisers: the terms λΩ that are added to a loss, one number per batch.

Each has a weight λ ≥ 0, names what it reads in `needs`, takes it from what an agent `Observed`, and returns λ
times the mean of Ω over the batch. An agent asks `missing` before training whether a regulariser is meaningful
for it. The formulas are the functions of `penalties.py`.
"""

import abc
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from rlloss import penalties
from rlloss.checks import in_range
from rlloss.classification import kl_divergence
from rlloss.empirical import empirical_loss
from rlloss.frozen import frozen
from rlloss.numbers import like


class Observed(NamedTuple):
    """What regularisers may read of one update; None is what an agent doesn't have."""

    parameters: Mapping[str, Tensor]
    action_values: Tensor | None = None  # Q(s, ·) [batch, actions]
    action: Tensor | None = None  # the actions taken [batch]
    features: Tensor | None = None  # φ(s, a) [batch, width], what the head reads
    next_features: Tensor | None = None  # φ(s′, a′) [batch, width]
    logits: Tensor | None = None  # of the policy [batch, actions]
    entropy: Tensor | None = None  # of the policy [batch], in nats
    reference_logits: Tensor | None = None  # of the policy it should stay near [batch, actions]
    mask: Tensor | None = None  # which of the batch count, bool [batch]; None for all


@runtime_checkable
class Regularizer(Protocol):
    """The interface of every regulariser."""

    needs: ClassVar[tuple[str, ...]]  # names of the fields of `Observed` that it reads

    def __call__(self, observed: Observed) -> Tensor:
        """λΩ, 0-dim."""


def missing(regularizer: Regularizer, available: Collection[str]) -> tuple[str, ...]:
    """What a regulariser needs and an agent doesn't have.

        needs − available

    Args:
        regularizer: any.
        available: names of fields of `Observed`.

    Returns:
        The names that are missing, empty if the regulariser can be used.

    For: refusing a meaningless combination before training.
    Source: the interface of this file.
    """
    return tuple(name for name in regularizer.needs if name not in available)


@frozen
class Penalty(abc.ABC):
    """What all regularisers here share: the weight, the look-up of what they need, the mean.

        λ·mean Ω

    Raises ValueError unless 0 ≤ λ; a subclass gives `needs` and `penalty`.

    For: deriving a regulariser of your own.
    Source: Tikhonov (1963); Vapnik (1992).
    """

    weight: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        in_range("weight", self.weight, 0)

    def __call__(self, observed: Observed) -> Tensor:
        """λ·mean Ω of what was observed, 0-dim; ValueError if a need is missing."""
        absent = missing(self, [name for name, value in observed._asdict().items() if value is not None])
        if absent:
            raise ValueError(f"{type(self).__name__} needs {', '.join(absent)}, which this agent doesn't observe")
        penalty, mask = self.penalty(*(getattr(observed, name) for name in self.needs)), observed.mask
        if mask is not None and penalty.ndim:
            mask = mask.reshape(-1, *[1] * (penalty.ndim - 1)).expand(penalty.shape)
        mean = empirical_loss(penalty, mask=mask if penalty.ndim else None)
        return like(mean, self.weight) * mean

    @abc.abstractmethod
    def penalty(self, *needed: Tensor) -> Tensor:
        """Ω, any shape, of the fields in `needs`, in their order."""


@frozen
class EntropyBonus(Penalty):
    """The negative entropy of the policy.

        λΩ = −λ·mean H(π)

    For: exploration.
    Source: Williams and Peng (1991); Mnih et al., arXiv 1602.01783.
    """

    weight: float = 0.01
    needs = ("entropy",)

    def penalty(self, entropy: Tensor) -> Tensor:
        """−H(π) [batch]."""
        return -entropy


@frozen
class KLDivergence(Penalty):
    """The exact divergence of the policy from a reference.

        λΩ = λ·mean KL(π‖ρ)

    For: staying near an older, a pretrained or a demonstrated policy.
    Source: Kullback and Leibler, On information and sufficiency (1951).
    """

    weight: float = 0.1
    needs = ("logits", "reference_logits")

    def penalty(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        """KL(π‖ρ) [batch]."""
        return kl_divergence(logits, reference_logits.detach())


@frozen
class L1(Penalty):
    """The absolute weights, biases left out.

        λΩ = λ·Σ|w|

    For: sparse weights.
    Source: Tibshirani, Regression shrinkage and selection via the lasso (1996).
    """

    weight: float = 1e-5
    needs = ("parameters",)

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Σ|w|, 0-dim."""
        return penalties.l1(parameters)


@frozen
class L2(Penalty):
    """Half the squared weights, biases left out.

        λΩ = λ·½Σw²

    For: small weights.
    Source: Hoerl and Kennard, Ridge regression (1970); Krogh and Hertz (1991).
    """

    weight: float = 1e-4
    needs = ("parameters",)

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """½Σw², 0-dim."""
        return penalties.l2(parameters)


@frozen
class ElasticNet(Penalty):
    """A mixture of the absolute and the squared weights, biases left out.

        λΩ = λ·(κ·Σ|w| + (1 − κ)·½Σw²)

    For: sparse weights where several inputs say the same.
    Source: Zou and Hastie, Regularization and variable selection via the elastic net (2005).
    """

    weight: float = 1e-5
    l1_share: float = 0.5
    needs = ("parameters",)

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("l1_share", self.l1_share, 0, 1)

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """κ·Σ|w| + (1 − κ)·½Σw², 0-dim."""
        return penalties.elastic_net(parameters, self.l1_share)


@frozen
class CQL(Penalty):
    """The conservative penalty on values of actions that aren't in the data.

        λΩ = λ·mean(τ·log Σₐ exp(Q(s, a)/τ) − Q(s, a_data))

    For: offline data.
    Source: Kumar et al., Conservative Q-learning, arXiv 2006.04779.
    """

    weight: float = 1.0
    temperature: float = 1.0
    needs = ("action_values", "action")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("temperature", self.temperature, 0, above=True)

    def penalty(self, action_values: Tensor, action: Tensor) -> Tensor:
        """The soft maximum minus the value of the action in the data [batch]."""
        return penalties.cql(action_values, action, self.temperature)


@frozen
class DR3(Penalty):
    """The co-adaptation of successive features.

        λΩ = λ·mean φ(s, a)·φ(s′, a′)

    For: bootstrapping for long on the same data; features that aren't negative, as behind a ReLU.
    Source: Kumar et al., DR3, arXiv 2112.04716.
    """

    weight: float = 0.01
    needs = ("features", "next_features")

    def penalty(self, features: Tensor, next_features: Tensor) -> Tensor:
        """φ(s, a)·φ(s′, a′) [batch]."""
        return penalties.dr3(features, next_features)


@frozen
class ValueMagnitude(Penalty):
    """The squared values of all actions.

        λΩ = λ·mean Q(s, a)²

    For: values that run away.
    Source: Tikhonov, Solution of incorrectly formulated problems and the regularization method (1963).
    """

    weight: float = 1e-3
    needs = ("action_values",)

    def penalty(self, action_values: Tensor) -> Tensor:
        """Q(s, a)² [batch, actions]."""
        return penalties.value_magnitude(action_values)


@frozen
class FeatureNorm(Penalty):
    """The squared length of the features.

        λΩ = λ·mean ‖φ(s, a)‖²

    For: features that grow without end.
    Source: Merity, McCann and Socher, arXiv 1708.01009.
    """

    weight: float = 1e-3
    needs = ("features",)

    def penalty(self, features: Tensor) -> Tensor:
        """‖φ(s, a)‖² [batch]."""
        return penalties.feature_norm(features)
