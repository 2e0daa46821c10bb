"""The formulas of policy losses: functions of the log-probabilities of the actions that were taken.

log π(a|s), log μ(a|s) and the advantage A in, the elementwise loss out, same shape. μ is the behaviour, the
policy that took the actions; r = π/μ is the ratio. Gradients reach log π only: μ is a constant of the data
and A an estimate that the critic's loss fits, so both are detached everywhere. Ratios are computed from
logarithms: no NaN where they overflow, as long as both logarithms are finite.
"""

import math

import torch
from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, in_range
from rlloss.numbers import like


def policy_gradient(log_probability: Tensor, advantage: Tensor) -> Tensor:
    """The loss whose gradient is the policy gradient.

        ℓ = −log π(a|s)·A,  ∂ℓ/∂log π = −A

    Args:
        log_probability: log π(a|s) of the actions taken, any shape, in nats.
        advantage: A, same shape, detached: its gradient would teach the critic to flatter the policy.

    Returns:
        The loss, same shape, in the units of the advantage.

    Raises:
        ValueError: shapes differ.

    For: data from the current policy, used once (REINFORCE, A2C).
    Source: Williams, Simple statistical gradient-following algorithms (1992); Mnih et al., arXiv 1602.01783.
    """
    floats_of_one_shape(log_probability=log_probability, advantage=advantage)
    return -log_probability * advantage.detach()


def v_trace_policy_gradient(
    log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor, clip_ratio: float | Tensor = 1.0
) -> Tensor:
    """The policy gradient with truncated importance weights.

        ℓ = −min(ρ̄, ρ)·log π(a|s)·A,  ρ = π/μ,  ∂ℓ/∂log π = −min(ρ̄, ρ)·A

    Args:
        log_probability: log π(a|s), any shape, in nats.
        behaviour_log_probability: log μ(a|s), same shape, detached.
        advantage: A without any ratio in it, same shape, detached.
        clip_ratio: ρ̄ > 0, the largest weight; infinity truncates nothing.

    Returns:
        The loss, same shape. The weight min(ρ̄, ρ) is detached: it corrects for who acted and isn't optimised.

    Raises:
        ValueError: shapes differ.

    For: data from a policy a few updates old, as with asynchronous actors.
    Source: Espeholt et al., IMPALA, arXiv 1802.01561.
    """
    in_range("clip_ratio", clip_ratio, 0, math.inf, above=True)
    log_ratio = _log_ratio(log_probability, behaviour_log_probability, advantage).detach()
    # Finite also without a clip: no weight makes a NaN of an advantage of 0.
    weight = torch.minimum(log_ratio, like(log_ratio, clip_ratio).log()).exp().clamp(max=torch.finfo(log_ratio.dtype).max)
    return -weight * log_probability * advantage.detach()


def ppo_clip(
    log_probability: Tensor,
    behaviour_log_probability: Tensor,
    advantage: Tensor,
    low: float | Tensor = 0.2,
    high: float | Tensor = 0.2,
    dual: float | Tensor = math.inf,
) -> Tensor:
    """PPO's clipped surrogate objective, with its sign turned.

        ℓ = −min(r·A, clip(r, 1−low, 1+high)·A),  r = π/μ;   for A < 0 also ℓ ≤ −c·A
          = −A·min(r, 1+high)          if A ≥ 0
            −A·clip(r, 1−low, c)       if A < 0
        ∂ℓ/∂log π = −r·A within the bounds, 0 beyond

    The second form is what is computed, with the clip on log r. Inside the bounds, and on them, the
    gradient is the full −A·∇r (that of the policy gradient at r = 1); beyond them it is 0. Only for A < 0 and c = ∞
    is r unbounded: where it overflows, loss and gradient are infinite.

    Args:
        log_probability: log π(a|s), any shape, in nats.
        behaviour_log_probability: log μ(a|s), same shape, detached.
        advantage: A, same shape, detached.
        low: 0 ≤ low ≤ 1, how far below 1 the ratio is rewarded.
        high: high ≥ 0, how far above 1 the ratio is rewarded.
        dual: c > 1, bounds what one bad action with a large ratio can do; infinity is plain PPO.

    Returns:
        The loss, same shape, in the units of the advantage. The ratio is not detached.

    Raises:
        ValueError: shapes differ.

    For: several epochs over the same on-policy data.
    Source: Schulman et al., arXiv 1707.06347; dual clip: Ye et al., arXiv 1912.09729.
    """
    in_range("low", low, 0, 1)
    in_range("high", high, 0)
    in_range("dual", dual, 1, math.inf, above=True)
    log_ratio = _log_ratio(log_probability, behaviour_log_probability, advantage)
    low, high, dual = (like(log_ratio, number) for number in (low, high, dual))
    good = advantage >= 0
    lower = torch.where(good, like(log_ratio, -math.inf), torch.log1p(-low))
    upper = torch.where(good, torch.log1p(high), dual.log())
    return -advantage.detach() * log_ratio.clamp(lower, upper).exp()


def ppo_kl(log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor, coefficient: float | Tensor = 1.0) -> Tensor:
    """PPO's objective with a penalty on the divergence from the behaviour, with its sign turned.

        ℓ = −r·A + β·(r − 1 − log r),  r = π/μ;   E_μ[r − 1 − log r] = KL(μ‖π),  ∂ℓ/∂log π = −r·A + β·(r − 1)

    The penalty is the estimator k3 of the divergence, from the same samples. Loss and gradient are
    infinite where (β − A)·r overflows.

    Args:
        log_probability: log π(a|s), any shape, in nats.
        behaviour_log_probability: log μ(a|s), same shape, detached.
        advantage: A, same shape, detached.
        coefficient: β ≥ 0, in units of the advantage per nat; see `adapt_coefficient`.

    Returns:
        The loss, same shape, in the units of the advantage. The ratio is not detached.

    Raises:
        ValueError: shapes differ.

    For: several epochs over the same data with a soft limit on the change of the policy.
    Source: Schulman et al., arXiv 1707.06347; the estimator: Schulman, Approximating KL divergence (2020).
    """
    in_range("coefficient", coefficient, 0)
    log_ratio = _log_ratio(log_probability, behaviour_log_probability, advantage)
    advantage, coefficient = advantage.detach(), like(log_ratio, coefficient)
    # One product with r, not two: the difference of two that overflow is NaN.
    slope = coefficient - advantage
    return slope * _excess(log_ratio, slope) - coefficient * log_ratio - advantage


def adapt_coefficient(coefficient: float | Tensor, kl: Tensor, target: float | Tensor) -> Tensor:
    """The next coefficient of PPO's penalty, so that the divergence stays near a target.

        β ← 2β if KL > 1.5·target,  β/2 if KL < target/1.5,  else β

    Args:
        coefficient: β, a number or a 0-dim tensor.
        kl: the divergence of the last update, 0-dim, in nats.
        target: the divergence wanted per update, > 0, in nats.

    Returns:
        The next β, 0-dim, without gradient.

    For: choosing β of `ppo_kl` while training.
    Source: Schulman et al., arXiv 1707.06347.
    """
    floating(kl=kl)
    in_range("coefficient", coefficient, 0)
    in_range("target", target, 0, above=True)
    coefficient, target = like(kl, coefficient), like(kl, target)
    smaller = torch.where(kl < target / 1.5, coefficient / 2, coefficient)
    return torch.where(kl > 1.5 * target, coefficient * 2, smaller).detach()


def spo(log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor, epsilon: float | Tensor = 0.2) -> Tensor:
    """The objective of simple policy optimization, with its sign turned.

        ℓ = −[r·A − |A|/(2ε)·(r − 1)²],  r = π/μ;   least at r = 1 + sign(A)·ε
        ∂ℓ/∂log π = −r·(A − |A|/ε·(r − 1))

    Unlike PPO-clip its gradient pulls a ratio that went too far back. Loss and gradient are infinite where
    r² overflows.

    Args:
        log_probability: log π(a|s), any shape, in nats.
        behaviour_log_probability: log μ(a|s), same shape, detached.
        advantage: A, same shape, detached.
        epsilon: ε > 0, the distance from 1 that the ratio is drawn to.

    Returns:
        The loss, same shape, in the units of the advantage. The ratio is not detached.

    Raises:
        ValueError: shapes differ.

    For: many epochs over the same data, where PPO's ratios drift out of their bounds.
    Source: Xie et al., Simple policy optimization, arXiv 2401.16025.
    """
    in_range("epsilon", epsilon, 0, above=True)
    log_ratio = _log_ratio(log_probability, behaviour_log_probability, advantage)
    advantage, epsilon = advantage.detach(), like(log_ratio, epsilon)
    excess = _excess(log_ratio, advantage)
    return -advantage - excess * (advantage - advantage.abs() * excess / (2 * epsilon))


def advantage_weighted_regression(
    log_probability: Tensor, advantage: Tensor, temperature: float | Tensor = 1.0, max_weight: float | Tensor = 20.0
) -> Tensor:
    """The log-likelihood of the actions taken, weighted by how good they were.

        ℓ = −min(exp(A/β), ω)·log π(a|s),  ∂ℓ/∂log π = −min(exp(A/β), ω)

    Args:
        log_probability: log π(a|s), any shape, in nats.
        advantage: A, same shape, detached with the weight it makes: only log π is fitted.
        temperature: β > 0, in the units of the advantage; large β is behaviour cloning.
        max_weight: ω > 0, the largest weight.

    Returns:
        The loss, same shape, in nats.

    Raises:
        ValueError: shapes differ.

    For: offline data, or replayed data whose behaviour is unknown.
    Source: Peng et al., Advantage-weighted regression, arXiv 1910.00177.
    """
    floats_of_one_shape(log_probability=log_probability, advantage=advantage)
    in_range("temperature", temperature, 0, above=True)
    in_range("max_weight", max_weight, 0, above=True)
    exponent = advantage.detach() / like(advantage, temperature)
    return -torch.minimum(exponent, like(advantage, max_weight).log()).exp() * log_probability


def behaviour_cloning(log_probability: Tensor) -> Tensor:
    """The negative log-likelihood of the actions taken.

        ℓ = −log π(a|s),  ∂ℓ/∂log π = −1

    Args:
        log_probability: log π(a|s), any shape, in nats.

    Returns:
        The loss, same shape, in nats.

    For: imitating a demonstrator; the baseline of every offline agent.
    Source: Pomerleau, ALVINN: an autonomous land vehicle in a neural network (1988).
    """
    floating(log_probability=log_probability)
    return -log_probability


def _log_ratio(log_probability: Tensor, behaviour_log_probability: Tensor, advantage: Tensor) -> Tensor:
    """log r = log π − log μ, once all three are checked."""
    floats_of_one_shape(log_probability=log_probability, behaviour_log_probability=behaviour_log_probability, advantage=advantage)
    return log_probability - behaviour_log_probability.detach()


def _excess(log_ratio: Tensor, factor: Tensor) -> Tensor:
    """r − 1, or 0 without gradient where the factor that it meets is 0: a ratio that overflows would make 0·∞ of it."""
    return torch.expm1(torch.where(factor == 0, torch.zeros_like(log_ratio), log_ratio))
