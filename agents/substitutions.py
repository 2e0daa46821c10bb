"""What a few operations are replaced by where programs are compiled, because it is faster; eager ones keep torch's own.

Torch's matrix products are MKL's, which takes vectors of 512 bits on Intel's processors only, and its tanh is made for the last bit.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlloss.numbers import FEW, once

# So many rows of a product are summed up side by side: each number of the right factor that is loaded serves all of them.
ROWS = (8, 7, 6, 5, 4)
VECTOR = 16
# tanh x = x·P(x²)/Q(x²) for |x| ≤ FAR, within 3·10⁻⁸ of it, relatively, before rounding; fitted, by least squares with more weight where it was off. Beyond, it is that of FAR.
FAR = 8.0
UPPER = (1.0, 0.134444982, 0.00357159902, 2.18946789e-05, 1.52304409e-08)
LOWER = (1.0, 0.467778265, 0.026164446, 0.000341129373, 8.52245591e-07)


def library_is_slow() -> bool:
    """Whether this is a processor that can do more than torch's matrix products ask of it."""
    with contextlib.suppress(OSError):
        return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return False


class Substitutions:
    """The substitutions of one trace, of a function of these inputs. `table` is what make_fx takes as decompositions."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        # By storage, each with a tensor that holds it, so that nothing else comes to lie there.
        self.in_memory = {_storage(each): each for each in inputs}
        self.kept: dict[tuple, tuple[Tensor, Tensor]] = {}

    @property
    def table(self) -> dict[Any, Callable]:
        """What is called instead of an operation; NotImplemented leaves it as it is."""
        aten = torch.ops.aten
        few = {
            aten._log_softmax.default: self.log_softmax,
            aten._log_softmax_backward_data.default: self.log_softmax_backward,
            aten.gather.default: self.gather,
            aten.scatter_add.default: self.scatter_add,
        }
        return {aten.tanh.default: self.tanh} | few | ({aten.bmm.default: self.product} if library_is_slow() else {})

    def tanh(self, x: Tensor) -> Tensor:
        """tanh x within 4·10⁻⁷ of it, relatively; its derivative, 1 − tanh² x, within 7·10⁻⁷, absolutely."""
        if x.dtype != torch.float32:
            return NotImplemented
        x = torch.where(x > FAR, FAR, torch.where(x < -FAR, -FAR, x))  # clamp takes twice as many instructions, for NaN.
        square = x * x
        return self.once(x * _polynomial(UPPER, square) / _polynomial(LOWER, square))

    def log_softmax(self, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        """The logarithm of few categories' softmax.

        x − max x − log Σ exp(x − max x)
        """
        if not _few(x, dim) or half_to_float:
            return NotImplemented
        columns = x.unbind(dim)
        highest = self.once(functools.reduce(torch.maximum, columns))
        logarithm = self.once(sum((column - highest).exp() for column in columns).log())
        return _together([column - highest - logarithm for column in columns], dim)

    def log_softmax_backward(self, gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """Its gradient: g − softmax·Σ g."""
        if not _few(output, dim) or dtype != output.dtype:
            return NotImplemented
        gradients = gradient.unbind(dim)
        total = self.once(sum(gradients))
        return _together([g - column.exp() * total for g, column in zip(gradients, output.unbind(dim), strict=True)], dim)

    def gather(self, x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
        """One of few categories, told apart by comparing; others than of one in each row stay as they are."""
        if not _one_of_few(x, dim, index):
            return NotImplemented
        columns = x.split(1, dim)
        return functools.reduce(lambda chosen, place: torch.where(index == place, columns[place], chosen), range(1, len(columns)), columns[0])

    def scatter_add(self, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """Added to one of few categories in each row, the gradient of `gather`."""
        if not _one_of_few(x, dim, index) or source.shape != index.shape:
            return NotImplemented
        added = [column + torch.where(index == place, source, 0).squeeze(dim) for place, column in enumerate(x.unbind(dim))]
        return _together(added, dim)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The product [runs, n, m] of [runs, n, k] and [runs, k, m] as loops; others than of such rows and vectors stay as they are.

        out[r + i·R] = Σ_k left[r + i·R, k] · right[k],  R rows r at a time, along vectors of the right factor's columns
        """
        width = right.shape[2]
        side_by_side = next((rows for rows in ROWS if left.shape[1] % rows == 0), 0)
        if left.dtype != torch.float32 or not side_by_side or width < VECTOR or -width % VECTOR > width / 4:
            return NotImplemented
        left, right = self.factor(left).unflatten(1, (-1, side_by_side)), self.factor(right)
        if right.stride(2) != 1:
            right = once(right.contiguous())
        rows = [(left[:, :, row, :, None] * right[:, None]).sum(2) for row in range(side_by_side)]
        return torch.stack(rows, 2).flatten(1, 2)

    def factor(self, factor: Tensor) -> Tensor:
        """A factor that lies in memory, not one that is computed anew for each row, whichever way round it is read."""
        if _storage(factor) in self.in_memory:
            return factor
        straight = factor if factor.stride(2) == 1 else factor.transpose(1, 2)
        place = _storage(factor), factor.storage_offset(), straight.shape, straight.stride()
        if place not in self.kept:
            self.kept[place] = straight, self.once(straight)
        return self.kept[place][1] if straight is factor else self.kept[place][1].transpose(1, 2)

    def once(self, tensor: Tensor) -> Tensor:
        """The same numbers, in memory."""
        made = once(tensor)
        self.in_memory[_storage(made)] = made
        return made


def _few(x: Tensor, dim: int) -> bool:
    return x.ndim > 1 and dim % x.ndim > 0 and 1 < x.shape[dim] <= FEW and x.dtype == torch.float32


def _one_of_few(x: Tensor, dim: int, index: Tensor) -> bool:
    return _few(x, dim) and index.shape == torch.Size(1 if place == dim % x.ndim else length for place, length in enumerate(x.shape))


def _together(columns: list[Tensor], dim: int) -> Tensor:
    """The categories in one tensor, though in memory each lies along the batch."""
    return torch.stack(columns, 1).movedim(1, dim)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σᵢ cᵢ·xⁱ."""
    return functools.reduce(lambda total, coefficient: total * x + coefficient, reversed(coefficients[:-1]), coefficients[-1])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
