"""Hyperparameters as tensors, the precision that sums over many classes need, and what to compute once."""

from collections.abc import Callable

import torch
from torch import Tensor

# Into how many parts `reduced` deals numbers out.
LANES = 8

# So many categories are told apart by comparing, each along the whole batch, which compiles into vectors; reading and adding by index does not.
FEW = 8


def like(tensor: Tensor, number: float | Tensor) -> Tensor:
    """A hyperparameter with the dtype and device of a tensor; raises ValueError if it would be broadcast.

    It is a number or 0-dim, or has the tensor's own shape.
    """
    if isinstance(number, Tensor) and number.ndim and number.shape != tensor.shape:
        raise ValueError(f"a hyperparameter must be one number, or one for each of {tuple(tensor.shape)}, got shape {tuple(number.shape)}")
    return torch.as_tensor(number, dtype=tensor.dtype, device=tensor.device)


def wide(tensor: Tensor) -> Tensor:
    """At least float32: supports, sums of logarithms and powers lose too much in a bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def times(factor: Tensor, number: Tensor) -> Tensor:
    """factor·number, and 0 where the factor is 0, whatever the number: also an infinite one, or NaN."""
    return torch.where(factor == 0, torch.zeros_like(number), factor * number)


def only(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits or values, −∞ where an action isn't allowed; None allows all."""
    return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)


def once(tensor: Tensor) -> Tensor:
    """The same numbers, computed once and kept: the compiler would compute them anew for each of their readers."""
    # Either makes a tensor of its own: taken of a view, as_strided reads from the wrong place when compiled.
    own = tensor.neg().neg() if tensor.is_floating_point() else torch.maximum(tensor, tensor)
    if own.ndim:
        return own.as_strided(own.shape, own.stride())
    # Kept twice: with the numbers of many runs side by side, the compiler would vectorise over the runs, of which there may be one.
    return torch.stack([own, own]).as_strided((), ())


def reduced(tensor: Tensor, reduction: Callable[[Tensor, int], Tensor]) -> Tensor:
    """All numbers reduced to one by torch.sum, torch.amax or torch.amin, in two steps where they can be dealt out evenly.

    In one step the compiler would fuse it with what makes the numbers, and vectorise all of that over the runs, of which there may be one.
    """
    numbers = tensor.flatten()
    if len(numbers) and len(numbers) % LANES == 0:
        numbers = reduction(numbers.unflatten(0, (-1, LANES)), 0)
    return reduction(numbers, 0)


def mean(tensor: Tensor) -> Tensor:
    """The mean of all numbers, `reduced`."""
    return reduced(tensor, torch.sum) / max(tensor.numel(), 1)


def variance(tensor: Tensor) -> Tensor:
    """The variance of all numbers, 1/n Σ (xᵢ − mean x)²."""
    return mean((tensor - once(mean(tensor))).square())


def leading(tensor: Tensor) -> Tensor:
    """The last dimension first, [..., n] → [n, ...], kept in this order: sums over pairs of n then run side by side for the whole batch."""
    return once(tensor.movedim(-1, 0).contiguous())


def counted(count: int, tensor: Tensor) -> Tensor:
    """0, 1, … count − 1 along a dimension before those of a tensor [...], with its dtype: [count, 1, ...]."""
    return torch.arange(count, dtype=tensor.dtype, device=tensor.device).reshape(-1, *[1] * tensor.ndim)


def trailing(tensor: Tensor) -> Tensor:
    """The first dimension last, [n, ...] → [..., n]: `leading` undone, though memory keeps its order."""
    return once(tensor).movedim(0, -1)


def with_gradient(value: Tensor, inputs: Tensor, gradient: Tensor) -> Tensor:
    """A value [...] whose gradient with respect to inputs [..., n] is given, [..., n], where it comes out cheaper than by differentiating."""
    inert = inputs.detach() - inputs
    return value.detach() - (gradient.detach() * inert).sum(-1)
