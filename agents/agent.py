"""What the training loop asks of an agent: pure functions for one run, and a plan of how often to call them."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

Metrics = dict[str, Tensor]


class Plan(NamedTuple):
    """How much a run keeps and draws, and when it learns. Steps are environment steps, those of all environments of the run."""

    length: int  # records kept of each environment
    acting_uniforms: int  # random numbers that one choice of actions takes
    refresh_uniforms: int
    update_uniforms: int
    learning_starts: int
    update_every: int
    updates: int  # in each round of updates
    refresh_every: int  # 0 for never


class Agent(Protocol):
    """A value: a frozen dataclass whose floats are hyperparameters, everything else is structure."""

    observation_space: spaces.Space
    action_space: spaces.Space

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError, naming the key to change, where that makes no sense."""

    def init(self, generator: torch.Generator, slots: int) -> Any:
        """The learner, a pytree of tensors, before the first update, with memory for so many records."""

    def act(self, learner: Any, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Actions [environments, …], stored as `agents.actions` says, and the probabilities, or densities, with which they were chosen.

        An agent with an attribute `remembers` above 0 also gets what it remembers [environments, remembers], 0 where an episode begins,
        and returns what it remembers then. It is stored in the field `remembered` of its layout.
        """

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, learner: Any) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""

    def refresh(self, learner: Any, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> Any:
        """The learner with what is renewed before a round of updates: a target network, or the targets of a rollout."""

    def update(self, learner: Any, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[Any, Metrics]:
        """The learner after one gradient step on a batch from memory [environments, length, words], and what can be told of it."""

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
