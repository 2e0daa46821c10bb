"""Replay memory: preallocated tensors of packed records, one write a step, one gather a batch.

A transition is one record, see `agents.records`, so that drawing one touches one stretch of memory and not
seven. Every environment has a ring of its own, so that what follows a record in its ring followed it in time.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from agents import priorities, records
from agents.priorities import Priorities
from agents.records import WORD, decode_field
from agents.schedules import Linear, Schedule
from rlloss.checks import in_range
from rlloss.frozen import frozen
from rlloss.numbers import once, reduced


class Transitions(NamedTuple):
    """One-step transitions, the first dimensions are those of the batch.

    `terminated` is 1 where the environment ended the episode; `truncated` where only time ran out:
    `next_observation` is then the true last observation, whose value is bootstrapped; None where the
    rows behind tell it, see `agents.frames`. `probability` is that with which the behaviour chose the action, or its density. `remembered`
    is what a policy with memory remembered before it saw `observation`; None for one without.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    probability: Tensor
    next_observation: Tensor | None = None
    remembered: Tensor | None = None


def record(shape: tuple[int, ...], dtype: torch.dtype, following: bool = True, action: tuple[tuple[int, ...], str] = ((), "int32"), remembers: int = 0) -> np.dtype:
    """The layout of one transition for observations of this shape and dtype, with the next one if `following`, and so many numbers remembered."""
    observation, number = np.dtype((str(dtype).removeprefix("torch."), shape)), np.dtype("float32")
    fields = dict(zip(Transitions._fields, (observation, np.dtype(action[::-1]), number, number, number, number), strict=False))
    fields |= {"next_observation": observation} if following else {}
    fields |= {"remembered": np.dtype(("float32", (remembers,)))} if remembers else {}
    return records.layout(fields)


def decode(words: Tensor, layout: np.dtype) -> Transitions:
    """The fields of records [..., words]."""
    seen = Transitions(**{name: decode_field(words, layout, name) for name in layout.names})
    return seen if seen.action.is_floating_point() else seen._replace(action=seen.action.long())


def replaced(words: Tensor, layout: np.dtype, name: str, numbers: Tensor) -> Tensor:
    """Records [..., words] with other numbers [...] in a field of one number."""
    place = layout.fields[name][1] // WORD
    return torch.cat([words[..., :place], numbers.to(torch.float32)[..., None].view(torch.int32), words[..., place + 1 :]], -1)


class Drawn(NamedTuple):
    """Where the rows of a batch lie in memory [batch], and how much each counts; None for 1."""

    environment: Tensor
    slot: Tensor
    weight: Tensor | None = None


class Replay(Protocol):
    """Which transitions are kept, and which are drawn. Its state is a pytree of tensors, part of the learner's."""

    capacity: int

    def init(self, slots: int) -> Any:
        """The state before the first transition, for a memory of so many records."""

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: Any) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""

    def draw(self, state: Any, uniforms: Tensor, shape: tuple[int, int], added: Tensor, progress: Tensor) -> Drawn:
        """Where a batch lies in one run's memory of this shape (environments, length)."""

    def learned(self, state: Any, drawn: Drawn, length: int, td_error: Tensor, waits: Tensor | None = None) -> Any:
        """The state after a batch was learned with these errors [batch], except from rows that wait for what follows them, bool [batch]."""


@frozen
class UniformReplay:
    """The last `capacity` transitions, drawn uniformly with replacement. Source: Lin (1992); Mnih et al. (2015)."""

    capacity: int = 50_000

    def __post_init__(self) -> None:
        in_range("capacity", self.capacity, 1)

    def init(self, slots: int) -> tuple[()]:
        """Nothing."""
        return ()

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: Any) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""
        memory[:, :, time % memory.shape[2]] = records

    def draw(self, state: Any, uniforms: Tensor, shape: tuple[int, int], added: Tensor, progress: Tensor) -> Drawn:
        """Where a batch lies in one run's memory.

        Args:
            state: nothing.
            uniforms: [batch] in [0, 1), float64, so that every record can be met.
            shape: environments, and length of the memory.
            added: how many records were written for each environment in all, 0-dim, float64.
            progress: ignored.
        """
        filled = added.clamp(1, shape[1])  # A program is made, and tried, while memory is empty.
        place = (uniforms * (filled * shape[0])).long()
        return Drawn(place // filled.long(), place % filled.long())

    def learned(self, state: Any, drawn: Drawn, length: int, td_error: Tensor, waits: Tensor | None = None) -> Any:
        """The state unchanged."""
        return state


class Prioritized(NamedTuple):
    """The priority pᵅ of every record, 0 for those not written, and the highest that there was."""

    priorities: Priorities
    highest: Tensor


@frozen
class PrioritizedReplay:
    """The last `capacity` transitions, drawn in proportion to a power of their last error.

        P(i) = pᵢ / Σₖ pₖ,  pᵢ = (|δᵢ| + ε)^α;   wᵢ = (N·P(i))^−β / maxⱼ wⱼ

    New transitions have the highest priority that there was. The weights w correct for the preference, the
    more the larger β, a schedule; `empirical_loss` applies them to any value loss. The batch is stratified.

    Source: Schaul et al., Prioritized experience replay, arXiv 1511.05952.
    """

    capacity: int = 50_000
    alpha: float = 0.6
    beta: Schedule = Linear(0.4, 1.0)
    smallest: float = 1e-6

    def __post_init__(self) -> None:
        in_range("capacity", self.capacity, 1)
        in_range("alpha", self.alpha, 0, 1)
        in_range("smallest", self.smallest, 0, above=True)
        if isinstance(self.beta, Linear):
            in_range("beta.start", self.beta.start, 0, 1)
            in_range("beta.end", self.beta.end, 0, 1)

    def init(self, slots: int) -> Prioritized:
        """No record has a priority yet."""
        return Prioritized(priorities.none(slots), torch.ones(()))

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: Prioritized) -> None:
        """Write records as `UniformReplay` does, each with the highest priority."""
        environments, length = memory.shape[1:3]
        memory[:, :, time % length] = records
        priorities.write(state.priorities, np.arange(time % length, environments * length, length), state.highest.numpy())

    def draw(self, state: Prioritized, uniforms: Tensor, shape: tuple[int, int], added: Tensor, progress: Tensor) -> Drawn:
        """Where a batch lies in one run's memory, and its weights; arguments as in `UniformReplay`."""
        batch = uniforms.shape[0]
        strata = (torch.arange(batch, dtype=uniforms.dtype, device=uniforms.device) + uniforms) / batch
        place, priority = priorities.draw(state.priorities, strata)
        weight = (priority / once(reduced(priority, torch.amin))) ** -self.beta(progress)  # N and Σₖ pₖ stand in every weight, and cancel.
        return Drawn(once(place // shape[1]), once(place % shape[1]), once(weight))

    def learned(self, state: Prioritized, drawn: Drawn, length: int, td_error: Tensor, waits: Tensor | None = None) -> Prioritized:
        """The state with the priorities of a batch renewed from its errors [batch]; rows that wait, bool [batch], keep theirs."""
        place, priority = once(drawn.environment * length + drawn.slot), (td_error.abs() + self.smallest) ** self.alpha
        priority = once(priority if waits is None else torch.where(waits, state.priorities.priority[place], priority))
        renewed = priorities.renewed(state.priorities, place, priority)
        return Prioritized(renewed, torch.maximum(state.highest, reduced(priority, torch.amax)))


def memory(runs: int, environments: int, length: int, layout: np.dtype) -> Tensor:
    """Empty memories [runs, environments, length, words]."""
    # NumPy asks the kernel for huge pages, which suit random reads from a large memory; torch doesn't.
    return torch.from_numpy(np.zeros((runs, environments, length, layout.itemsize // WORD), np.int32))


def rows(memory: Tensor, drawn: Drawn, span: int, added: Tensor) -> tuple[Tensor, Tensor]:
    """`span` records from each drawn one on [batch, span, words], and whether each has been written yet, bool [batch, span]."""
    length = memory.shape[1]
    following = torch.arange(span, device=memory.device)
    left = (added.long() - 1 - drawn.slot) % length  # how many records of the ring came after this one
    slots = (drawn.slot[:, None] + following) % length
    return once(memory[drawn.environment[:, None], slots]), following <= left[:, None]
