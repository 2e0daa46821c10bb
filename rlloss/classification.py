"""Classification losses: cross entropies, label smoothing, focal losses and the divergence of two categoricals, in nats.

Classes lie in the last dimension, [..., classes] → [...]; binary losses are elementwise, any shape. Logits are
x with p = σ(x), or softmax(x) over the last dimension; a logit of −∞ there is a class that is ruled out. No
gradient reaches a label. 0·log 0 is 0: a prediction that is certain and right costs 0, one that is certain
and wrong +∞. Hyperparameters are numbers, or 0-dim tensors under `torch.func.vmap`.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlloss.checks import floating, floats_of_one_shape, in_range, same_shape
from rlloss.frozen import frozen
from rlloss.numbers import like, times, wide

# A log-probability below −CERTAIN is that of an impossible class: its exponential is 0 in any precision.
CERTAIN = 1e4


@runtime_checkable
class ClassificationLoss(Protocol):
    """The interface of every classification loss."""

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits against labels of the same shape: of several classes [..., classes] → [...], of two elementwise."""


def binary_cross_entropy(probability: Tensor, label: Tensor) -> Tensor:
    """The binary cross entropy of every element, from probabilities.

        ℓ = −y·log p − (1 − y)·log(1 − p),  ∂ℓ/∂p = (p − y)/(p·(1 − p))

    Args:
        probability: p in [0, 1], any shape.
        label: y in [0, 1], same shape, detached; a number in between is a soft label.

    Returns:
        The loss, same shape.

    Raises:
        ValueError: shapes differ.

    For: probabilities without logits; where there are logits they keep more digits.
    Source: Good, Rational decisions (1952).
    """
    floats_of_one_shape(probability=probability, label=label)
    label = label.detach()
    # What 0 multiplies is replaced before the logarithm, whose gradient would be 0/0.
    positive = label * probability.masked_fill(label == 0, 1).log()
    negative = (1 - label) * torch.log1p(-probability.masked_fill(label == 1, 0))
    return -(positive + negative)


def binary_cross_entropy_with_logits(logits: Tensor, label: Tensor) -> Tensor:
    """The binary cross entropy of every element, from logits.

        ℓ = −y·log σ(x) − (1 − y)·log σ(−x),  ∂ℓ/∂x = σ(x) − y

    Args:
        logits: x, any shape.
        label: y in [0, 1], same shape, detached.

    Returns:
        The loss, same shape.

    Raises:
        ValueError: shapes differ.

    For: yes or no: whether an episode ends, or which of two sources an action comes from (GAIL).
    Source: Cox, The regression analysis of binary sequences (1958); Ho and Ermon, arXiv 1606.03476.
    """
    floats_of_one_shape(logits=logits, label=label)
    label = label.detach()
    return -(times(label, logsigmoid(logits)) + times(1 - label, logsigmoid(-logits)))


def cross_entropy(probability: Tensor, label_distribution: Tensor) -> Tensor:
    """The cross entropy of categoricals, from probabilities.

        ℓ = −Σᵢ yᵢ·log pᵢ,  ∂ℓ/∂pᵢ = −yᵢ/pᵢ

    Args:
        probability: p [..., classes], whose sum is 1.
        label_distribution: y [..., classes], one-hot or soft, whose sum is 1, detached.

    Returns:
        The loss [...].

    Raises:
        ValueError: shapes differ.

    For: probabilities without logits, such as those of a mixture.
    Source: Good, Rational decisions (1952).
    """
    floats_of_one_shape(probability=probability, label_distribution=label_distribution)
    return _cross(label_distribution.detach(), probability.masked_fill(label_distribution == 0, 1).log())


def cross_entropy_with_logits(logits: Tensor, label_distribution: Tensor) -> Tensor:
    """The cross entropy of categoricals, from logits.

        ℓ = −Σᵢ yᵢ·log softmax(x)ᵢ,  ∂ℓ/∂x = softmax(x) − y

    Args:
        logits: x [..., classes].
        label_distribution: y [..., classes], one-hot or soft, whose sum is 1, detached.

    Returns:
        The loss [...].

    Raises:
        ValueError: shapes differ.

    For: distillation of a teacher's policy, classification with soft labels.
    Source: Bridle, Probabilistic interpretation of feedforward classification network outputs (1990).
    """
    floats_of_one_shape(logits=logits, label_distribution=label_distribution)
    return _cross(label_distribution.detach(), wide(logits).log_softmax(-1)).to(logits.dtype)


def cross_entropy_with_integer_labels(logits: Tensor, label: Tensor) -> Tensor:
    """The cross entropy of categoricals with one right class, by its number.

        ℓ = −log softmax(x)ₖ,  ∂ℓ/∂xᵢ = softmax(x)ᵢ − 1[i = k]

    Args:
        logits: x [..., classes].
        label: k [...], int64, from 0 to classes − 1; no number means "ignore".

    Returns:
        The loss [...].

    Raises:
        ValueError: shapes differ.
        TypeError: logits aren't floating point, or labels aren't int64.
        RuntimeError: a label is out of range, on a CPU. Accelerators stop with an assertion of the device.

    For: imitation of discrete actions, classification.
    Source: Bridle, Probabilistic interpretation of feedforward classification network outputs (1990).
    """
    floating(logits=logits)
    if label.dtype != torch.int64:
        raise TypeError(f"label must be int64, got {label.dtype}; distributions go to cross_entropy_with_logits")
    same_shape(logits_of_one_class=logits[..., 0], label=label)
    return -wide(logits).log_softmax(-1).gather(-1, label[..., None]).squeeze(-1).to(logits.dtype)


def smooth_labels(label_distribution: Tensor, smoothing: float | Tensor) -> Tensor:
    """Labels mixed with the uniform distribution.

        y′ = (1 − ε)·y + ε/classes

    Args:
        label_distribution: y [..., classes], whose sum is 1.
        smoothing: ε in [0, 1), the share of the uniform distribution.

    Returns:
        y′ [..., classes], whose sum is 1, without gradient.

    For: labels that may be wrong; logits stay bounded.
    Source: Szegedy et al., Rethinking the Inception architecture, arXiv 1512.00567.
    """
    floating(label_distribution=label_distribution)
    return _mixed(label_distribution, smoothing, label_distribution.shape[-1])


def binary_focal(logits: Tensor, label: Tensor, alpha: float | Tensor, gamma: float | Tensor) -> Tensor:
    """The focal loss of every element: a binary cross entropy in which easy examples count less.

        ℓ = −α·y·(1 − p)^γ·log p − (1 − α)·(1 − y)·p^γ·log(1 − p),  p = σ(x)
        ∂ℓ/∂x = α·y·(1 − p)^γ·(γ·p·log p + p − 1) + (1 − α)·(1 − y)·p^γ·(p − γ·(1 − p)·log(1 − p))

    α multiplies the loss of label 1 and 1 − α that of label 0. γ = 0 leaves the cross entropy with these
    two weights, half of the plain one at α = ½. A soft label weighs both terms.

    Args:
        logits: x, any shape.
        label: y in [0, 1], same shape, detached.
        alpha: α in [0, 1], the weight of label 1.
        gamma: γ ≥ 0, how much easy examples are discounted.

    Returns:
        The loss, same shape, with finite gradients at any γ and finite logits up to 1e30.

    Raises:
        ValueError: shapes differ.

    For: one of two labels is rare and most examples are easy, such as rewards or ends of episodes.
    Source: Lin et al., Focal loss for dense object detection, arXiv 1708.02002.
    """
    floats_of_one_shape(logits=logits, label=label)
    in_range("alpha", alpha, 0, 1)
    in_range("gamma", gamma, 0)
    x, label = wide(logits), wide(label.detach())
    alpha, gamma = like(x, alpha), like(x, gamma)
    # Powers are taken of logarithms, which are finite where 1 − p rounds to 0, and bounded, since γ multiplies their gradient.
    bounded = x.clamp(-CERTAIN, CERTAIN)
    log_yes, log_no = logsigmoid(bounded), logsigmoid(-bounded)
    # Beyond the bounds the logarithm of what is impossible is linear.
    positive = times(alpha * label * (gamma * log_no).exp(), log_yes - (-x - CERTAIN).relu())
    negative = times((1 - alpha) * (1 - label) * (gamma * log_yes).exp(), log_no - (x - CERTAIN).relu())
    return -(positive + negative).to(logits.dtype)


def focal(logits: Tensor, label_distribution: Tensor, alpha: float | Tensor, gamma: float | Tensor) -> Tensor:
    """The focal loss of categoricals: a cross entropy in which easy examples count less.

        ℓ = −α·Σᵢ yᵢ·(1 − pᵢ)^γ·log pᵢ,  p = softmax(x)
        ∂ℓ/∂x = p·Σᵢ gᵢ − g, gᵢ = α·yᵢ·(1 − pᵢ)^(γ − 1)·(1 − pᵢ − γ·pᵢ·log pᵢ)

    α is one factor for all classes, unlike that of `binary_focal`. γ = 0 leaves α times the cross entropy.

    Args:
        logits: x [..., classes].
        label_distribution: y [..., classes], one-hot or soft, whose sum is 1, detached.
        alpha: α ≥ 0, multiplies the loss.
        gamma: γ ≥ 0, how much easy examples are discounted.

    Returns:
        The loss [...], with finite gradients at any γ and finite logits up to 1e30.

    Raises:
        ValueError: shapes differ.

    For: some classes are rare and most examples are easy.
    Source: Lin et al., Focal loss for dense object detection, arXiv 1708.02002.
    """
    floats_of_one_shape(logits=logits, label_distribution=label_distribution)
    in_range("alpha", alpha, 0)
    in_range("gamma", gamma, 0)
    log_probability = wide(logits).log_softmax(-1)
    alpha, gamma = like(log_probability, alpha), like(log_probability, gamma)
    hardness = (gamma * _log_of_others(log_probability.clamp(min=-CERTAIN))).exp()
    return (alpha * _cross(label_distribution.detach() * hardness, log_probability)).to(logits.dtype)


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of one categorical from another.

        KL(p‖q) = Σᵢ pᵢ·(log pᵢ − log qᵢ),  p = softmax(x), q = softmax(x′)
        ∂ℓ/∂x′ = q − p, ∂ℓ/∂x = p·(log p − log q − KL)

    Both have gradients, since either may be the one that learns: detach the other.

    Args:
        logits: x [..., classes], of p.
        reference_logits: x′ [..., classes], of q.

    Returns:
        The divergence [...], at least 0 up to rounding; +∞ where q rules out what p doesn't.

    Raises:
        ValueError: shapes differ.

    For: keeping a policy near another one (KL(old‖new) in TRPO and PPO), distillation.
    Source: Kullback and Leibler, On information and sufficiency (1951).
    """
    floats_of_one_shape(logits=logits, reference_logits=reference_logits)
    log_probability, log_reference = wide(logits).log_softmax(-1), wide(reference_logits).log_softmax(-1)
    probability = log_probability.exp()
    return _cross(probability, log_reference - log_probability).to(logits.dtype)


@frozen
class BinaryCrossEntropy:
    """Binary cross entropy from logits, against smoothed labels.

        ℓ = −y′·log σ(x) − (1 − y′)·log σ(−x),  y′ = (1 − ε)·y + ε/2,  ε = `smoothing`

    For: yes or no, with labels that may be wrong if ε > 0.
    Source: Cox (1958); Szegedy et al., arXiv 1512.00567.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        in_range("smoothing", self.smoothing, 0, 1, below=True)

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Elementwise loss of logits and labels in [0, 1], both of any one shape."""
        floating(label=label)
        return binary_cross_entropy_with_logits(logits, _mixed(label, self.smoothing, 2))


@frozen
class CrossEntropy:
    """Cross entropy of categoricals from logits, against smoothed labels.

        ℓ = −Σᵢ y′ᵢ·log softmax(x)ᵢ,  y′ = (1 − ε)·y + ε/classes,  ε = `smoothing`

    For: classification, with labels that may be wrong if ε > 0.
    Source: Bridle (1990); Szegedy et al., arXiv 1512.00567.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        in_range("smoothing", self.smoothing, 0, 1, below=True)

    def __call__(self, logits: Tensor, label_distribution: Tensor) -> Tensor:
        """Elementwise loss [...] of logits and label distributions [..., classes]."""
        return cross_entropy_with_logits(logits, smooth_labels(label_distribution, self.smoothing))


@frozen
class BinaryFocal:
    """The focal loss from logits.

        ℓ = −α·y·(1 − p)^γ·log p − (1 − α)·(1 − y)·p^γ·log(1 − p),  p = σ(x)

    For: one of two labels is rare and most examples are easy.
    Source: Lin et al., arXiv 1708.02002.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        in_range("alpha", self.alpha, 0, 1)
        in_range("gamma", self.gamma, 0)

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Elementwise loss of logits and labels in [0, 1], both of any one shape."""
        return binary_focal(logits, label, self.alpha, self.gamma)


@frozen
class Focal:
    """The focal loss of categoricals from logits; here α is one factor for all classes.

        ℓ = −α·Σᵢ yᵢ·(1 − pᵢ)^γ·log pᵢ,  p = softmax(x)

    For: some classes are rare and most examples are easy.
    Source: Lin et al., arXiv 1708.02002.
    """

    alpha: float = 1.0
    gamma: float = 2.0

    def __post_init__(self) -> None:
        in_range("alpha", self.alpha, 0)
        in_range("gamma", self.gamma, 0)

    def __call__(self, logits: Tensor, label_distribution: Tensor) -> Tensor:
        """Elementwise loss [...] of logits and label distributions [..., classes]."""
        return focal(logits, label_distribution, self.alpha, self.gamma)


def _cross(weight: Tensor, log_probability: Tensor) -> Tensor:
    """−Σᵢ wᵢ·log pᵢ over the last dimension; what has no weight is left out, even where log pᵢ is −∞."""
    return -(weight * log_probability.masked_fill(weight == 0, 0)).sum(-1)


def _log_of_others(log_probability: Tensor) -> Tensor:
    """log(1 − pᵢ) of every class of categoricals [..., classes], finite where pᵢ rounds to 1."""
    classes = torch.arange(log_probability.shape[-1], device=log_probability.device)
    top = classes == log_probability.argmax(-1, keepdim=True)
    # Only the likeliest class can be near 1: it takes the sum over the others. The rest is at most ½.
    others = log_probability.masked_fill(top, torch.finfo(log_probability.dtype).min).logsumexp(-1, keepdim=True)
    return torch.where(top, others, torch.log1p(-log_probability.exp().masked_fill(top, 0)))


def _mixed(label: Tensor, smoothing: float | Tensor, classes: int) -> Tensor:
    in_range("smoothing", smoothing, 0, 1, below=True)
    smoothing = like(label, smoothing)
    return ((1 - smoothing) * label + smoothing / classes).detach()
