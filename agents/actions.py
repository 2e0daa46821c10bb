"""What a Gymnasium action space means for storage, for an environment that takes actions, and for a network that reads them.

Agents count categories from 0, and see bounded numbers between −1 and 1; environments have their own.
"""

from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.spaces import one_hot

Take = Callable[[np.ndarray], np.ndarray]


def storage(space: spaces.Space) -> tuple[tuple[int, ...], str]:
    """The shape and the dtype in which one action is kept: categories and bits as int32, numbers as float32.

    Raises ValueError for a space that is none of Discrete, MultiDiscrete, MultiBinary and Box.
    """
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return space.shape, "int32"
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return space.shape, "float32"
    raise ValueError(f"actions must be Discrete, MultiDiscrete, MultiBinary or Box of floats, got {space}; wrap the environment")


def taking(space: spaces.Space) -> Take:
    """What turns stored actions [count, …] into those that environments of this space take.

    A number a of a bounded dimension becomes low + (a + 1)/2·(high − low), after it has been cut to ±1.
    """
    if isinstance(space, spaces.Box):
        return _within(space)
    if isinstance(space, spaces.MultiBinary):
        return lambda actions: actions.astype(space.dtype)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return lambda actions: actions
    return lambda actions: actions + space.start


def storing(space: spaces.Space) -> Take:
    """What turns actions [count, …] that environments of this space take into stored ones, as `taking` backwards."""
    if isinstance(space, spaces.Box):
        middle, half, _ = _range(space)
        half = np.where(half > 0, half, 1)  # Of a number that can only be one.
        return lambda actions: ((actions - middle) / half).astype(np.float32)
    start = getattr(space, "start", 0)
    return lambda actions: (actions - start).astype(np.int32)


def encode(space: spaces.Space, action: Tensor) -> Tensor:
    """Stored actions [batch, …] as floats [batch, numbers]: categories one-hot, numbers cut as `taking` cuts them, bits as 0 and 1."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return one_hot(spaces.MultiDiscrete(np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec)), action)
    if isinstance(space, spaces.Box):
        least, most = (torch.from_numpy(limit.astype(np.float32)).to(action.device) for limit in _limits(space))
        action = torch.minimum(torch.maximum(action, least), most)
    return action.float().flatten(1)


def width(space: spaces.Space) -> int:
    """How many numbers `encode` makes of one action."""
    return encode(space, torch.zeros(1, *space.shape)).shape[1]


def _within(space: spaces.Box) -> Take:
    (middle, half, _), limits = _range(space), (*_limits(space), space.low, space.high)
    least, most, low, high = (limit.astype(float) for limit in limits)

    def take(actions: np.ndarray) -> np.ndarray:
        taken = actions.astype(float)
        # In place, since for so few numbers what surrounds the arithmetic is what takes time; so does np.clip.
        np.minimum(np.maximum(taken, least, out=taken), most, out=taken)
        taken *= half
        taken += middle
        np.minimum(np.maximum(taken, low, out=taken), high, out=taken)
        return taken.astype(space.dtype)

    return take


def _limits(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """What stored numbers are cut to."""
    bounded = _range(space)[2]
    return np.where(bounded, -1, space.low), np.where(bounded, 1, space.high)


def _range(space: spaces.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which environment's number each dimension's stored 0 is, how much its 1 is more, and whether it is bounded."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low.astype(float), space.high.astype(float)
    return np.where(bounded, (low + high) / 2, 0), np.where(bounded, (high - low) / 2, 1), bounded
