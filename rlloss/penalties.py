"""The formulas of regularisers Ω: penalties, to be minimised, elementwise where they can be.

A bonus, such as entropy, has its sign turned. Nothing is detached but actions and references.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, in_range, same_shape
from rlloss.numbers import like


def entropy_bonus(logits: Tensor) -> Tensor:
    """The negative entropy of a categorical policy.

        Ω = −H(π) = Σₐ π(a)·log π(a),  π = softmax(logits);   ∂Ω/∂logitₐ = π(a)·(log π(a) + H(π))

    Args:
        logits: [..., actions].

    Returns:
        Ω [...], between −log(actions) and 0, in nats.

    For: keeping a policy from becoming deterministic too early.
    Source: Williams and Peng, Function optimization using connectionist reinforcement learning algorithms (1991).
    """
    floating(logits=logits)
    log_policy = logits.log_softmax(-1)
    policy = log_policy.exp()
    return (policy * log_policy.masked_fill(policy == 0, 0)).sum(-1)  # An action ruled out by −∞ counts nothing.


def kl_k1(log_probability: Tensor, reference_log_probability: Tensor) -> Tensor:
    """The plain estimator of the divergence of a policy from a reference, for actions that the policy took.

        k₁ = log π(a) − log ρ(a),  E_π[k₁] = KL(π‖ρ)

    Unbiased, of any sign. To read, not to minimise: its gradient is zero on average.

    Args:
        log_probability: log π(a|s), a ~ π, any shape, in nats.
        reference_log_probability: log ρ(a|s), same shape, detached: the reference stays where it is.

    Returns:
        k₁, same shape, in nats.

    Raises:
        ValueError: shapes differ.

    For: a penalty inside the reward.
    Source: Schulman, Approximating KL divergence (2020).
    """
    floats_of_one_shape(log_probability=log_probability, reference_log_probability=reference_log_probability)
    return log_probability - reference_log_probability.detach()


def kl_k2(log_probability: Tensor, reference_log_probability: Tensor) -> Tensor:
    """The squared estimator of the divergence of a policy from a reference, for actions that the policy took.

        k₂ = ½(log π(a) − log ρ(a))²,  E_π[∇k₂] = ∇KL(π‖ρ)

    Never negative. Its value is biased, its gradient is not.

    Args:
        log_probability: log π(a|s), a ~ π, any shape, in nats.
        reference_log_probability: log ρ(a|s), same shape, detached: the reference stays where it is.

    Returns:
        k₂, same shape.

    Raises:
        ValueError: shapes differ.

    For: minimising the divergence from samples.
    Source: Schulman, Approximating KL divergence (2020).
    """
    return 0.5 * kl_k1(log_probability, reference_log_probability) ** 2


def kl_k3(log_probability: Tensor, reference_log_probability: Tensor) -> Tensor:
    """The never negative, unbiased estimator of the divergence of a policy from a reference, for actions that the policy took.

        k₃ = ρ(a)/π(a) − 1 − log(ρ(a)/π(a)),  E_π[k₃] = KL(π‖ρ),  E_π[∇k₃] = ∇KL(ρ‖π)

    Steadier than k₁ while the policies are near, not where they are far; infinite where ρ/π overflows. Its gradient is
    that of the reversed divergence.

    Args:
        log_probability: log π(a|s), a ~ π, any shape, in nats.
        reference_log_probability: log ρ(a|s), same shape, detached: the reference stays where it is.

    Returns:
        k₃, same shape, in nats.

    Raises:
        ValueError: shapes differ.

    For: reading the divergence from few samples, as PPO's early stopping does.
    Source: Schulman, Approximating KL divergence (2020).
    """
    log_ratio = -kl_k1(log_probability, reference_log_probability)
    return torch.expm1(log_ratio) - log_ratio


def l1(parameters: Mapping[str, Tensor]) -> Tensor:
    """The sum of the absolute weights.

        Ω = Σ|w|,  ∂Ω/∂w = sign(w), 0 at 0

    Args:
        parameters: by name; those whose name ends with "bias" are left out.

    Returns:
        Ω, 0-dim.

    Raises:
        ValueError: there are no weights.

    For: sparse weights.
    Source: Tibshirani, Regression shrinkage and selection via the lasso (1996).
    """
    return torch.stack([weight.abs().sum() for weight in _weights(parameters)]).sum()


def l2(parameters: Mapping[str, Tensor]) -> Tensor:
    """Half the sum of the squared weights.

        Ω = ½Σw²,  ∂Ω/∂w = w

    As a term of the loss it passes through the optimiser's scaling; only for plain SGD is it weight decay.

    Args:
        parameters: by name; those whose name ends with "bias" are left out.

    Returns:
        Ω, 0-dim.

    Raises:
        ValueError: there are no weights.

    For: small weights.
    Source: Hoerl and Kennard, Ridge regression (1970); Krogh and Hertz, A simple weight decay can improve generalization (1991).
    """
    return 0.5 * torch.stack([weight.square().sum() for weight in _weights(parameters)]).sum()


def elastic_net(parameters: Mapping[str, Tensor], l1_share: float | Tensor = 0.5) -> Tensor:
    """A mixture of the absolute and the squared weights.

        Ω = κ·Σ|w| + (1 − κ)·½Σw²

    Args:
        parameters: by name; those whose name ends with "bias" are left out.
        l1_share: 0 ≤ κ ≤ 1; 1 is `l1`, 0 is `l2`.

    Returns:
        Ω, 0-dim.

    Raises:
        ValueError: there are no weights.

    For: sparse weights where several inputs say the same.
    Source: Zou and Hastie, Regularization and variable selection via the elastic net (2005).
    """
    in_range("l1_share", l1_share, 0, 1)
    absolute, square = l1(parameters), l2(parameters)
    share = like(square, l1_share)
    return share * absolute + (1 - share) * square


def cql(action_values: Tensor, action: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """The conservative penalty: how far a soft maximum of the values exceeds the value of the action in the data.

        Ω = τ·log Σₐ exp(Q(s, a)/τ) − Q(s, a_data) = −τ·log softmax(Q/τ)(a_data) ≥ 0

    Args:
        action_values: Q(s, ·) [..., actions].
        action: of the data [...], integers.
        temperature: τ > 0, in the units of the values; towards 0 the maximum is a hard one.

    Returns:
        Ω [...], in the units of the values.

    Raises:
        ValueError: shapes differ.

    For: offline data, where a maximum over actions nobody took is overestimated.
    Source: Kumar et al., Conservative Q-learning, arXiv 2006.04779.
    """
    floating(action_values=action_values)
    in_range("temperature", temperature, 0, above=True)
    same_shape(action=action, states=action_values[..., 0])
    temperature = like(action_values, temperature)
    # As a log-softmax nothing cancels where the values are large.
    return -temperature * (action_values / temperature).log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)


def dr3(features: Tensor, next_features: Tensor) -> Tensor:
    """The co-adaptation of the features of a state-action pair and its successor.

        Ω = φ(s, a)·φ(s′, a′)

    Both factors are differentiated, and both come from the online network. It is bounded below only where
    features aren't negative, as behind a ReLU; there it equals the absolute value that some programs take.

    Args:
        features: φ(s, a) [..., width], the input of the last layer.
        next_features: φ(s′, a′), same shape.

    Returns:
        Ω [...].

    Raises:
        ValueError: shapes differ.

    For: bootstrapping for long on the same data, where features of neighbours grow alike.
    Source: Kumar et al., DR3, arXiv 2112.04716.
    """
    floats_of_one_shape(features=features, next_features=next_features)
    return (features * next_features).sum(-1)


def value_magnitude(action_values: Tensor) -> Tensor:
    """The squared action values.

        Ω = Q(s, a)²

    Args:
        action_values: any shape.

    Returns:
        Ω, same shape, in squared units.

    For: values that run away; it pulls them to 0, so returns should lie around 0.
    Source: Tikhonov, Solution of incorrectly formulated problems and the regularization method (1963).
    """
    floating(action_values=action_values)
    return action_values.square()


def feature_norm(features: Tensor) -> Tensor:
    """The squared length of the features.

        Ω = ‖φ(s, a)‖²

    Args:
        features: [..., width], the input of the last layer.

    Returns:
        Ω [...].

    For: features that grow without end; `dr3` without the successor.
    Source: Merity, McCann and Socher, Revisiting activation regularization in language RNNs, arXiv 1708.01009.
    """
    floating(features=features)
    return features.square().sum(-1)


def _weights(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The parameters that aren't biases."""
    floating(**parameters)
    weights = [value for name, value in parameters.items() if not name.endswith("bias")]
    if not weights:
        raise ValueError("parameters has no weights: every name ends with 'bias'")
    return weights
