"""The checks that losses share: unequal shapes are refused, never broadcast; ranges are said in words."""

import sys

import torch
from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape.

    The names of the keyword arguments stand in the message.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Not a set: sizes may be symbols, while a program is traced, and symbols have no hash.
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: {listing}; losses never broadcast, so reshape them to be equal")


def floating(**tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are floating point."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}; convert it with .float()")


def in_range(name: str, number: float | Tensor, low: float, high: float = sys.float_info.max, *, above: bool = False, below: bool = False) -> None:
    """Raise ValueError unless low <= number <= high (low < number with `above`, number < high with `below`); NaN never is, infinity only where `high` is.

    Tensors pass: they are hyperparameters of several runs, each checked when it was a number.
    """
    if isinstance(number, Tensor):
        return
    # Hyperparameters are float32 in training, where 1 − 1e-9 is 1 and 1e-50 is 0.
    given, number = number, torch.tensor(number, dtype=torch.float32).item() if isinstance(number, float) else number
    if not (low < number if above else low <= number) or not (number < high if below else number <= high):
        bound = f"greater than {low:g}" if above else f"at least {low:g}"
        limit = f" and {'less than' if below else 'at most'} {high:g}" if high < sys.float_info.max else ""
        raise ValueError(f"{name} must be {bound}{limit}, got {given:g}")
