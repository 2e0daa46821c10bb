"""What agents with an actor and critics that learn from replay share: checks, the plan, what is drawn."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from agents import batches
from agents.agent import Plan
from agents.batches import Batch
from agents.frames import Frames
from agents.replay import Drawn
from agents.spaces import features, storage
from rlloss.checks import in_range


def check(agent: Any) -> None:
    """Raise ValueError where such an agent's spaces, network or numbers make no sense."""
    name, space = type(agent).__name__, agent.action_space
    if isinstance(agent.observation_space, Frames):
        raise ValueError(f"{name} keeps whole observations; set env.frame_stack=1, and with env.backend=gymnasium stack by +env/wrapper=frame_stack")
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        raise ValueError(f"{name} chooses numbers between bounds, which {space} doesn't have for all of them; wrap the environment")
    storage(agent.observation_space)
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
