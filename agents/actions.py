"""What a Gymnasium action space means for storage, and for an environment that takes actions.

Agents count categories from 0, and see bounded numbers between −1 and 1; environments have their own.
"""

from collections.abc import Callable

import numpy as np
from gymnasium import spaces

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
    return lambda actions: actions + space.start


def storing(space: spaces.Space) -> Take:
    """What turns actions [count, …] that environments of this space take into stored ones, as `taking` backwards."""
    if isinstance(space, spaces.Box):
        middle, half, _ = _range(space)
        return lambda actions: ((actions - middle) / half).astype(np.float32)
    start = getattr(space, "start", 0)
    return lambda actions: (actions - start).astype(np.int32)


def _within(space: spaces.Box) -> Take:
    low, high, dtype = space.low, space.high, space.dtype
    middle, half, bounded = _range(space)
    least, most = np.where(bounded, -1, low), np.where(bounded, 1, high)

    def take(actions: np.ndarray) -> np.ndarray:
        return np.clip(middle + half * np.clip(actions, least, most), low, high).astype(dtype)

    return take


def _range(space: spaces.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which environment's number each dimension's stored 0 is, how much its 1 is more, and whether it is bounded."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low.astype(float), space.high.astype(float)
    return np.where(bounded, (low + high) / 2, 0), np.where(bounded, (high - low) / 2, 1), bounded
