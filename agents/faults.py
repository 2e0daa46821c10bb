"""Where a run's numbers stopped being numbers: noted by the update itself, for a loop that looks only now and then."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

WEIGHTS = "weights"


class Fault(NamedTuple):
    """The first NaN or infinity of a run: the term that had it, its value, and the records that each environment had added by then."""

    term: str
    value: float
    added: int


def watched(metrics: Iterable[str]) -> list[str]:
    """The metrics that are finite in a healthy run, causes before what follows from them: losses, their total, norms of gradients.

    Others may be NaN rightly, such as a variance explained of nothing.
    """
    losses = [name for name in metrics if name.startswith("loss/") and name != "loss/total"]
    return [*losses, *(name for name in metrics if name == "loss/total"), *(name for name in metrics if name.startswith("gradient/"))]


def none(runs: int) -> Tensor:
    """Nothing noted yet [runs, 3]: records added (0 for no fault), number of the term, its value."""
    return torch.zeros(runs, 3, dtype=torch.float64)


def noted(fault: Tensor, metrics: Mapping[str, Tensor], added: Tensor) -> Tensor:
    """One run's note [3] after an update with these metrics: the first fault stays."""
    values = torch.stack([metrics[name].double() for name in watched(metrics)])
    finite = values.isfinite()
    term = finite.double().argmin()
    found = torch.stack([added, term.double(), values[term]])
    return torch.where((fault[0] > 0) | finite.all(), fault, found)


def read(faults: Tensor, metrics: Iterable[str]) -> dict[int, Fault]:
    """The faults by run of what was noted [runs, 3] in updates that told these metrics."""
    names = watched(metrics)
    found = {run: faults[run].tolist() for run in torch.nonzero(faults[:, 0]).flatten().tolist()}
    return {run: Fault(names[int(term)], value, int(added)) for run, (added, term, value) in found.items()}
