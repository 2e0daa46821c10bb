"""Action masks: which actions a state allows, said by an environment, kept with its observations, obeyed by agents."""

import math
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.spaces import split, unpacked

KEY = "action_mask"


class ActionMask(gymnasium.Wrapper):
    """Observes {"action_mask": 1 for each action that is allowed, "observation": …}, the mask as `info["action_mask"]` says it.

    That of a MultiDiscrete action is one after the other for all of its parts. Raises ValueError where info has none.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        mask = spaces.MultiBinary(sum(counts(env.action_space)))
        self.observation_space = spaces.Dict({KEY: mask, "observation": env.observation_space})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first observation of an episode, and info."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._masked(observation, info), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """What a step brings."""
        observation, *rest, info = self.env.step(action)
        return self._masked(observation, info), *rest, info

    def _masked(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if KEY not in info:
            raise ValueError(f"info has no {KEY}, only {', '.join(map(str, info)) or 'nothing'}; leave out the wrapper action_mask")
        mask = info[KEY]
        mask = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, (tuple, list)) else np.ravel(mask)
        if mask.shape != (expected := self.observation_space[KEY].shape):
            raise ValueError(f"info's {KEY} has {len(mask)} entries, but there are {expected[0]} actions")
        return {KEY: mask.astype(np.int8), "observation": observation}


def counts(action_space: spaces.Space) -> tuple[int, ...]:
    """How many actions a mask has entries for, in each part of an action; raises ValueError for actions that aren't counted."""
    if isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete)):
        return tuple(int(n) for n in np.ravel(action_space.n if isinstance(action_space, spaces.Discrete) else action_space.nvec))
    raise ValueError(f"an {KEY} is for Discrete or MultiDiscrete actions, got {action_space}")


def carries(space: spaces.Space) -> bool:
    """Whether observations carry a mask."""
    return isinstance(space, spaces.Dict) and KEY in space.spaces


def check(space: spaces.Space, action_space: spaces.Space) -> None:
    """Raise ValueError where observations carry a mask that doesn't fit the actions."""
    if carries(space) and (entries := math.prod(space[KEY].shape)) != (expected := sum(counts(action_space))):
        raise ValueError(f"the observation's {KEY} has {entries} entries, but there are {expected} actions")


def refuse(agent: str, space: spaces.Space) -> None:
    """Raise ValueError if an agent of this name, which obeys no mask, would get one."""
    if carries(space):
        raise ValueError(f"observations carry an {KEY}, which {agent} doesn't obey; leave it out, or choose another agent, such as dqn or ppo")


def without(space: spaces.Space) -> spaces.Space:
    """The space of observations without their mask, which is no feature: that of what is left where that is one thing."""
    if not carries(space):
        return space
    left = OrderedDict((key, part) for key, part in space.items() if key != KEY)  # Of an ordered one Gymnasium keeps the order.
    return next(iter(left.values())) if len(left) == 1 else spaces.Dict(left)


def _taken_apart(space: spaces.Dict, observation: Tensor) -> dict[str, Tensor]:
    return dict(zip(space.keys(), split(space, observation), strict=True))


def observed(space: spaces.Space, observation: Tensor) -> Tensor:
    """Stored observations [batch, …] without their mask, as those of the space `without` it."""
    if not carries(space):
        return observation
    left = [packed for key, packed in _taken_apart(space, observation).items() if key != KEY]
    return unpacked(without(space), torch.cat(left, 1))


def allowed(space: spaces.Space, action_space: spaces.Space, observation: Tensor) -> Tensor | None:
    """Which actions stored observations [batch, …] allow, bool [batch, Σ counts]; None where they carry no mask.

    Where nothing is allowed, as behind the end of an episode, everything is.
    """
    if not carries(space):
        return None
    mask = unpacked(space[KEY], _taken_apart(space, observation)[KEY]).flatten(1) > 0
    return torch.cat([part | ~part.any(-1, keepdim=True) for part in mask.split(counts(action_space), -1)], -1)
