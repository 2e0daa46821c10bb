"""Deep Q-learning as a value: one run's pure `init`, `act`, `update`. Its parts are choices."""

import math
from dataclasses import field
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents.heads import Head
from agents.heads import Linear as LinearHead
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.replay import Transitions, UniformReplay
from agents.schedules import Linear
from agents.spaces import encode, features, storage
from agents.target_networks import HardCopy, TargetNetwork
from rlloss import MSE, DoubleQLearning, Observed, Regularizer, Target, ValueLoss, empirical_loss, frozen, missing, total
from rlloss.checks import in_range
from rlloss.targets import Step, action_outputs

Metrics = dict[str, Tensor]

# What regularisers may read of a DQN.
OBSERVED = ("parameters", "action_values", "action")


class DQNState(NamedTuple):
    """All that learning changes."""

    parameters: Parameters
    target_parameters: Parameters
    optimizer: NamedTuple


@frozen
class DQN:
    """Deep Q-network with any value loss, target, network, optimiser and target-network rule.

        θ ← θ − η ∇ (1/n Σ ℓ(Q(s, a; θ), y) + Σₖ λₖΩₖ),  y by `target` from the target network θ⁻

    Floats may differ between the runs of a population, everything else is structure. Counts of steps
    are environment steps; of each `update_every`, `updates_per_step` gradient steps follow.

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015).
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    batch_size: int = 128
    learning_starts: int = 1000
    update_every: int = 1
    updates_per_step: int = 1
    max_gradient_norm: float = 10.0
    epsilon: Linear = Linear(1.0, 0.05, 0.2)
    network: Network = MLP()
    head: Head = LinearHead()
    optimizer: Optimizer = Adam(schedule=Linear(1.0, 0.0))
    value_loss: ValueLoss = MSE()
    target: Target = DoubleQLearning()
    target_network: TargetNetwork = HardCopy()
    replay: UniformReplay = UniformReplay()
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    exploration_numbers = 2

    def __post_init__(self) -> None:
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"DQN needs Discrete actions, but this environment has {self.action_space}; choose another environment or wrap it")
        storage(self.observation_space)
        self.network.width(features(self.observation_space))  # Refuses observations that it can't read.
        in_range("discount", self.discount, 0, 1)
        in_range("batch_size", self.batch_size, 1)
        in_range("learning_starts", self.learning_starts, 0)
        in_range("update_every", self.update_every, 1)
        in_range("updates_per_step", self.updates_per_step, 1)
        in_range("max_gradient_norm", self.max_gradient_norm, 0, math.inf, above=True)
        in_range("epsilon.start", self.epsilon.start, 0, 1)
        in_range("epsilon.end", self.epsilon.end, 0, 1)
        if getattr(self.target, "reads", Step) is not Step:
            raise ValueError(f"target {type(self.target).__name__} needs whole trajectories, which DQN's replay doesn't keep; choose a one-step target")
        if getattr(self.target, "needs", ()):
            raise ValueError(f"target {type(self.target).__name__} needs {', '.join(self.target.needs)}, which DQN's replay doesn't keep; choose another")
        for name, regularizer in self.regularizers.items():
            if name in ("value", "total"):
                raise ValueError(f"regularizers.{name} would take the place of loss/{name} in the logs; give it another name")
            if lacking := missing(regularizer, OBSERVED):
                raise ValueError(f"regularizers.{name} needs {', '.join(lacking)}, which DQN doesn't have; leave it out")
        if self.replay.capacity < self.batch_size:
            raise ValueError(f"replay.capacity {self.replay.capacity} is smaller than batch_size {self.batch_size}; raise the one or lower the other")

    def init(self, generator: torch.Generator) -> DQNState:
        """The state before the first update: the target network equals the online network."""
        shape = features(self.observation_space)
        parameters = self.network.init(generator, shape)
        parameters |= named("head.", self.head.init(generator, self.network.width(shape), self.shape))
        return DQNState(parameters, {name: p.clone() for name, p in parameters.items()}, self.optimizer.init(parameters))

    @property
    def shape(self) -> tuple[int, int]:
        """Actions, and outputs per action."""
        return int(self.action_space.n), self.value_loss.outputs

    def outputs(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """The head's outputs [batch, actions, outputs] for stored observations [batch, …]."""
        read = self.network(parameters, encode(self.observation_space, observation))
        return self.head(part("head.", parameters), read, self.shape)

    def act(self, state: DQNState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> Tensor:
        """ε-greedy actions [environments], counted from 0.

        Args:
            state: the learner.
            observation: [environments, …].
            uniforms: [environments, 2] in [0, 1): whether to explore, and where to.
            progress: share of the training done, 0-dim.
            explore: 1 to explore with ε of the schedule, 0 for the greedy policy, 0-dim.
        """
        values = self.value_loss.value(self.outputs(state.parameters, observation))
        greedy, actions = values.argmax(-1), values.shape[-1]
        anywhere = (uniforms[:, 1] * actions).long().clamp(max=actions - 1)
        return torch.where(uniforms[:, 0] < explore * self.epsilon(progress), anywhere, greedy)

    def update(self, state: DQNState, batch: Transitions, progress: Tensor) -> tuple[DQNState, Metrics]:
        """One gradient step on a batch, and what can be told of it."""
        step = Step(
            batch.reward,
            self.discount * (1 - batch.terminated),
            batch.action,
            target=lambda: self.outputs(state.target_parameters, batch.next_observation),
            online=lambda: self.outputs(state.parameters, batch.next_observation),
            current=lambda: self.outputs(state.target_parameters, batch.observation),
        )
        target = self.target(self.value_loss, step)

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
            everything = self.outputs(parameters, batch.observation)
            outputs = action_outputs(everything, batch.action)
            observed = Observed(parameters, self.value_loss.value(everything), batch.action)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            loss, terms = total({"value": empirical_loss(self.value_loss(outputs, target)), **penalties})
            return loss, (terms, outputs)

        gradient, (loss, (terms, outputs)) = torch.func.grad_and_value(objective, has_aux=True)(state.parameters)
        gradient, norm = clip_by_global_norm(gradient, self.max_gradient_norm)
        parameters, optimizer = self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        tracked = self.target_network.track(state.target_parameters, parameters)
        value = self.value_loss.value(outputs)
        td_error = value - self.value_loss.expected(target)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss}
        metrics |= {"gradient/norm": norm, "td_error": td_error, "value": value}
        if hasattr(self.value_loss, "linear_zone"):
            metrics["linear_zone"] = self.value_loss.linear_zone(outputs, target)
        return DQNState(parameters, tracked, optimizer), metrics

    @property
    def refresh_every(self) -> int:
        """Environment steps between two calls of `refresh`; 0 for never."""
        return self.target_network.every

    def refresh(self, state: DQNState) -> DQNState:
        """The state with the target network renewed."""
        return state._replace(target_parameters=self.target_network.refresh(state.target_parameters, state.parameters))

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return {
            "schedule/epsilon": float(self.epsilon(progress)),
            "schedule/learning_rate": float(self.optimizer.rate(progress)),
        }

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        magnitude = metrics["td_error"].abs().numpy()
        p50, p95 = np.percentile(magnitude, (50, 95))
        numbers = {name: float(metric) for name, metric in metrics.items() if name.startswith("loss/")}
        numbers |= {
            "gradient/norm": float(metrics["gradient/norm"]),
            "value/mean": float(metrics["value"].mean()),
            "td_error/abs_mean": float(magnitude.mean()),
            "td_error/abs_p50": float(p50),
            "td_error/abs_p95": float(p95),
        }
        if "linear_zone" in metrics:
            numbers["td_error/linear_zone_share"] = float(metrics["linear_zone"].float().mean())
        return numbers
