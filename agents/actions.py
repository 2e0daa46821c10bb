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
        return _within(space.low, space.high, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return lambda actions: actions.astype(space.dtype)
    return lambda actions: actions + space.start


def _within(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> Take:
    bounded = np.isfinite(low) & np.isfinite(high)
    middle, half = np.where(bounded, (low.astype(float) + high) / 2, 0), np.where(bounded, (high.astype(float) - low) / 2, 1)
    least, most = np.where(bounded, -1, low), np.where(bounded, 1, high)

    def take(actions: np.ndarray) -> np.ndarray:
        return np.clip(middle + half * np.clip(actions, least, most), low, high).astype(dtype)

    return take
