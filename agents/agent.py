"""What the training loop asks of an agent: pure functions for one run, and how often to call them."""

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.replay import Replay

Metrics = dict[str, Tensor]


class Agent(Protocol):
    """A value: a frozen dataclass whose floats are hyperparameters, everything else is structure."""

    observation_space: spaces.Space
    action_space: spaces.Space
    replay: Replay
    steps: int
    learning_starts: int
    update_every: int
    updates_per_step: int

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""

    @property
    def acting_numbers(self) -> tuple[int, int]:
        """Uniform random numbers that acting takes: for each environment, and for all of a run together."""

    @property
    def learning_numbers(self) -> int:
        """Uniform random numbers, in float64, that one update takes."""

    @property
    def refresh_every(self) -> int:
        """Environment steps between two calls of `refresh`; 0 for never."""

    def init(self, generator: torch.Generator, slots: int) -> Any:
        """The learner, a pytree of tensors, before the first update, with memory for so many records."""

    def act(self, learner: Any, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments], counted from 0, and the probabilities with which they were chosen."""

    def update(self, learner: Any, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[Any, Metrics]:
        """The learner after one gradient step on a batch from memory [environments, length, words], and what can be told of it."""

    def refresh(self, learner: Any) -> Any:
        """The learner with what is renewed between updates, such as a target network."""

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
