"""Drawing indices in proportion to their priorities, from sums over blocks.

The sums are made anew at every draw: one pass over memory costs less than a tree that is kept up to
date in many small steps, and nothing can go stale.
"""

import torch
from torch import Tensor

from rlloss.numbers import once

BLOCK = 256


def draw(priority: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The indices at which the running sum of priorities passes shares of the total.

    Args:
        priority: [n], at least 0, not all 0; n a multiple of BLOCK.
        shares: [batch] in [0, 1), float64.

    Returns:
        Indices [batch], never of a priority of 0, and their probabilities priority/total [batch], float64.
    """
    blocks = priority.unflatten(0, (-1, BLOCK))
    sums = once(blocks.sum(-1).double())
    block, rest = _passed(sums[None], shares * sums.sum())
    inside = once(blocks[block].unflatten(-1, (16, 16)).double())
    group, rest = _passed(once(inside.sum(-1)), rest)
    last = once(inside[torch.arange(len(shares), device=shares.device), group])
    place, _ = _passed(last, rest)
    index = once((block * 16 + group) * 16 + place)
    return index, priority[index].double() / sums.sum()


def _passed(parts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The part [batch] of each row [batch or 1, n] at which its running sum passes what is wanted [batch], and what is left of it."""
    running = once(parts.cumsum(-1))
    # Rounding may leave more wanted than there is: then it's the last part that isn't 0.
    numbers = torch.arange(parts.shape[-1], device=parts.device)
    last = torch.where(parts > 0, numbers, 0).amax(-1)
    chosen = once(torch.minimum((running <= wanted[:, None]).sum(-1), last))
    before = (running - parts).expand(len(wanted), -1).gather(-1, chosen[:, None]).squeeze(-1)
    return chosen, once((wanted - before).clamp(min=0))
