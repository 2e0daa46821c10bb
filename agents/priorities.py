"""Drawing indices in proportion to their priorities, from sums over blocks.

Sums over blocks are kept, and made anew from the priorities where one of those changes, so that no rounding adds up. Sums over
sums are made at every draw: few numbers cost less than a tree that is kept up to date in many small steps.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.numbers import once

BRANCHES = 16
BLOCK = BRANCHES**2


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
        Indices [batch], never of a priority of 0, and their probabilities priority/total [batch], float64.
    """
    priority, levels = priorities.priority, [priorities.sums.double()]
    while len(levels[-1]) > BRANCHES:
        levels.append(_branches(levels[-1]).sum(-1))
    total = levels[-1].sum()
    index, rest = torch.zeros_like(shares, dtype=torch.long), shares * total
    for level in reversed(levels):
        index, rest = _descended(index, once(_branches(level)[index]), rest)
    inside = once(priority.unflatten(0, (-1, BRANCHES, BRANCHES))[index])
    index, rest = _descended(index, inside.sum(-1), rest)
    index, _ = _descended(index, once(priority.unflatten(0, (-1, BRANCHES))[index]), rest)
    return index, priority[index].double() / total


def _branches(level: Tensor) -> Tensor:
    """A level [n] as [n/BRANCHES, BRANCHES], filled up with 0."""
    return torch.nn.functional.pad(level, (0, -len(level) % BRANCHES)).unflatten(0, (-1, BRANCHES))


def _descended(index: Tensor, parts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The index one level below of the part of [batch, BRANCHES] at which the running sum passes what is wanted [batch], and what is left of that.

    Where rounding leaves more wanted than there is, it's the last part that isn't 0.
    """
    chosen, running, before = torch.zeros_like(wanted), torch.zeros_like(wanted), torch.zeros_like(wanted)
    for number, part in enumerate(parts.double().unbind(-1)):
        here = (part > 0) & (running <= wanted)
        chosen, before = torch.where(here, float(number), chosen), torch.where(here, running, before)
        running = running + part
    return once(index * BRANCHES + chosen.long()), once((wanted - before).clamp(min=0))
