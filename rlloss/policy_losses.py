"""Policy losses: what a policy minimises, behind one interface.

Any of them fits A2C, PPO and offline agents: log π(a|s), log μ(a|s) and the advantage A in, the elementwise
loss out, same shape; only log π has a gradient. The formulas are the functions of `policy_gradients.py`.
A loss that keeps the ratio within a range has two more members, for agents that narrow the range while they train and tell how often it is left:

    narrowed  a share, 0-dim → the loss with its range multiplied by it
    beyond    log π − log μ [...] → whether the ratio lies beyond the range, bool [...]
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlloss import policy_gradients
from rlloss.checks import in_range
from rlloss.frozen import frozen


@runtime_checkable
class PolicyLoss(Protocol):
    """The interface of every policy loss."""

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...] of log π [...], log μ [...] and A [...]; only log π has a gradient."""


@frozen
class PolicyGradient:
    """The policy gradient; it ignores the behaviour.

        ℓ = −log π(a|s)·A

    For: A2C; data from the current policy, used once.
    Source: Williams (1992); Mnih et al., arXiv 1602.01783.
    """

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.policy_gradient(log_probability, advantage)


@frozen
class VTracePolicyGradient:
    """The policy gradient with importance weights truncated at ρ̄.

        ℓ = −min(ρ̄, ρ)·log π(a|s)·A,  ρ = π/μ, detached

    For: data a few updates old.
    Source: Espeholt et al., IMPALA, arXiv 1802.01561.
    """

    clip_ratio: float = 1.0

    def __post_init__(self) -> None:
        in_range("clip_ratio", self.clip_ratio, 0, math.inf, above=True)

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.v_trace_policy_gradient(log_probability, behaviour_log_probability, advantage, self.clip_ratio)


@frozen
class PPOClip:
    """PPO's clipped surrogate objective, with separate bounds and an optional dual clip.

        ℓ = −min(r·A, clip(r, 1−low, 1+high)·A),  r = π/μ;   for A < 0 also ℓ ≤ −dual·A

    For: several epochs over the same on-policy data.
    Source: Schulman et al., arXiv 1707.06347; dual clip: Ye et al., arXiv 1912.09729.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float = math.inf

    def __post_init__(self) -> None:
        in_range("low", self.low, 0, 1)
        in_range("high", self.high, 0)
        in_range("dual", self.dual, 1, math.inf, above=True)

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.ppo_clip(log_probability, behaviour_log_probability, advantage, self.low, self.high, self.dual)

    def narrowed(self, share: Tensor) -> "PPOClip":
        """The loss with `low` and `high` multiplied by a share, 0-dim."""
        return dataclasses.replace(self, low=share * self.low, high=share * self.high)

    def beyond(self, log_ratio: Tensor) -> Tensor:
        """Whether the ratio lies below 1 − low or above 1 + high, bool [...]."""
        change = log_ratio.expm1()
        return (change < -self.low) | (change > self.high)


@frozen
class PPOKL:
    """PPO's objective with a penalty on the divergence from the behaviour.

        ℓ = −r·A + β·(r − 1 − log r),  r = π/μ

    For: a soft limit on the change of the policy; see `adapt_coefficient` for β.
    Source: Schulman et al., arXiv 1707.06347.
    """

    coefficient: float = 1.0

    def __post_init__(self) -> None:
        in_range("coefficient", self.coefficient, 0)

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.ppo_kl(log_probability, behaviour_log_probability, advantage, self.coefficient)


@frozen
class SPO:
    """Simple policy optimization: a parabola in the ratio, least at 1 + sign(A)·ε.

        ℓ = −[r·A − |A|/(2ε)·(r − 1)²],  r = π/μ

    For: many epochs over the same data.
    Source: Xie et al., Simple policy optimization, arXiv 2401.16025.
    """

    epsilon: float = 0.2

    def __post_init__(self) -> None:
        in_range("epsilon", self.epsilon, 0, above=True)

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.spo(log_probability, behaviour_log_probability, advantage, self.epsilon)

    def narrowed(self, share: Tensor) -> "SPO":
        """The loss with ε multiplied by a share, 0-dim; ε stays above 0, where the parabola would be infinitely steep."""
        return dataclasses.replace(self, epsilon=(share * self.epsilon).clamp(min=1e-6))

    def beyond(self, log_ratio: Tensor) -> Tensor:
        """Whether the ratio lies beyond the least of either parabola, bool [...]."""
        return log_ratio.expm1().abs() > self.epsilon


@frozen
class AWR:
    """Advantage-weighted regression; it ignores the behaviour.

        ℓ = −min(exp(A/β), ω)·log π(a|s)

    For: offline data, or replayed data whose behaviour is unknown.
    Source: Peng et al., Advantage-weighted regression, arXiv 1910.00177.
    """

    temperature: float = 1.0
    max_weight: float = 20.0

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0, above=True)
        in_range("max_weight", self.max_weight, 0, above=True)

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.advantage_weighted_regression(log_probability, advantage, self.temperature, self.max_weight)


@frozen
class BehaviourCloning:
    """The negative log-likelihood of the actions taken; it ignores the behaviour and the advantage.

        ℓ = −log π(a|s)

    For: imitating a demonstrator; the baseline of every offline agent.
    Source: Pomerleau, ALVINN (1988).
    """

    def __call__(self, log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
        """The elementwise loss [...]; arguments as in `PolicyLoss`."""
        return policy_gradients.behaviour_cloning(log_probability)
