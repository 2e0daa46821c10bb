"""Pointwise regression losses: functions of the error e, elementwise, any shape."""

import torch
from torch import Tensor


def squared_error(error: Tensor) -> Tensor:
    """The squared error of every element.

        ℓ(e) = e²,  ℓ′(e) = 2e,  ℓ″(0) = 2

    Without ½, so its gradient is twice Huber's near zero (see `MSE.matched_curvature`).

    Args:
        error: prediction − target, any shape, in the units of the target.

    Returns:
        The loss, same shape, in squared units.

    Source: Gauss, Theoria motus (1809); Legendre, Nouvelles méthodes (1805).
    """
    return error * error


def huber(error: Tensor, delta: float | Tensor) -> Tensor:
    """The Huber loss of every element: quadratic up to δ, linear beyond.

        ℓ(e) = ½e²            if |e| ≤ δ
               δ(|e| − ½δ)    otherwise;   ℓ′(e) = clip(e, −δ, δ),  ℓ″(0) = 1

    Args:
        error: prediction − target, any shape, in the units of the target.
        delta: δ > 0, where the quadratic zone ends, in the units of the target; a number or a 0-dim tensor.

    Returns:
        The loss, same shape, in squared units.

    Source: Huber, Robust estimation of a location parameter (1964).
    """
    magnitude = error.abs()
    # min(|e|, δ) keeps the unused branch finite, so no gradient overflows where |e| is huge.
    quadratic = torch.minimum(magnitude, torch.as_tensor(delta, dtype=error.dtype, device=error.device))
    return quadratic * (magnitude - 0.5 * quadratic)
