"""The checks that losses share: unequal shapes are refused, never broadcast; ranges are said in words."""

import math
import sys

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


def floats_of_one_shape(**tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are floating point, and ValueError unless they have one shape."""
    floating(**tensors)
    same_shape(**tensors)


def has_outputs(outputs: Tensor, count: int) -> None:
    """Raise ValueError unless there are `count` outputs per value, in the last dimension."""
    if not outputs.ndim or outputs.shape[-1] != count:
        raise ValueError(f"outputs must be [..., {count}], got shape {tuple(outputs.shape)}; this head has {count} per value")


def in_range(
    name: str,
    number: float | Tensor,
    low: float,
    high: float = sys.float_info.max,
    *,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
) -> None:
    """Raise ValueError unless low <= number <= high (low < number with `above`, number < high with `below`); NaN never is, infinity only where `high` is.

    With `whole` it must be an int. Tensors pass: they are hyperparameters of several runs, each checked when it was a number.
    """
    if isinstance(number, Tensor):
        return
    if whole and isinstance(number, float):
        raise ValueError(f"{name} must be a whole number, got {number:g}")
    given, number = number, _float32(number) if isinstance(number, float) else number
    if not (low < number if above else low <= number) or not (number < high if below else number <= high):
        bounds = [f"greater than {low:g}" if above else f"at least {low:g}"] if low > -math.inf else []
        bounds += [f"{'less than' if below else 'at most'} {high:g}"] if high < sys.float_info.max else []
        bounds += ["finite"] if abs(number) == math.inf and high < math.inf else []
        rounded = f" ({number:g} in float32)" if f"{number:g}" != f"{given:g}" else ""
        raise ValueError(f"{name} must be {' and '.join(bounds) or 'a number'}, got {given:g}{rounded}")


def _float32(number: float) -> float:
    """The nearest float32, as which hyperparameters train: there 1 − 1e-9 is 1, 1e-50 is 0 and 1e50 infinite."""
    if not abs(number) < 2.0**128 - 2.0**103:
        return number * math.inf
    if abs(number) <= 2.0**-150:
        return 0.0
    # Dekker's splitting: unlike a tensor's item() it can stand in a program that is compiled.
    high = number * (2.0**29 + 1)
    return high - (high - number)
