"""Observations of several frames. DQN stores each frame once: memory keeps a row's newest frame, batches stack the rows before it.

What follows a row in its ring is then also its next observation. The true last frame of an episode that was
cut is stored nowhere, so nothing is learned from the step to it.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.batches import Batch
from agents.records import decode_field
from agents.replay import Drawn, Transitions, decode
from rlloss.numbers import once
from rlloss.targets import n_step_backup


class Frames(spaces.Box):
    """The last `count` frames of an episode as one observation [count, …], the newest last."""

    def __init__(self, frame: spaces.Space, count: int) -> None:
        if not isinstance(frame, spaces.Box):
            raise ValueError(f"frame_stack {count} needs Box observations, this environment has {frame}; set frame_stack=1")
        super().__init__(np.stack([frame.low] * count), np.stack([frame.high] * count), dtype=frame.dtype)
        self.frame = frame

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Frames) and super().__eq__(other)


class Stacked(gymnasium.ObservationWrapper):
    """Hands over the last `count` frames of the episode; at its start they are all the first one."""

    def __init__(self, environment: gymnasium.Env, count: int) -> None:
        super().__init__(environment)
        self.observation_space = Frames(environment.observation_space, count)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The first frame, as often as a stack has frames."""
        frame, information = self.env.reset(**options)
        self.stack = np.stack([frame] * len(self.observation_space.low))
        return self.stack, information

    def observation(self, frame: np.ndarray) -> np.ndarray:
        """The stack moved on by one frame."""
        self.stack = np.concatenate([self.stack[1:], frame[None]])
        return self.stack


class Window(NamedTuple):
    """Rows from each drawn one on, [batch, span + 1], the last for its observation and action alone.

    `place` [batch, span + 1, count] says where in `words` each row's frames lie. `usable` [batch, span] are the rows that can be learned
    from: their stack is known, and their next observation is too, or doesn't matter because the episode ended there.
    """

    words: Tensor
    place: Tensor
    seen: Transitions
    usable: Tensor

    def observation(self, place: Tensor, layout: np.dtype) -> Tensor:
        """The stacks [batch, n, count, …] of frames at `place` [batch, n, count]."""
        batch = torch.arange(len(place), device=place.device)[:, None, None]
        return decode_field(self.words[batch, place], layout, "observation")  # Whole words are faster to index than bytes.


def window(memory: Tensor, drawn: Drawn, span: int, added: Tensor, layout: np.dtype, count: int) -> Window:
    """`span` records from each drawn one on, one more, and those before it that hold frames of its stack."""
    length, offset = memory.shape[1], torch.arange(1 - count, span + 1, device=memory.device)
    left = ((added.long() - 1 - drawn.slot) % length)[:, None]  # how many records of the ring came after this one
    oldest = offset == left + 1 - added.clamp(max=length).long()
    words = once(memory[drawn.environment[:, None], (drawn.slot[:, None] + offset) % length])
    seen = decode(words, layout)
    ended = seen.terminated + seen.truncated > 0
    # What came before the oldest row has been overwritten, unless it's the first of all.
    first = oldest | torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
    place = [torch.arange(count - 1, count + span, device=memory.device).expand(len(left), -1)]
    known = torch.ones_like(place[0], dtype=torch.bool)
    for _ in range(count - 1):
        known = known & ~(oldest & (added > length)).gather(1, place[-1])
        place.append(place[-1] - (~first).gather(1, place[-1]).long())
    seen = Transitions(*(field[:, count - 1 :] for field in seen if field is not None))
    written = offset[count - 1 :] <= left
    followed = (seen.truncated[:, :-1] == 0) & written[:, 1:]
    usable = written[:, :-1] & known[:, :-1] & ((seen.terminated[:, :-1] > 0) | followed)
    return Window(words, torch.stack(place[::-1], -1), seen, usable)


def transitions(memory: Tensor, drawn: Drawn, added: Tensor, layout: np.dtype, discount: Tensor, steps: int, count: int) -> Batch:
    """n-step transitions [batch] from drawn rows of one run's memory [environments, length, words], stacks of `count` frames.

    A transition has fewer steps where the episode ends, and before a row from which nothing can be learned; its bootstrap is
    that row's own observation. Where that is its first row, it is masked, and its error is but a guess of its priority.
    """
    found = window(memory, drawn, steps, added, layout, count)
    seen, usable = found.seen, found.usable
    over = (seen.terminated[:, : steps - 1] > 0) | ~usable[:, 1:] | ~usable[:, :1]
    reward, bootstrap, last = n_step_backup(seen.reward[:, :steps], (discount * (1 - seen.terminated))[:, :steps], over)
    batch, following = torch.arange(len(last), device=last.device), last + usable[:, 0]
    place = torch.stack([found.place[:, 0], found.place[batch, following]], 1)
    observation, next_observation = found.observation(place, layout).unbind(1)
    next_action = seen.action[batch, following]
    return Batch(observation, seen.action[:, 0], reward, bootstrap, next_observation, next_action=next_action, weight=drawn.weight, mask=usable[:, 0])


def sequences(memory: Tensor, drawn: Drawn, added: Tensor, layout: np.dtype, discount: Tensor, length: int, count: int) -> Batch:
    """Sequences of `length` rows from each drawn one on, flat [length · batch], time first; cut before rows that are masked."""
    found = window(memory, drawn, length, added, layout, count)
    observation, usable = found.observation(found.place, layout), found.usable
    fields = (field[:, :length] for field in found.seen._replace(observation=observation) if field is not None)
    now = Transitions(*(field.transpose(0, 1).flatten(0, 1) for field in fields))
    following = observation[:, 1:].transpose(0, 1).flatten(0, 1)
    mask = usable.T.flatten()
    truncated = 1 - torch.cat([usable[:, 1:], torch.zeros_like(usable[:, :1])], 1).T.flatten().float()
    probability = torch.where(mask, now.probability, torch.ones_like(now.probability))  # Never a ratio of 0/0.
    weight = None if drawn.weight is None else drawn.weight.repeat(length)
    return Batch(now.observation, now.action, now.reward, discount * (1 - now.terminated), following, truncated, probability, weight=weight, mask=mask)
