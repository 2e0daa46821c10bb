"""Deep Q-learning as a value: one run's pure `init`, `act`, `update`. Its parts are choices."""

import math
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import batches, frames, heads, parts
from agents.action_values import ActionValues, Expectation, noise_of_passes, report
from agents.agent import Metrics, Plan
from agents.batches import Batch
from agents.exploration import EpsilonGreedy, Exploration
from agents.frames import Frames
from agents.networks import MLP, Network, Parameters
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.replay import Drawn, Replay, UniformReplay, record
from agents.schedules import Linear
from agents.spaces import storage
from agents.streams import paired
from agents.target_networks import HardCopy, TargetNetwork
from rlloss import MSE, DoubleQLearning, Regularizer, ReturnEstimator, Target, ValueLoss, frozen, settled
from rlloss.checks import in_range
from rlloss.returns import Trajectory
from rlloss.targets import Step

# The passes through the network in one update: s online, s′ target, s′ online, s target.
PASSES = 4


class DQNState(NamedTuple):
    """All that learning changes."""

    parameters: Parameters
    target_parameters: Parameters
    optimizer: NamedTuple
    replay: Any
    transform: Any  # the state of the value loss's running transform; () for any other


@frozen
class DQN:
    """Deep Q-network with any value loss, target, network, head, replay, exploration, optimiser and target-network rule.

        θ ← θ − η ∇ (1/n Σ w·ℓ(Q(s, a; θ), y) + Σₖ λₖΩₖ),  y by `target` from the target network θ⁻

    One-step targets look `steps` rewards ahead. Targets over trajectories are made for all rows of sequences of
    length `steps`, for the greedy policy. Floats may differ between the runs of a population, everything else is structure.
    Counts of steps are environment steps; every `update_every` of them, `updates_per_step` gradient steps are made.

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015).
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    steps: int = 1
    batch_size: int = 128
    learning_starts: int = 1000
    update_every: int = 1
    updates_per_step: int = 1
    max_gradient_norm: float = 10.0
    exploration: Exploration = EpsilonGreedy()
    network: Network = MLP()
    head: heads.Head = heads.Linear()
    optimizer: Optimizer = Adam(schedule=Linear(1.0, 0.0))
    value_loss: ValueLoss = MSE()
    target: Target | ReturnEstimator = DoubleQLearning()
    target_network: TargetNetwork = HardCopy()
    replay: Replay = UniformReplay()
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.action_values.check("DQN", self.exploration, self.target)
        in_range("discount", self.discount, 0, 1)
        in_range("steps", self.steps, 1)
        in_range("batch_size", self.batch_size, 1)
        in_range("learning_starts", self.learning_starts, 0)
        in_range("update_every", self.update_every, 1)
        in_range("updates_per_step", self.updates_per_step, 1)
        in_range("max_gradient_norm", self.max_gradient_norm, 0, math.inf, above=True)
        if self.on_trajectories and self.steps < 2:
            raise ValueError(f"steps must be at least 2 for {type(self.target).__name__}, which looks along sequences of that length, got {self.steps}")
        if lacking := set(getattr(self.target, "needs", ())) - {"next_action"}:
            raise ValueError(f"target {type(self.target).__name__} needs {', '.join(sorted(lacking))}, which DQN's replay doesn't keep; choose another")
        if self.replay.capacity < self.batch_size:
            raise ValueError(f"replay.capacity {self.replay.capacity} is smaller than batch_size {self.batch_size}; raise the one or lower the other")

    @property
    def on_trajectories(self) -> bool:
        """Whether the target looks along sequences."""
        return getattr(self.target, "reads", Step) is Trajectory

    @property
    def action_values(self) -> ActionValues:
        """Network, head, value loss and regularisers in one."""
        return ActionValues(self.observation_space, self.action_space, self.network, self.head, self.value_loss, self.regularizers)

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        space = self.observation_space
        return record(*storage(space.frame), following=False) if isinstance(space, Frames) else record(*storage(space))

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where memory holds too little."""
        frames = self.observation_space.shape[0] if isinstance(self.observation_space, Frames) else 1
        length, rows = self.replay.capacity // num_envs, self.steps + frames
        if length < rows:
            raise ValueError(f"agent.replay.capacity {self.replay.capacity} is too small: num_envs {num_envs} times {rows} transitions are needed")
        return Plan(
            length=length,
            acting_uniforms=self.action_values.acting_uniforms(self.exploration, num_envs),
            refresh_uniforms=0,
            update_uniforms=self.batch_size + PASSES * paired(self.action_values.noise),  # where the batch lies, and noise
            learning_starts=self.learning_starts,
            update_every=self.update_every,
            updates=self.updates_per_step,
            refresh_every=self.target_network.every,
        )

    def init(self, generator: torch.Generator, slots: int) -> DQNState:
        """The state before the first update, with memory for so many records: the target network equals the online network."""
        parameters = self.action_values.init(generator)
        copy = {name: p.clone() for name, p in parameters.items()}
        return DQNState(parameters, copy, self.optimizer.init(parameters), self.replay.init(slots), parts.init_transform(self.value_loss))

    def act(self, state: DQNState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments], counted from 0, and the probabilities with which they were chosen; see `ActionValues.act`."""
        return self.action_values.act(self.exploration, state.parameters, state.transform, observation, uniforms, progress, explore)

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: DQNState) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""
        self.replay.write(memory, time, records, state.replay)

    def refresh(self, state: DQNState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> DQNState:
        """The state with the target network renewed."""
        return state._replace(target_parameters=self.target_network.refresh(state.target_parameters, state.parameters))

    def update(self, state: DQNState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[DQNState, Metrics]:
        """One gradient step on a batch drawn from memory [environments, length, words], and what can be told of it."""
        shape = tuple(memory.shape[:2])
        drawn = self.replay.draw(state.replay, uniforms[: self.batch_size], shape, added, progress)
        batch = self._batch(memory, drawn, added)
        state, metrics = self.learn(state, batch, progress, noise_of_passes(uniforms[self.batch_size :], PASSES, self.action_values.noise))
        error, waits = metrics["td_error"][: self.batch_size], None  # Of a sequence its first row is what was drawn.
        if batch.mask is not None:
            mask = batch.mask[: self.batch_size]
            error = torch.where(mask, error, torch.zeros_like(error))
            # Masked, but only until more rows have been written behind it.
            waits = ~mask & ((added.long() - 1 - drawn.slot) % shape[1] <= self.steps)
        return state._replace(replay=self.replay.learned(state.replay, drawn, shape[1], error, waits)), metrics

    def _batch(self, memory: Tensor, drawn: Drawn, added: Tensor) -> Batch:
        """What the target reads of drawn rows."""
        where = (memory, drawn, added, self.layout, self.discount, self.steps)
        if isinstance(self.observation_space, Frames):
            count = self.observation_space.shape[0]
            batch = frames.sequences(*where, count) if self.on_trajectories else frames.transitions(*where, count)
        else:
            batch = batches.sequences(*where) if self.on_trajectories else batches.transitions(*where, "next_action" in getattr(self.target, "needs", ()))
        if batch.mask is None:
            return batch
        # The gradient of a loss that doesn't count is 0 times that of its error, and NaN where the error is.
        return batch._replace(reward=torch.where(batch.mask, batch.reward, torch.zeros_like(batch.reward)))

    def learn(self, state: DQNState, batch: Batch, progress: Tensor, noise: tuple[Tensor | None, ...] = (None,) * PASSES) -> tuple[DQNState, Metrics]:
        """One gradient step on a batch, and what can be told of it."""
        q, make_target = self.action_values, self._return_target if self.on_trajectories else self._step_target
        if parts.running(self.value_loss):
            returns = make_target(state, batch, noise, Expectation(settled(self.value_loss, state.transform)))
            (parameters, tracked), transform = q.moved([state.parameters, state.target_parameters], state.transform, returns, batch.mask)
            state = state._replace(parameters=parameters, target_parameters=tracked, transform=transform)
        target = make_target(state, batch, noise, settled(self.value_loss, state.transform))
        gradient, metrics = q.gradient(state.parameters, state.transform, batch, target, noise[0])
        gradient, metrics["gradient/norm"] = clip_by_global_norm(gradient, self.max_gradient_norm)
        parameters, optimizer = self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        tracked = self.target_network.track(state.target_parameters, parameters)
        return state._replace(parameters=parameters, target_parameters=tracked, optimizer=optimizer), metrics

    def _step_target(self, state: DQNState, batch: Batch, noise: tuple[Tensor | None, ...], value_loss: ValueLoss | Expectation) -> Tensor:
        q = self.action_values
        step = Step(
            batch.reward,
            batch.discount,
            batch.action,
            target=lambda: q.outputs(state.target_parameters, batch.next_observation, noise[1]),
            online=lambda: q.outputs(state.parameters, batch.next_observation, noise[2]),
            current=lambda: q.outputs(state.target_parameters, batch.observation, noise[3]),
            next_action=batch.next_action,
            allowed=q.allowed(batch.observation),
            next_allowed=q.allowed(batch.next_observation),
        )
        return self.target(value_loss, step)

    def _return_target(self, state: DQNState, batch: Batch, noise: tuple[Tensor | None, ...], value_loss: ValueLoss | Expectation) -> Tensor:
        """Targets [steps · batch] of the policy that is greedy to the target network."""
        with torch.no_grad():
            # One noise for both: a next state is the following row's state, whose value must be the same.
            values = self.action_values.values(state.target_parameters, state.transform, batch.observation, noise[1])
            following = self.action_values.values(state.target_parameters, state.transform, batch.next_observation, noise[1])
            value = values.gather(-1, batch.action[:, None]).squeeze(-1)
            ratio = (batch.action == values.argmax(-1)) / batch.probability
            rows = (batch.reward, batch.discount, batch.truncated, value, following.amax(-1), ratio)
            estimate = self.target(Trajectory(*(row.unflatten(0, (self.steps, -1)) for row in rows)))
            return value_loss.of_return(estimate.value_target.flatten())

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return self.exploration.schedules(progress) | {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return report(metrics, self.value_loss)
