"""Drawing indices in proportion to their priorities, from sums over blocks.

The sums are made anew at every draw: one pass over memory costs less than a tree that is kept up to
date in many small steps, and nothing can go stale.
"""

import torch
from torch import Tensor

from rlloss.numbers import once

BRANCHES = 16
BLOCK = BRANCHES**2


def draw(priority: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The indices at which the running sum of priorities passes shares of the total.

    Args:
        priority: [n], at least 0, not all 0; n a multiple of BLOCK.
        shares: [batch] in [0, 1), float64.

    Returns:
        Indices [batch], never of a priority of 0, and their probabilities priority/total [batch], float64.
    """
    levels = [once(priority.unflatten(0, (-1, BLOCK)).sum(-1)).double()]
    while len(levels[-1]) > BRANCHES:
        levels.append(once(_branches(levels[-1]).sum(-1)))
    total = once(levels[-1].sum())
    index, rest = torch.zeros_like(shares, dtype=torch.long), shares * total
    for level in reversed(levels):
        index, rest = _descended(index, once(_branches(level)[index]), rest)
    inside = once(priority.unflatten(0, (-1, BRANCHES, BRANCHES))[index])
    index, rest = _descended(index, once(inside.sum(-1)), rest)
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
