"""Batches as a learner reads them: n-step transitions and whole sequences, from rows of replay memory."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.replay import Drawn, Transitions, decode, rows
from rlloss.targets import n_step_backup


class Batch(NamedTuple):
    """What is learned from, first dimension [rows].

    `discount` is that of `next_observation`'s value: 0 where the episode ended. A row whose `mask` is False
    doesn't count; None for all do. `next_action` is the one that was taken after `next_observation`.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Tensor
    truncated: Tensor | None = None
    probability: Tensor | None = None
    next_action: Tensor | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None


def transitions(memory: Tensor, drawn: Drawn, added: Tensor, layout: np.dtype, discount: Tensor, steps: int, next_action: bool) -> Batch:
    """n-step transitions [batch] from drawn rows of one run's memory [environments, length, words].

    A transition has fewer steps where the episode ends, is cut, or has not gone on yet. With `next_action`
    those after which no action was taken are masked, unless the episode ended there.
    """
    words, written = rows(memory, drawn, steps + next_action, added)
    seen = decode(words, layout)
    ended = seen.terminated + seen.truncated > 0
    reward, bootstrap, last = n_step_backup(
        seen.reward[:, :steps], (discount * (1 - seen.terminated))[:, :steps], (ended[:, :-1] | ~written[:, 1:])[:, : steps - 1]
    )
    batch = torch.arange(len(last), device=last.device)
    read = Batch(seen.observation[:, 0], seen.action[:, 0], reward, bootstrap, seen.next_observation[batch, last], weight=drawn.weight)
    if not next_action:
        return read
    goes_on = written[batch, last + 1] & (seen.truncated[batch, last] == 0)
    return read._replace(next_action=seen.action[batch, last + 1], mask=goes_on | (bootstrap == 0))


def sequences(memory: Tensor, drawn: Drawn, added: Tensor, layout: np.dtype, discount: Tensor, length: int) -> Batch:
    """Sequences of `length` rows from each drawn one on, flat [length · batch], time first; rows not written yet are masked."""
    words, written = rows(memory, drawn, length, added)
    seen: Transitions = decode(words.transpose(0, 1).flatten(0, 1), layout)
    mask = written.T.flatten()
    # The trajectory is cut where nothing has been written behind a row.
    follows = torch.cat([written[:, 1:], torch.zeros_like(written[:, :1])], 1).T.flatten()
    truncated = torch.where(follows, seen.truncated, torch.ones_like(seen.truncated))
    probability = torch.where(mask, seen.probability, torch.ones_like(seen.probability))  # Never a ratio of 0/0.
    weight = None if drawn.weight is None else drawn.weight.repeat(length)
    return Batch(
        seen.observation, seen.action, seen.reward, discount * (1 - seen.terminated), seen.next_observation,
        truncated, probability, weight=weight, mask=mask,
    )  # fmt: skip
