"""What a Gymnasium space means for storage and for a network.

One observation is stored as one array. That of a Tuple or Dict is packed into one flat array, its
categories still as numbers, and is taken apart again where it is encoded.
"""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

COMPOSITE = (spaces.Tuple, spaces.Dict)
BYTES = (np.uint8, np.bool_)


def storage(space: spaces.Space) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype in which one observation is kept: images and bits as uint8, categories as int32.

    Raises ValueError for a space that is none of Box, Discrete, MultiDiscrete and MultiBinary, nor made of them.
    """
    if isinstance(space, COMPOSITE) and len(space):
        return (sum(size(part) for part in parts(space)),), torch.float32
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return space.shape, torch.int32
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return space.shape, torch.uint8 if space.dtype in BYTES or isinstance(space, spaces.MultiBinary) else torch.float32
    known = "Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these"
    raise ValueError(f"observations must be {known}, got {space}; wrap the environment")


def parts(space: spaces.Space) -> Iterator[spaces.Space]:
    """The simple spaces that a space is made of, in the order of gymnasium.spaces.flatten."""
    if isinstance(space, COMPOSITE):
        for part in space.values() if isinstance(space, spaces.Dict) else space:
            yield from parts(part)
    else:
        yield space


def size(space: spaces.Space) -> int:
    """How many numbers one observation is stored in."""
    return math.prod(storage(space)[0])


def features(space: spaces.Space) -> tuple[int, ...]:
    """The shape of one encoded observation, as a network sees it."""
    if isinstance(space, COMPOSITE):
        return (sum(math.prod(features(part)) for part in parts(space)),)
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    return (int(space.nvec.sum()),) if isinstance(space, spaces.MultiDiscrete) else space.shape


def encode(space: spaces.Space, observation: Tensor) -> Tensor:
    """Observations [batch, …] as floats [batch, *features(space)]: categories one-hot, bytes as shares of 255, bits as 0 and 1."""
    if isinstance(space, COMPOSITE):
        stored = zip(parts(space), observation.split([size(part) for part in parts(space)], 1), strict=True)
        return torch.cat([encode(part, numbers).flatten(1) for part, numbers in stored], 1)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return one_hot(space, observation)
    return observation.float() / 255 if space.dtype == np.uint8 else observation.float()


def one_hot(space: spaces.Discrete | spaces.MultiDiscrete, observation: Tensor) -> Tensor:
    """Categories [batch, …] as floats [batch, features], a 1 for each among zeros, in a row."""
    # Not torch's one_hot: it inspects the numbers, which can't be done under vmap.
    counts, first = np.ravel(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n), np.ravel(space.start)
    place = np.repeat(np.arange(len(counts)), counts)
    category = np.concatenate([np.arange(start, start + count) for start, count in zip(first, counts, strict=True)])
    numbers = observation.reshape(observation.shape[0], -1)[:, torch.from_numpy(place).to(observation.device)]
    return (numbers == torch.from_numpy(category).to(observation.device)).float()


def pack(space: spaces.Space, observation: Any) -> Any:
    """An observation as the one array that is stored: float32 [numbers] for a Tuple or Dict, itself for any other space."""
    if not isinstance(space, COMPOSITE):
        return observation
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in _leaves(space, observation)])


def _leaves(space: spaces.Space, observation: Any) -> Iterator[Any]:
    """The observations of the `parts` of a space."""
    if isinstance(space, COMPOSITE):
        keys = space.keys() if isinstance(space, spaces.Dict) else range(len(space))
        for key in keys:
            yield from _leaves(space[key], observation[key])
    else:
        yield observation


class Packed(gymnasium.ObservationWrapper):
    """Hands over each observation packed; the space stays what it was, for it says how to take it apart."""

    def observation(self, observation: Any) -> np.ndarray:
        """The observation as one array."""
        return pack(self.observation_space, observation)
