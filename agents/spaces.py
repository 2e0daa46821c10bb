"""What a Gymnasium space means for storage and for a network.

One observation is stored as one array. That of a Tuple or Dict is packed into one row of words, a record whose
fields are its parts, each as it would be stored alone, and is taken apart again where it is encoded.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import records

COMPOSITE = (spaces.Tuple, spaces.Dict)
BYTES = (np.uint8, np.bool_)


def storage(space: spaces.Space) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype in which one observation is kept: images and bits as uint8, categories as int32, Tuples and Dicts as words.

    Raises ValueError for a space that is none of Box, Discrete, MultiDiscrete and MultiBinary, nor made of them.
    """
    if isinstance(space, COMPOSITE) and len(space):
        return (words(space),), torch.int32
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return space.shape, torch.int32
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return space.shape, torch.uint8 if space.dtype in BYTES or isinstance(space, spaces.MultiBinary) else torch.float32
    known = "Box, Discrete, MultiDiscrete, MultiBinary, or a Tuple or Dict of these"
    raise ValueError(f"observations must be {known}, got {space}; wrap the environment")


def parts(space: spaces.Space) -> Iterator[spaces.Space]:
    """The simple spaces that a space is made of, in the order of gymnasium.spaces.flatten."""
    if isinstance(space, COMPOSITE):
        for part in _within(space):
            yield from parts(part)
    else:
        yield space


def _within(space: spaces.Tuple | spaces.Dict) -> Iterable[spaces.Space]:
    return space.values() if isinstance(space, spaces.Dict) else space


def layout(space: spaces.Space) -> np.dtype:
    """The record into which an observation is packed: a field for each of its `parts`."""
    fields = {}
    for index, part in enumerate(parts(space)):
        shape, dtype = storage(part)
        fields[str(index)] = np.dtype((str(dtype).removeprefix("torch."), shape))
    return records.layout(fields)


def words(space: spaces.Space) -> int:
    """How many words an observation is packed into."""
    return layout(space).itemsize // records.WORD


def split(space: spaces.Tuple | spaces.Dict, packed: Tensor) -> tuple[Tensor, ...]:
    """What stands right within packed observations [batch, words], each packed too."""
    return packed.split([words(part) for part in _within(space)], -1)


def unpacked(space: spaces.Space, packed: Tensor) -> Tensor:
    """Observations [batch, …] as they are stored, of packed ones [batch, words]: they are the same for a Tuple or Dict."""
    return packed if isinstance(space, COMPOSITE) else records.decode_field(packed, layout(space), "0")


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
        within = zip(_within(space), split(space, observation), strict=True)
        return torch.cat([encode(part, unpacked(part, packed)).reshape(len(packed), -1) for part, packed in within], 1)
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


def packing(space: spaces.Tuple | spaces.Dict) -> Callable[..., np.ndarray]:
    """What packs an observation into words int32 [words], or with a count as second argument so many, whose parts are stacked, into [count, words]."""
    packed = layout(space)

    def pack(observation: Any, *count: int) -> np.ndarray:
        record = np.zeros(count or 1, packed)
        for name, part in zip(packed.names, _leaves(space, observation), strict=True):
            record[name] = part
        return record.view(np.int32).reshape(*count, -1)

    return pack


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

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.pack = packing(environment.observation_space)

    def observation(self, observation: Any) -> np.ndarray:
        """The observation as one array."""
        return self.pack(observation)
