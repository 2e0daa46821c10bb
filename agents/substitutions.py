"""What a few operations are replaced by where programs are compiled, because it is faster; eager ones keep torch's own.

Torch's matrix products are MKL's, which takes vectors of 512 bits on Intel's processors only, and its tanh is made for the last bit.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlloss.numbers import once

# So many rows of a product are summed up side by side: each number of the right factor that is loaded serves all of them.
ROWS = (8, 7, 6, 5, 4)
VECTOR = 16
# |x| below which tanh is summed up as a series.
SMALL = 0.2


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
        return {torch.ops.aten.tanh.default: self.tanh} | ({torch.ops.aten.bmm.default: self.product} if library_is_slow() else {})

    def tanh(self, x: Tensor) -> Tensor:
        """tanh x within 6·10⁻⁷ of it, relatively, in a third of the time.

        1 − 2/(1 + e²ˣ), and x − x³/3 + 2x⁵/15 − 17x⁷/315 for |x| < 0.2, where that cancels
        """
        if x.dtype != torch.float32:
            return NotImplemented
        square = x * x
        series = x + x * square * (-1 / 3 + square * (2 / 15 - 17 / 315 * square))
        return self.once(torch.where(square < SMALL * SMALL, series, 1 - 2 / (1 + (2 * x).exp())))

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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
