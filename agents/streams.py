"""Random numbers as a function of (seed, name, position), drawn in blocks.

A stream keeps nothing that must be saved: whoever knows the position knows the numbers.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch

BLOCK_NUMBERS = 4096


def generator(seed: int, name: str, *position: int) -> np.random.Generator:
    """NumPy's generator for one place in one named stream of a run."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), *position)))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """torch's generator for one named stream of a run."""
    return torch.Generator().manual_seed(int(generator(seed, name).integers(2**63)))


def episode_seed(seed: int, name: str, *position: int) -> int:
    """The seed of one episode: 31 bits, which every environment takes."""
    return int(generator(seed, name, *position).integers(2**31))


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
