"""Replay memory: one preallocated tensor of packed records, one write a step, one gather a batch.

A transition is one record of 32-bit words, so that drawing one touches one stretch of memory and not
five. NumPy sees a record by its fields, torch sees words and reinterprets their bits.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlloss.checks import in_range
from rlloss.frozen import frozen
from rlloss.numbers import once

WORD = 4


class Transitions(NamedTuple):
    """A batch of one-step transitions, first dimension [batch].

    `terminated` is 1 where the environment ended the episode, and 0 where only time ran out:
    `next_observation` is then the true last observation, whose value is bootstrapped.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_observation: Tensor


def record(shape: tuple[int, ...], dtype: torch.dtype) -> np.dtype:
    """The layout of one transition for observations of this shape and dtype; every field starts on a word."""
    observation = np.dtype((str(dtype).removeprefix("torch."), shape))
    formats = [observation, np.dtype("int32"), np.dtype("float32"), np.dtype("float32"), observation]
    sizes = [-(-field.itemsize // WORD) * WORD for field in formats]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    return np.dtype({"names": Transitions._fields, "formats": formats, "offsets": offsets, "itemsize": sum(sizes)})


def decode(words: Tensor, layout: np.dtype) -> Transitions:
    """The fields of records [batch, words]."""
    fields = []
    for name in Transitions._fields:
        field, offset = layout.fields[name][:2]
        dtype = getattr(torch, field.base.name)
        part = words[:, offset // WORD : offset // WORD + -(-field.itemsize // WORD)].view(dtype)
        part = part[:, : field.itemsize // field.base.itemsize]
        fields.append(part.reshape(words.shape[0], *field.shape))
    return Transitions(*fields)._replace(action=fields[1].long())


@frozen
class UniformReplay:
    """The last `capacity` transitions, drawn uniformly with replacement. Source: Lin (1992); Mnih et al. (2015)."""

    capacity: int = 50_000

    def __post_init__(self) -> None:
        in_range("capacity", self.capacity, 1)

    def init(self, runs: int, layout: np.dtype) -> Tensor:
        """Empty memories [runs, capacity, words]."""
        # NumPy asks the kernel for huge pages, which suit random reads from a large memory; torch doesn't.
        return torch.from_numpy(np.zeros((runs, self.capacity, layout.itemsize // WORD), np.int32))

    def write(self, memory: np.ndarray, added: int, records: np.ndarray) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, capacity, words].

        `added` is how many were written to each run before. With more environments than capacity
        the last ones stay.
        """
        count, start = records.shape[1], added % self.capacity
        if start + count <= self.capacity:
            memory[:, start : start + count] = records
        else:
            memory[:, np.arange(start, start + count) % self.capacity] = records

    def sample(self, memory: Tensor, uniforms: Tensor, added: Tensor) -> Tensor:
        """Records [batch, words] of one run's memory [capacity, words].

        Args:
            memory: of which the first min(added, capacity) records have been written.
            uniforms: [batch] in [0, 1), float64, so that every record can be met.
            added: how many were written in all, 0-dim, float64.
        """
        words = memory[(uniforms * added.clamp(max=self.capacity)).long()]
        return once(words)
