"""Rollouts: all records of some steps in every environment, learned in minibatches and then replaced by the next ones."""

import numpy as np
import torch
from torch import Tensor

from agents.agent import Plan


def plan(num_envs: int, rollout: int, epochs: int, minibatches: int, *, acting: int, refreshing: int = 0, updating: int = 0, sequence: int = 1) -> Plan:
    """What learning from rollouts of so many steps needs, with uniform random numbers for acting, for one more thing when returns are made, and for updates.

    Raises ValueError where a rollout can't be shared between minibatches, in sequences of so many steps.
    """
    records = rollout * num_envs
    if rollout % sequence:
        raise ValueError(f"agent.sequence {sequence} must divide agent.rollout {rollout}")
    if records // sequence % minibatches and sequence > 1:
        sequences = f"the {records // sequence} sequences of a rollout, agent.rollout {rollout} times num_envs {num_envs} through agent.sequence {sequence}"
        raise ValueError(f"agent.minibatches {minibatches} must divide {sequences}")
    if records % minibatches:
        raise ValueError(f"agent.minibatches {minibatches} must divide the {records} transitions of a rollout, agent.rollout {rollout} times num_envs {num_envs}")
    return Plan(
        length=rollout,
        acting_uniforms=acting,
        refresh_uniforms=epochs * (records // sequence) + refreshing,
        update_uniforms=updating,
        learning_starts=0,
        update_every=records,
        updates=epochs * minibatches,
        refresh_every=records,
    )


def write(memory: np.ndarray, time: int, records: np.ndarray) -> None:
    """Write records [runs, environments, words] into the rollout `memory` [runs, environments, length, words]."""
    memory[:, :, time % memory.shape[2]] = records


def no_order(slots: int, epochs: int, minibatches: int) -> Tensor:
    """The place of `orders` before the first rollout of so many records."""
    return torch.zeros(epochs * minibatches, slots // minibatches, dtype=torch.long)


def orders(uniforms: Tensor, epochs: int, minibatches: int, sequence: int = 1) -> Tensor:
    """Which records each minibatch holds [epochs · minibatches, records of each], every record once an epoch.

    They come in whole sequences of so many steps, in an order by uniforms [epochs · records / sequence].
    """
    order = uniforms.unflatten(0, (epochs, -1)).argsort(-1)
    if sequence > 1:
        order = order[..., None] * sequence + torch.arange(sequence, device=order.device)
    return order.reshape(epochs * minibatches, -1)
