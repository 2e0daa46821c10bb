"""The one place where elementwise losses become a number to minimise, and where its terms can be told apart."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rlloss.checks import floating, same_shape
from rlloss.numbers import wide


class Objective(NamedTuple):
    """A number to minimise, and the terms by name that add up to it, all 0-dim."""

    total: Tensor
    terms: dict[str, Tensor]


def empirical_loss(losses: Tensor, weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The empirical loss of a batch.

        J(W) = (1/n) Σᵢ mᵢ wᵢ ℓᵢ,  n = Σᵢ mᵢ

    It divides by n, the number of elements that the mask keeps, and not by the sum of the weights, as
    importance sampling asks: weights with mean 1 keep the scale of J. With nothing kept, J is 0.

    Args:
        losses: ℓ, elementwise, any shape.
        weights: w, same shape, not differentiated (priorities, importance weights); None means 1.
        mask: m, same shape, bool: which elements count; None means all.

    Returns:
        J, 0-dim.

    Raises:
        ValueError: shapes differ.
        TypeError: losses or weights aren't floating point, or the mask isn't bool.

    For: every loss of this library; nothing else reduces.
    Source: Vapnik, Principles of risk minimization for learning theory (1992).
    """
    floating(losses=losses)
    if weights is not None:
        floating(weights=weights)
        same_shape(losses=losses, weights=weights)
        weights = weights.detach()
    if mask is None:
        return (losses if weights is None else weights * losses).mean()
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; compare it with 0")
    same_shape(losses=losses, mask=mask)
    # Not products with the mask: what is masked away may be infinite or NaN.
    kept = torch.where(mask, losses, torch.zeros_like(losses))
    kept = kept if weights is None else torch.where(mask, weights, torch.zeros_like(weights)) * kept
    return (wide(kept).sum() / mask.sum().clamp(min=1)).to(losses.dtype)


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
    return {name: _norm(gradient) for name, gradient in gradients.items()}


def gradient_cosines(gradients: Mapping[str, Any]) -> dict[tuple[str, str], Tensor]:
    """The cosine between the gradients of every two terms, 0-dim; 0 where one of them is 0.

        cos(gⱼ, gₖ) = gⱼ·gₖ/(‖gⱼ‖‖gₖ‖)

    For: whether terms help each other (1), don't meet (0) or fight (−1).
    Source: Yu et al., Gradient surgery for multi-task learning, arXiv 2001.06782.
    """
    units = {name: _unit(gradient) for name, gradient in gradients.items()}
    return {(one, other): sum((a * b).sum() for a, b in zip(units[one], units[other], strict=True)) for one, other in itertools.combinations(units, 2)}


def _norm(gradient: Any) -> Tensor:
    # Of numbers within ±1: squares of very small and very large ones are 0 and infinite.
    leaves = pytree.tree_leaves(gradient)
    largest = torch.stack([leaf.abs().max() for leaf in leaves]).max()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return scale * sum(((leaf / scale) ** 2).sum() for leaf in leaves).sqrt()


def _unit(gradient: Any) -> list[Tensor]:
    norm = _norm(gradient)
    return [leaf / torch.where(norm > 0, norm, torch.ones_like(norm)) for leaf in pytree.tree_leaves(gradient)]
