"""Parallel Q-learning as a value: no replay and no target network, but returns over whole rollouts."""

import math
from dataclasses import field
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import parts, rollouts
from agents.action_values import ActionValues, noise_of_passes, report
from agents.agent import Metrics, Plan
from agents.batches import Batch
from agents.exploration import EpsilonGreedy, Exploration
from agents.heads import Head, Linear
from agents.networks import MLP, Network, Parameters
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.replay import Transitions, decode, record
from agents.schedules import Linear as LinearSchedule
from agents.spaces import storage
from agents.streams import paired
from rlloss import MSE, Regularizer, ReturnEstimator, TDLambda, ValueLoss, frozen, settled
from rlloss.checks import in_range
from rlloss.numbers import once
from rlloss.returns import Trajectory


class PQNState(NamedTuple):
    """All that learning changes: what DQN has but for the target network, and what a rollout was made into.

    `returns` [records] are those of the rollout, `order` [minibatches, records of each] which records each
    minibatch holds, and `next` counts the minibatches.
    """

    parameters: Parameters
    optimizer: NamedTuple
    transform: tuple
    returns: Tensor
    order: Tensor
    next: Tensor


@frozen
class PQN:
    """Q-learning on rollouts of many environments, with returns instead of a target network.

        θ ← θ − η ∇ (1/n Σ ℓ(Q(s, a; θ), G) + Σₖ λₖΩₖ),  G by `target` from the network that acted

    `rollout` steps are made in each environment; then the returns of all, for the greedy policy, are computed once,
    and learned in `epochs` times `minibatches` gradient steps, each epoch in an order of its own. A network
    that normalises its layers takes the target network's place.

    Source: Gallici et al., Simplifying deep temporal difference learning, arXiv 2407.04811.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    rollout: int = 64
    epochs: int = 4
    minibatches: int = 16
    max_gradient_norm: float = 10.0
    exploration: Exploration = EpsilonGreedy()
    network: Network = MLP(layer_norm=True)
    head: Head = Linear()
    optimizer: Optimizer = Adam(schedule=LinearSchedule(1.0, 0.0))
    value_loss: ValueLoss = MSE()
    target: ReturnEstimator = TDLambda()
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.action_values.check("PQN", self.exploration, self.target)
        in_range("discount", self.discount, 0, 1)
        in_range("rollout", self.rollout, 2)
        in_range("epochs", self.epochs, 1)
        in_range("minibatches", self.minibatches, 1)
        in_range("max_gradient_norm", self.max_gradient_norm, 0, math.inf, above=True)
        if getattr(self.target, "reads", None) is not Trajectory:
            raise ValueError(f"target {type(self.target).__name__} looks at single steps, but PQN learns from rollouts; choose td_lambda or another over trajectories")

    @property
    def action_values(self) -> ActionValues:
        """Network, head, value loss and regularisers in one."""
        return ActionValues(self.observation_space, self.action_space, self.network, self.head, self.value_loss, self.regularizers)

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return record(*storage(self.observation_space))

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where a rollout can't be shared between minibatches."""
        noise, acting = paired(self.action_values.noise), self.action_values.acting_uniforms(self.exploration, num_envs)
        return rollouts.plan(num_envs, self.rollout, self.epochs, self.minibatches, acting=acting, refreshing=noise, updating=noise)

    def init(self, generator: torch.Generator, slots: int) -> PQNState:
        """The state before the first rollout of so many records."""
        parameters = self.action_values.init(generator)
        order = rollouts.no_order(slots, self.epochs, self.minibatches)
        return PQNState(parameters, self.optimizer.init(parameters), parts.init_transform(self.value_loss), torch.zeros(slots), order, torch.zeros((), dtype=torch.long))

    def act(self, state: PQNState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments], counted from 0, and the probabilities with which they were chosen; see `ActionValues.act`."""
        return self.action_values.act(self.exploration, state.parameters, state.transform, observation, uniforms, progress, explore)

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: PQNState) -> None:
        """Write records [runs, environments, words] into the rollout `memory` [runs, environments, length, words]."""
        rollouts.write(memory, time, records)

    def refresh(self, state: PQNState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> PQNState:
        """The state with the returns of a whole rollout, and with the orders in which it will be learned."""
        shape, q = memory.shape[:2], self.action_values
        shuffles, numbers = uniforms[: self.epochs * memory[..., 0].numel()], uniforms[self.epochs * memory[..., 0].numel() :]
        (noise,) = noise_of_passes(numbers, 1, q.noise)
        seen = decode(memory.flatten(0, 1), self.layout)
        # One noise for both: a next state is the following row's state, whose value must be the same.
        values, following = (q.values(state.parameters, state.transform, observation, noise) for observation in (seen.observation, seen.next_observation))
        returns = self._returns(seen, values, following, shape)
        (parameters,), transform = q.moved([state.parameters], state.transform, returns, None)
        order = rollouts.orders(shuffles, self.epochs, self.minibatches)
        return state._replace(parameters=parameters, transform=transform, returns=returns, order=order, next=torch.zeros_like(state.next))

    def _returns(self, seen: Transitions, values: Tensor, following: Tensor, shape: tuple[int, int]) -> Tensor:
        """The returns [environments · time] of records in that order, for the policy that is greedy to the values."""
        value = values.gather(-1, seen.action[:, None]).squeeze(-1)
        ratio = (seen.action == values.argmax(-1)) / seen.probability
        rows = (seen.reward, self.discount * (1 - seen.terminated), seen.truncated, value, following.amax(-1), ratio)
        estimate = self.target(Trajectory(*(once(row).unflatten(0, shape).T for row in rows)))
        return estimate.value_target.T.flatten().detach()

    def update(self, state: PQNState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[PQNState, Metrics]:
        """One gradient step on the next minibatch of the rollout, and what can be told of it."""
        chosen, q = once(state.order[state.next]), self.action_values
        seen = decode(once(memory.flatten(0, 1)[chosen]), self.layout)
        batch = Batch(seen.observation, seen.action, seen.reward, self.discount * (1 - seen.terminated), seen.next_observation)
        target = settled(self.value_loss, state.transform).of_return(once(state.returns[chosen]))
        (noise,) = noise_of_passes(uniforms, 1, q.noise)
        gradient, metrics = q.gradient(state.parameters, state.transform, batch, target, noise)
        gradient, metrics["gradient/norm"] = clip_by_global_norm(gradient, self.max_gradient_norm)
        parameters, optimizer = self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        return state._replace(parameters=parameters, optimizer=optimizer, next=state.next + 1), metrics

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return self.exploration.schedules(progress) | {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return report(metrics, self.value_loss)
