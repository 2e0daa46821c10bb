"""Replay memory: preallocated tensors, one gather a batch, nothing per transition."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.checks import in_range
from rlloss.frozen import frozen


class Transitions(NamedTuple):
    """One-step transitions, first dimension [capacity] in a memory and [batch] in a batch.

    `terminated` is 1 where the environment ended the episode, and 0 where only time ran out:
    `next_observation` is then the true last observation, whose value is bootstrapped.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor


@frozen
class UniformReplay:
    """The last `capacity` transitions, drawn uniformly with replacement. Source: Lin (1992); Mnih et al. (2015)."""

    capacity: int = 10_000

    def __post_init__(self) -> None:
        in_range("capacity", self.capacity, 1)

    def init(self, runs: int, shape: tuple[int, ...], dtype: torch.dtype) -> Transitions:
        """Empty memories [runs, capacity, …] for observations of this shape and dtype."""
        size = (runs, self.capacity)
        return Transitions(
            observation=torch.zeros(*size, *shape, dtype=dtype),
            action=torch.zeros(size, dtype=torch.int64),
            reward=torch.zeros(size),
            terminated=torch.zeros(size),
            next_observation=torch.zeros(*size, *shape, dtype=dtype),
        )

    def indices(self, uniforms: np.ndarray, added: int) -> np.ndarray:
        """Rows to draw from uniform numbers in [0, 1), when so many transitions were added in all."""
        return (uniforms * min(added, self.capacity)).astype(np.int64)

    @staticmethod
    def gather(memory: Transitions, indices: Tensor) -> Transitions:
        """The batch at these rows [batch] of one run's memory."""
        return Transitions(*(field[indices] for field in memory))


def write(memory: list[np.ndarray], added: int, *fields: np.ndarray) -> None:
    """Write one transition per environment, [runs, environments, …] each, over the oldest rows of all runs.

    `memory` holds NumPy views of the fields of `Transitions`; `added` counts transitions written before.
    """
    count, capacity = fields[0].shape[1], memory[0].shape[1]
    start = added % capacity
    if start + count <= capacity:
        for rows, values in zip(memory, fields, strict=True):
            rows[:, start : start + count] = values
    else:
        rows_at = np.arange(start, start + count) % capacity
        for rows, values in zip(memory, fields, strict=True):
            rows[:, rows_at] = values
