"""What agents with an actor and critics that learn from replay share: checks, the plan, what is drawn, the step of the critics."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from agents import action_masks, batches, parts, recurrent
from agents.action_values import Expectation
from agents.agent import Metrics, Plan
from agents.batches import Batch
from agents.optimizers import clip_by_global_norm
from agents.replay import Drawn
from agents.spaces import features, storage
from rlloss import ValueLoss, settled
from rlloss.checks import in_range

MakeTarget = Callable[[Any, ValueLoss | Expectation], Tensor]


def check(agent: Any) -> None:
    """Raise ValueError where such an agent's spaces, network or numbers make no sense."""
    name, space = type(agent).__name__, agent.action_space
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        raise ValueError(f"{name} chooses numbers between bounds, which {space} doesn't have for all of them; wrap the environment")
    storage(agent.observation_space)
    action_masks.refuse(name, agent.observation_space)
    recurrent.refuse(name, agent.network)
    agent.network.width(features(agent.observation_space))  # Refuses observations that it can't read.
    agent.action_values.check(name)
    in_range("discount", agent.discount, 0, 1)
    for count in ("steps", "batch_size", "update_every", "updates_per_step"):
        in_range(count, getattr(agent, count), 1)
    in_range("learning_starts", agent.learning_starts, 0)
    in_range("max_gradient_norm", agent.max_gradient_norm, 0, math.inf, above=True)
    if agent.replay.capacity < agent.batch_size:
        raise ValueError(f"replay.capacity {agent.replay.capacity} is smaller than batch_size {agent.batch_size}; raise the one or lower the other")


def plan(agent: Any, num_envs: int, *, acting: int, updating: int) -> Plan:
    """What such an agent needs in so many environments, with uniform random numbers for acting, and for updates beside those of the batch.

    Raises ValueError where memory holds too little.
    """
    length, rows = agent.replay.capacity // num_envs, agent.steps + 1
    if length < rows:
        raise ValueError(f"agent.replay.capacity {agent.replay.capacity} is too small: num_envs {num_envs} times {rows} transitions are needed")
    return Plan(
        length=length,
        acting_uniforms=acting,
        refresh_uniforms=0,
        update_uniforms=agent.batch_size + updating,
        learning_starts=agent.learning_starts,
        update_every=agent.update_every,
        updates=agent.updates_per_step,
        refresh_every=agent.target_network.every,
    )


def draw(agent: Any, state: Any, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[Drawn, Batch]:
    """Where a batch of n-step transitions lies in one run's memory [environments, length, words], and the batch."""
    drawn = agent.replay.draw(state.replay, uniforms[: agent.batch_size], tuple(memory.shape[:2]), added, progress)
    return drawn, batches.transitions(memory, drawn, added, agent.layout, agent.discount, agent.steps, next_action=False)


def step(agent: Any, state: Any, batch: Batch, make_target: MakeTarget, next_action: Tensor | None, progress: Tensor) -> tuple[Any, ValueLoss, Metrics]:
    """The state after one gradient step of the critics, the value loss with its running transform in it, and what can be told.

    `make_target` makes targets of a state, in the space of a value loss; `next_action` is what regularisers may read.
    """
    q = agent.action_values
    if parts.running(agent.value_loss):
        returns = make_target(state, Expectation(settled(agent.value_loss, state.transform)))
        (critics, target_critics), transform = q.moved([state.critics, state.target_critics], state.transform, returns)
        state = state._replace(critics=critics, target_critics=target_critics, transform=transform)
    value_loss = settled(agent.value_loss, state.transform)
    gradient, metrics = q.gradient(state.critics, value_loss, batch, make_target(state, value_loss), next_action)
    gradient, metrics["gradient/norm"] = clip_by_global_norm(gradient, agent.max_gradient_norm)
    critics, optimizer = agent.optimizer.step(state.critics, gradient, state.critic_optimizer, progress)
    return state._replace(critics=critics, critic_optimizer=optimizer), value_loss, metrics
