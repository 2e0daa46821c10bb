"""The one place where elementwise losses become a number to minimise, and where its terms can be told apart."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rlloss.checks import floating, same_shape
from rlloss.numbers import reduced, times, wide


class Objective(NamedTuple):
    """A number to minimise, and the terms by name that add up to it, all 0-dim."""

    total: Tensor
    terms: dict[str, Tensor]


def empirical_loss(losses: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The empirical loss of a batch.

        J(W) = (1/n) Σᵢ mᵢ wᵢ ℓᵢ,  n = Σᵢ mᵢ

    It divides by n, the number of elements that the mask keeps, and not by the sum of the weights, as
    importance sampling asks: weights with mean 1 keep the scale of J. With nothing kept, J is 0. What the mask
    leaves out, or a weight of 0, may be infinite or NaN.

    Args:
        losses: ℓ, elementwise, any shape.
        weights: w, same shape, not differentiated (priorities, importance weights); None means 1.
        mask: m, same shape, bool: which elements count; None means all.

    Returns:
        J, 0-dim, with the dtype of the losses.

    Raises:
        ValueError: shapes differ.
        TypeError: losses or weights aren't floating point, or the mask isn't bool.

    For: every loss of this library; nothing else reduces.
    Source: Vapnik, Principles of risk minimization for learning theory (1992).
    """
    floating(losses=losses)
    weight = torch.ones_like(losses) if weights is None else weights.detach()
    floating(weights=weight)
    same_shape(losses=losses, weights=weight)
    if mask is None:
        count = max(losses.numel(), 1)
    elif mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; compare it with 0")
    else:
        same_shape(losses=losses, mask=mask)
        weight, count = torch.where(mask, weight, torch.zeros_like(weight)), mask.sum().clamp(min=1)
    # Divided before they are added: a sum may overflow where the mean doesn't.
    return reduced(times(wide(weight), wide(losses)) / count, torch.sum).to(losses.dtype)


def total(terms: Mapping[str, Tensor]) -> Objective:
    """The sum of named terms: an empirical loss and the penalties λₖΩₖ, or several losses.

        J = Σₖ Jₖ

    Args:
        terms: 0-dim each, coefficients included, such as {"value": J, "l2": λΩ}.

    Returns:
        The sum and the terms.

    Raises:
        ValueError: there is no term, or one isn't 0-dim.

    For: a regularised loss J + λΩ whose parts can be logged.
    Source: Tikhonov (1963); Vapnik (1992).
    """
    if not terms:
        raise ValueError("there is no term to add up")
    for name, term in terms.items():
        if term.ndim:
            raise ValueError(f"term {name} must be 0-dim, got shape {tuple(term.shape)}; reduce it first")
    return Objective(sum(terms.values()), dict(terms))


def term_gradients(terms: Callable[[Any], Mapping[str, Tensor]], parameters: Any) -> dict[str, Any]:
    """The gradient of each term alone.

        gₖ = ∇ Jₖ(θ)

    Args:
        terms: θ → terms by name, 0-dim each.
        parameters: θ, any pytree of tensors.

    Returns:
        By name, a pytree like θ. It costs one backward pass a term.

    For: seeing which term moves the weights.
    Source: Chen et al., GradNorm, arXiv 1711.02257.
    """
    values, backward = torch.func.vjp(lambda θ: dict(terms(θ)), parameters)
    zeros = {name: torch.zeros_like(value) for name, value in values.items()}
    return {name: backward(zeros | {name: torch.ones_like(value)})[0] for name, value in values.items()}


def gradient_norms(gradients: Mapping[str, Any]) -> dict[str, Tensor]:
    """The Euclidean norm of each term's gradient, 0-dim.

        ‖gₖ‖

    For: the sizes of terms as the optimiser feels them.
    Source: Chen et al., GradNorm, arXiv 1711.02257.
    """
    scaled = {name: _scaled(gradient) for name, gradient in gradients.items()}
    return {name: scale * _length(vector) for name, (vector, scale) in scaled.items()}


def gradient_cosines(gradients: Mapping[str, Any]) -> dict[tuple[str, str], Tensor]:
    """The cosine between the gradients of every two terms, 0-dim; 0 where one of them is 0.

        cos(gⱼ, gₖ) = gⱼ·gₖ/(‖gⱼ‖‖gₖ‖)

    For: whether terms help each other (1), don't meet (0) or fight (−1).
    Source: Yu et al., Gradient surgery for multi-task learning, arXiv 2001.06782.
    """
    vectors = {name: _scaled(gradient)[0] for name, gradient in gradients.items()}
    # A vector that isn't 0 has a length of at least 1.
    units = {name: vector / _length(vector).clamp(min=1) for name, vector in vectors.items()}
    return {(one, other): (units[one] * units[other]).sum() for one, other in itertools.combinations(units, 2)}


def _scaled(gradient: Any) -> tuple[Tensor, Tensor]:
    """A gradient as one vector of numbers within ±1, the largest of them ±1, and its scale; squares of others may be 0 or infinite."""
    leaves = [leaf.flatten() for leaf in pytree.tree_leaves(gradient)]
    vector = torch.cat([*leaves, leaves[0].new_zeros(1)])  # The gradient may be empty.
    largest = vector.abs().max()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return vector / scale, scale


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum().sqrt()
