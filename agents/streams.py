"""Random numbers as a function of (seed, name, position), drawn in blocks.

A stream keeps nothing that must be saved: whoever knows the position knows the numbers.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

BLOCK_NUMBERS = 4096
BLOCK_EPISODES = 64


def generator(seed: int, name: str, *position: int) -> np.random.Generator:
    """NumPy's generator for one place in one named stream of a run."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), *position)))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """torch's generator for one named stream of a run."""
    return torch.Generator().manual_seed(int(generator(seed, name).integers(2**63)))


class EpisodeSeeds:
    """The seeds of one environment's episodes, `seeds[index]`: 31 bits each, which every environment takes."""

    def __init__(self, seed: int, name: str, *position: int) -> None:
        self.stream = (seed, name, *position)
        self.block, self.numbers = -1, []

    def __getitem__(self, index: int) -> int:
        block, row = divmod(index, BLOCK_EPISODES)
        if block != self.block:
            self.block, self.numbers = block, generator(*self.stream, block).integers(2**31, size=BLOCK_EPISODES).tolist()
        return self.numbers[row]


class Uniforms:
    """Uniform numbers in [0, 1) for a population: `uniforms[position]` is [runs, *shape], float32 or float64.

    Each run's numbers depend on its own seed alone, so they are the same in any population.
    """

    def __init__(self, seeds: Sequence[int], name: str, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        self.seeds, self.name, self.shape, self.dtype = tuple(seeds), name, shape, dtype
        self.rows = max(1, BLOCK_NUMBERS // max(1, int(np.prod(shape))))
        self.block = -1
        self.numbers = np.empty((self.rows, len(self.seeds), *shape), dtype)

    def __getitem__(self, position: int) -> np.ndarray:
        block, row = divmod(position, self.rows)
        if block != self.block:
            for run, seed in enumerate(self.seeds):
                self.numbers[:, run] = generator(seed, self.name, block).random((self.rows, *self.shape), self.dtype)
            self.block = block
        return self.numbers[row]


def normal(uniforms: torch.Tensor) -> torch.Tensor:
    """As many normal numbers as uniform ones [2n], by the method of Box and Muller (1958)."""
    first, second = uniforms.chunk(2)
    radius, angle = (-2 * torch.log(1 - first)).sqrt(), 2 * torch.pi * second
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])


def normal_rows(uniforms: torch.Tensor, count: int) -> torch.Tensor:
    """Normal numbers [batch, count] from uniform ones [batch, paired(count)], float32."""
    # Rounded to float32 a number may be 1, which no normal number belongs to.
    return normal(uniforms.T.float().clamp(max=1 - 2**-24)).T[:, :count]


def paired(count: int) -> int:
    """How many numbers `normal` takes to make at least so many."""
    return -(-count // 2) * 2
