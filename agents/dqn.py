"""Deep Q-learning as a value: one run's pure `init`, `act`, `update`. Its parts are choices."""

import math
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import batches, frames, heads
from agents.agent import Metrics
from agents.batches import Batch
from agents.exploration import EpsilonGreedy, Exploration
from agents.frames import Frames
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.replay import Drawn, Replay, UniformReplay, record
from agents.schedules import Linear
from agents.spaces import encode, features, storage
from agents.streams import normal, paired
from agents.target_networks import HardCopy, TargetNetwork
from rlloss import (
    MSE,
    DoubleQLearning,
    Observed,
    Regularizer,
    ReturnEstimator,
    RunningTransform,
    Target,
    ValueLoss,
    empirical_loss,
    frozen,
    missing,
    settled,
    total,
)
from rlloss.checks import in_range
from rlloss.returns import Trajectory
from rlloss.targets import Step, action_outputs

# What regularisers may read of a DQN.
OBSERVED = ("parameters", "action_values", "action", "features", "next_features")

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
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"DQN needs Discrete actions, but this environment has {self.action_space}; choose another environment or wrap it")
        storage(self.observation_space)
        self.network.width(features(self.observation_space))  # Refuses observations that it can't read.
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
        for name, regularizer in self.regularizers.items():
            if name in ("value", "total"):
                raise ValueError(f"regularizers.{name} would take the place of loss/{name} in the logs; give it another name")
            if lacking := missing(regularizer, OBSERVED):
                raise ValueError(f"regularizers.{name} needs {', '.join(lacking)}, which DQN doesn't have; leave it out")
        if self.running and not hasattr(self.value_loss, "moved"):
            raise ValueError(f"value_loss {type(self.value_loss).__name__} can't take a running transform, since it doesn't say how outputs are moved; choose another")
        if self.replay.capacity < self.batch_size:
            raise ValueError(f"replay.capacity {self.replay.capacity} is smaller than batch_size {self.batch_size}; raise the one or lower the other")

    @property
    def on_trajectories(self) -> bool:
        """Whether the target looks along sequences."""
        return getattr(self.target, "reads", Step) is Trajectory

    @property
    def running(self) -> RunningTransform | None:
        """The value loss's running transform, if it has one."""
        transform = getattr(self.value_loss, "transform", None)
        return transform if isinstance(transform, RunningTransform) else None

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        space = self.observation_space
        return record(*storage(space.frame), following=False) if isinstance(space, Frames) else record(*storage(space))

    @property
    def shape(self) -> tuple[int, int]:
        """Actions, and outputs per action."""
        return int(self.action_space.n), self.value_loss.outputs

    @property
    def noise(self) -> int:
        """Normal random numbers that one pass through the head takes."""
        return self.head.numbers(self.network.width(features(self.observation_space)), self.shape)

    @property
    def acting_numbers(self) -> tuple[int, int]:
        """Uniform random numbers that acting takes: for each environment, and for all of a run together."""
        return self.exploration.numbers(self.shape[0]), paired(self.noise)

    @property
    def learning_numbers(self) -> int:
        """Uniform random numbers that one update takes: where the batch lies, and noise for each pass."""
        return self.batch_size + PASSES * paired(self.noise)

    def init(self, generator: torch.Generator, slots: int) -> DQNState:
        """The state before the first update, with memory for so many records: the target network equals the online network."""
        shape = features(self.observation_space)
        parameters = self.network.init(generator, shape)
        parameters |= named("head.", self.head.init(generator, self.network.width(shape), self.shape))
        copy = {name: p.clone() for name, p in parameters.items()}
        return DQNState(parameters, copy, self.optimizer.init(parameters), self.replay.init(slots), self.running.init() if self.running else ())

    def features(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """What the head reads, [batch, width], of stored observations [batch, …]."""
        return self.network(parameters, encode(self.observation_space, observation))

    def outputs(self, parameters: Parameters, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """The head's outputs [batch, actions, outputs] for stored observations [batch, …]."""
        return self.head(part("head.", parameters), self.features(parameters, observation), self.shape, noise)

    def act(self, state: DQNState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments], counted from 0, and the probabilities with which they were chosen.

        Args:
            state: the learner.
            observation: [environments, …].
            uniforms: flat, `acting_numbers`, in [0, 1).
            progress: share of the training done, 0-dim.
            explore: 1 to explore, 0 for the greedy policy, 0-dim.
        """
        each = len(observation) * self.acting_numbers[0]
        noise = explore * normal(uniforms[each:])[: self.noise] if self.noise else None
        values = settled(self.value_loss, state.transform).value(self.outputs(state.parameters, observation, noise))
        return self.exploration(values, uniforms[:each].unflatten(0, (len(observation), -1)) if each else uniforms, progress, explore)

    def update(self, state: DQNState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[DQNState, Metrics]:
        """One gradient step on a batch drawn from memory [environments, length, words], and what can be told of it."""
        shape = tuple(memory.shape[:2])
        drawn = self.replay.draw(state.replay, uniforms[: self.batch_size], shape, added, progress)
        batch = self._batch(memory, drawn, added)
        numbers = uniforms[self.batch_size :].float().clamp(max=1 - 2**-24).chunk(PASSES)
        noise = tuple(normal(each)[: self.noise] for each in numbers) if self.noise else (None,) * PASSES
        state, metrics = self.learn(state, batch, progress, noise)
        # Of a sequence its first row is what was drawn.
        return state._replace(replay=self.replay.learned(state.replay, drawn, shape[1], metrics["td_error"][: self.batch_size])), metrics

    def _batch(self, memory: Tensor, drawn: Drawn, added: Tensor) -> Batch:
        """What the target reads of drawn rows."""
        where = (memory, drawn, added, self.layout, self.discount, self.steps)
        if isinstance(self.observation_space, Frames):
            count = self.observation_space.shape[0]
            return frames.sequences(*where, count) if self.on_trajectories else frames.transitions(*where, count)
        return batches.sequences(*where) if self.on_trajectories else batches.transitions(*where, "next_action" in getattr(self.target, "needs", ()))

    def learn(self, state: DQNState, batch: Batch, progress: Tensor, noise: tuple[Tensor | None, ...] = (None,) * PASSES) -> tuple[DQNState, Metrics]:
        """One gradient step on a batch, and what can be told of it."""
        target = (self._return_target if self.on_trajectories else self._step_target)(state, batch, noise)
        state = self._moved(state, target, batch.mask)
        value_loss = settled(self.value_loss, state.transform)
        reads_next = any("next_features" in regularizer.needs for regularizer in self.regularizers.values())

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
            read = self.features(parameters, batch.observation)
            everything = self.head(part("head.", parameters), read, self.shape, noise[0])
            outputs = action_outputs(everything, batch.action)
            following = self.features(parameters, batch.next_observation) if reads_next else None
            observed = Observed(parameters, value_loss.value(everything), batch.action, read, following)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            value = empirical_loss(value_loss(outputs, target), batch.weight, batch.mask)
            loss, terms = total({"value": value, **penalties})
            return loss, (terms, outputs)

        gradient, (loss, (terms, outputs)) = torch.func.grad_and_value(objective, has_aux=True)(state.parameters)
        gradient, norm = clip_by_global_norm(gradient, self.max_gradient_norm)
        parameters, optimizer = self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        tracked = self.target_network.track(state.target_parameters, parameters)
        value = value_loss.value(outputs)
        td_error = value - value_loss.expected(target)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss}
        metrics |= {"gradient/norm": norm, "td_error": td_error, "value": value}
        if hasattr(value_loss, "linear_zone"):
            metrics["linear_zone"] = value_loss.linear_zone(outputs, target)
        return state._replace(parameters=parameters, target_parameters=tracked, optimizer=optimizer), metrics

    def _step_target(self, state: DQNState, batch: Batch, noise: tuple[Tensor | None, ...]) -> Tensor:
        step = Step(
            batch.reward,
            batch.discount,
            batch.action,
            target=lambda: self.outputs(state.target_parameters, batch.next_observation, noise[1]),
            online=lambda: self.outputs(state.parameters, batch.next_observation, noise[2]),
            current=lambda: self.outputs(state.target_parameters, batch.observation, noise[3]),
            next_action=batch.next_action,
        )
        return self.target(settled(self.value_loss, state.transform), step)

    def _return_target(self, state: DQNState, batch: Batch, noise: tuple[Tensor | None, ...]) -> Tensor:
        """Targets [steps · batch] of the policy that is greedy to the target network."""
        value_loss = settled(self.value_loss, state.transform)
        with torch.no_grad():
            values = value_loss.value(self.outputs(state.target_parameters, batch.observation, noise[3]))
            following = value_loss.value(self.outputs(state.target_parameters, batch.next_observation, noise[1]))
            value = values.gather(-1, batch.action[:, None]).squeeze(-1)
            ratio = (batch.action == values.argmax(-1)) / batch.probability
            rows = (batch.reward, batch.discount, batch.truncated, value, following.amax(-1), ratio)
            estimate = self.target(Trajectory(*(row.unflatten(0, (self.steps, -1)) for row in rows)))
            return value_loss.of_return(estimate.value_target.flatten())

    def _moved(self, state: DQNState, target: Tensor, mask: Tensor | None) -> DQNState:
        """The state after a running transform has seen a batch of targets; both networks keep their values."""
        if not self.running:
            return state
        returns = settled(self.value_loss, state.transform).expected(target)
        fresh = self.running.update(state.transform, returns, mask)
        scale, shift = self.value_loss.moved(self.running.transform(state.transform), self.running.transform(fresh))

        def moved(parameters: Parameters) -> Parameters:
            return parameters | named("head.", self.head.rescaled(part("head.", parameters), scale, shift))

        return state._replace(parameters=moved(state.parameters), target_parameters=moved(state.target_parameters), transform=fresh)

    @property
    def refresh_every(self) -> int:
        """Environment steps between two calls of `refresh`; 0 for never."""
        return self.target_network.every

    def refresh(self, state: DQNState) -> DQNState:
        """The state with the target network renewed."""
        return state._replace(target_parameters=self.target_network.refresh(state.target_parameters, state.parameters))

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return self.exploration.schedules(progress) | {"schedule/learning_rate": float(self.optimizer.rate(progress))}

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
