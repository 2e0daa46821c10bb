"""The one place where elementwise losses become a number to minimise."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlloss.checks import same_shape


def empirical_loss(losses: Tensor, weights: Tensor | None = None, penalties: Mapping[str, Tensor] | None = None) -> Tensor:
    """The regularised empirical loss of a batch.

        J(W) = (1/n) Σᵢ wᵢ ℓᵢ + Σₖ Ωₖ(W)

    It divides by n, the number of elements, and not by the sum of the weights, as importance sampling
    asks: weights with mean 1 keep the scale of J.

    Args:
        losses: ℓ, elementwise, any shape.
        weights: w, same shape, not differentiated (priorities, importance weights); None means 1.
        penalties: the terms λₖΩₖ by name, 0-dim each.

    Returns:
        J, 0-dim.

    Raises:
        ValueError: the shapes of losses and weights differ, or a penalty is not 0-dim.

    Source: Vapnik, Principles of risk minimization for learning theory (1992).
    """
    if weights is not None:
        same_shape(losses=losses, weights=weights)
        losses = weights.detach() * losses
    for name, penalty in (penalties or {}).items():
        if penalty.ndim:
            raise ValueError(f"penalty {name} must be 0-dim, got shape {tuple(penalty.shape)}; reduce it first")
    return losses.mean() + sum((penalties or {}).values(), torch.zeros((), dtype=losses.dtype, device=losses.device))
