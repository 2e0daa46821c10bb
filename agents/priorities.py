"""Drawing indices in proportion to their priorities, from sums over blocks.

Sums over blocks are kept, and made anew from the priorities where one of those changes, so that no rounding adds up. Blocks
are laid out as the rows of a table, and so are the priorities of a block: a draw finds a column by the columns' sums, made at
every draw, and then the row. Four searches along a few numbers, side by side for a whole batch, cost less than a deep tree.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.numbers import once

WIDTH = 16
BLOCK = WIDTH**2


class Priorities(NamedTuple):
    """Priorities [n], at least 0, n a multiple of BLOCK, and their sums over blocks [n/BLOCK]."""

    priority: Tensor
    sums: Tensor


def none(slots: int) -> Priorities:
    """Priorities of 0 for at least so many records."""
    blocks = -(-slots // BLOCK)
    return Priorities(torch.zeros(blocks * BLOCK), torch.zeros(blocks))


def write(priorities: Priorities, index: np.ndarray, priority: np.ndarray) -> None:
    """Write one priority [runs] at indices [k] over those of every run [runs, …], in place."""
    everything, sums = priorities.priority.numpy(), priorities.sums.numpy()
    everything[:, index] = priority[:, None]
    blocks = index // BLOCK
    sums[:, blocks] = everything.reshape(*sums.shape, BLOCK)[:, blocks].sum(-1)


def renewed(priorities: Priorities, index: Tensor, priority: Tensor) -> Priorities:
    """The priorities with others [batch] at indices [batch], which are the same where indices are."""
    everything, blocks = priorities.priority.index_put((index,), priority), index // BLOCK
    return Priorities(everything, priorities.sums.index_put((blocks,), everything.unflatten(0, (-1, BLOCK))[blocks].sum(-1)))


def draw(priorities: Priorities, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The indices at which the running sum of priorities, not all 0, passes shares of the total.

    Args:
        priorities: of one run.
        shares: [batch] in [0, 1), float64.

    Returns:
        Indices [batch], never of a priority of 0, and their priorities [batch].
    """
    sums, width = priorities.sums.double(), math.isqrt(len(priorities.sums) - 1) + 1
    blocks = once(torch.nn.functional.pad(sums, (0, -len(sums) % width)).unflatten(0, (-1, width)))
    columns = once(blocks.sum(0))
    column, rest = _passed(columns[:, None].expand(-1, len(shares)), shares * columns.sum())
    row, rest = _passed(blocks[:, column], rest)
    index = row * width + column
    inside = priorities.priority.unflatten(0, (-1, WIDTH, WIDTH))
    column, rest = _passed(once(inside[index].sum(1)).T, rest)
    row, _ = _passed(inside[index, :, column].T, rest)
    index = once(index * BLOCK + row * WIDTH + column)
    return index, once(priorities.priority[index])


def _passed(parts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """At which of the parts [n, batch], not all 0, the running sum passes what is wanted [batch], and what is left of that.

    Where rounding leaves more wanted than there is, it's the last part that isn't 0.
    """
    running = list(itertools.accumulate(parts.double()))
    wanted = torch.minimum(wanted, running[-1] * (1 - 2**-53) - 1e-300)  # Less than all, also of nothing.
    chosen, before = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for passed in running[:-1]:
        here = passed <= wanted
        chosen, before = chosen + torch.where(here, 1.0, 0.0), torch.where(here, passed, before)
    return once(chosen.long()), once(wanted - before)
