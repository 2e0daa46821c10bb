"""What a Gymnasium space means for storage and for a network."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def storage(space: spaces.Space) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype in which one observation is kept: images as uint8, categories as int32.

    Raises ValueError for a space that is neither Box nor Discrete.
    """
    if isinstance(space, spaces.Discrete):
        return (), torch.int32
    if isinstance(space, spaces.Box):
        return space.shape, torch.uint8 if space.dtype == np.uint8 else torch.float32
    raise ValueError(f"observations must be Box or Discrete, got {space}; wrap the environment to flatten them")


def features(space: spaces.Space) -> tuple[int, ...]:
    """The shape of one encoded observation, as a network sees it."""
    return (int(space.n),) if isinstance(space, spaces.Discrete) else space.shape


def encode(space: spaces.Space, observation: Tensor) -> Tensor:
    """Observations [batch, …] as floats [batch, *features(space)]: categories one-hot, bytes as shares of 255."""
    if isinstance(space, spaces.Discrete):
        # Not one_hot: it inspects the numbers, which can't be done under vmap.
        categories = torch.arange(int(space.n), device=observation.device) + int(space.start)
        return (observation[..., None] == categories).float()
    return observation.float() / 255 if observation.dtype == torch.uint8 else observation

