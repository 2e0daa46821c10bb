"""Behaviour cloning as a value: a policy that learns what was done where, by any loss for labels or for numbers."""

import math
from dataclasses import field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import action_masks, actions, parts, recurrent
from agents.agent import Metrics, Plan
from agents.heads import Linear
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.policies import Categories, Gaussian, fitting
from agents.replay import Replay, UniformReplay, decode, record
from agents.schedules import Linear as LinearSchedule
from agents.spaces import encode, features, storage
from rlloss import MSE, ClassificationLoss, CrossEntropy, Observed, Regularizer, ValueLoss, empirical_loss, frozen, total
from rlloss.checks import in_range
from rlloss.numbers import once

# What regularisers may read of a policy that is cloned.
OBSERVED = ("parameters", "action", "features")


class Imitation(Protocol):
    """How a head's outputs become an action, and how far they are from one."""

    name: str
    """That of the loss."""
    shape: tuple[int, int]
    """What the head must produce, see `agents.heads`."""

    def greedy(self, outputs: Tensor) -> Tensor:
        """Actions [batch, …], as they are stored, of outputs [batch, *shape]."""

    def loss(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The loss [batch] of outputs against the actions that were taken."""

    def told(self, outputs: Tensor, action: Tensor) -> Metrics:
        """What can be told of them."""


@frozen
class Labels:
    """Actions of categories, learned as labels.

        ℓ = Σ over the parts of an action of ℓ(x, y),  y one-hot; a loss of two classes is added up over all of them, each against the others
    """

    policy: Categories
    classification: ClassificationLoss

    name = "classification"

    @property
    def shape(self) -> tuple[int, int]:
        """A logit for each category of each part."""
        return sum(self.policy.counts), 1

    def greedy(self, outputs: Tensor) -> Tensor:
        """The likeliest category of each part."""
        chosen = [logits.argmax(-1) for logits in self._split(outputs)]
        return torch.stack(chosen, -1).reshape(len(outputs), *self.policy.shape)

    def loss(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The sum [batch] of the losses of all parts."""
        pairs = zip(self._split(outputs), action.reshape(len(action), -1).unbind(-1), strict=True)
        return sum(self._loss(logits, column) for logits, column in pairs)

    def _loss(self, logits: Tensor, category: Tensor) -> Tensor:
        label = category[:, None] == torch.arange(logits.shape[-1], device=logits.device)
        losses = self.classification(logits, label.to(logits.dtype))
        return losses.sum(-1) if losses.ndim > 1 else losses

    def told(self, outputs: Tensor, action: Tensor) -> Metrics:
        """The share of actions that are right in all of their parts."""
        right = (self.greedy(outputs) == action).reshape(len(action), -1).all(-1)
        return {"imitation/accuracy": right.float().mean()}

    def _split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs.squeeze(-1).split(self.policy.counts, -1)


@frozen
class Numbers:
    """Actions of numbers, learned as values: any value loss of each number, added up.

        ℓ = Σᵢ ℓ_V(x, aᵢ);  the Gaussian likelihood with `loss/value=gaussian_nll`
    """

    numbers: tuple[int, ...]
    value_loss: ValueLoss

    name = "value"

    @property
    def shape(self) -> tuple[int, int]:
        """What the value loss asks for each number."""
        return math.prod(self.numbers), self.value_loss.outputs

    def greedy(self, outputs: Tensor) -> Tensor:
        """The expected numbers."""
        return self.value_loss.value(outputs).reshape(len(outputs), *self.numbers)

    def loss(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The sum [batch] of the losses of all numbers."""
        return self.value_loss(outputs, self.value_loss.of_return(action.flatten(1))).sum(-1)

    def told(self, outputs: Tensor, action: Tensor) -> Metrics:
        """How far a number is from that of the action, on average."""
        return {"imitation/absolute_error": (self.greedy(outputs) - action).abs().mean()}


class CloningState(NamedTuple):
    """All that learning changes."""

    parameters: Parameters
    optimizer: NamedTuple
    replay: Any


@frozen
class Cloning:
    """A policy that does what was done, learned from recorded transitions: see `agents.recorded`.

        θ ← θ − η ∇ (1/n Σ w·ℓ(π(s; θ), a) + Σₖ λₖΩₖ)

    ℓ is `classification` where actions are categories or bits (`Labels`), and `value_loss` where they are numbers (`Numbers`).
    Counts of steps are transitions shown; every `update_every` of them, `updates_per_step` gradient steps are made. A prioritized
    replay draws in proportion to this loss.

    Source: Pomerleau, ALVINN: an autonomous land vehicle in a neural network (1988).
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    batch_size: int = 128
    learning_starts: int = 1000
    update_every: int = 1
    updates_per_step: int = 1
    max_gradient_norm: float = 10.0
    network: Network = MLP()
    optimizer: Optimizer = Adam(schedule=LinearSchedule(1.0, 0.0))
    classification: ClassificationLoss = CrossEntropy()
    value_loss: ValueLoss = MSE()
    replay: Replay = UniformReplay()
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    imitates = True  # It makes no sense of actions of its own.

    def __post_init__(self) -> None:
        storage(self.observation_space)
        actions.storage(self.action_space)
        recurrent.refuse("Cloning", self.network)
        action_masks.refuse("Cloning", self.observation_space)
        self.network.width(features(self.observation_space))  # Refuses observations that it can't read.
        for name, low in {"batch_size": 1, "learning_starts": 0, "update_every": 1, "updates_per_step": 1}.items():
            in_range(name, getattr(self, name), low)
        in_range("max_gradient_norm", self.max_gradient_norm, 0, math.inf, above=True)
        if parts.running(self.value_loss):
            raise ValueError("value_loss.transform follows returns, but Cloning learns actions; choose loss/value/transform=identity")
        self._refuse_unread()
        parts.check("Cloning", self.value_loss, self.regularizers, OBSERVED, ("classification", "value", "total"))

    def _refuse_unread(self) -> None:
        """Raise ValueError if another loss was chosen than the default one, where it isn't read."""
        numbers = isinstance(self.action_space, spaces.Box)
        name, default, read = ("classification", CrossEntropy(), "value") if numbers else ("value_loss", MSE(), "classification")
        if (chosen := getattr(self, name)) != default:
            said = f"{name} {type(chosen).__name__} isn't read, since {type(self.action_space).__name__} actions are learned by loss/{read}"
            raise ValueError(f"{said}; choose that one, and leave this one at {type(default).__name__}")

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return record(*storage(self.observation_space), action=actions.storage(self.action_space))

    @property
    def imitation(self) -> Imitation:
        """That of the action space."""
        policy = fitting(self.action_space, Gaussian())
        return Labels(policy, self.classification) if isinstance(policy, Categories) else Numbers(policy.shape, self.value_loss)

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where memory holds too little."""
        if (length := self.replay.capacity // num_envs) < 1:
            raise ValueError(f"agent.replay.capacity {self.replay.capacity} is too small: num_envs {num_envs} transitions are needed")
        return Plan(
            length=length,
            acting_uniforms=0,
            refresh_uniforms=0,
            update_uniforms=self.batch_size,
            learning_starts=self.learning_starts,
            update_every=self.update_every,
            updates=self.updates_per_step,
            refresh_every=0,
        )

    def init(self, generator: torch.Generator, slots: int) -> CloningState:
        """The state before the first update, with memory for so many records."""
        shape = features(self.observation_space)
        head = Linear().init(generator, self.network.width(shape), self.imitation.shape)
        parameters = self.network.init(generator, shape) | named("head.", head)
        return CloningState(parameters, self.optimizer.init(parameters), self.replay.init(slots))

    def features(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """What the head reads, [batch, width], of stored observations [batch, …]."""
        return self.network(parameters, encode(self.observation_space, observation))

    def of_actions(self, parameters: Parameters, read: Tensor) -> Tensor:
        """The head's outputs for features [batch, width]."""
        return Linear()(part("head.", parameters), read, self.imitation.shape)

    def act(self, state: CloningState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy actions [environments, …], and 1 for how likely they were."""
        said = self.of_actions(state.parameters, self.features(state.parameters, observation))
        return self.imitation.greedy(said), torch.ones_like(said[:, 0, 0])

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: CloningState) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""
        self.replay.write(memory, time, records, state.replay)

    def refresh(self, state: CloningState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> CloningState:
        """The state unchanged."""
        return state

    def update(self, state: CloningState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[CloningState, Metrics]:
        """One gradient step on a batch drawn from memory [environments, length, words], and what can be told of it."""
        drawn = self.replay.draw(state.replay, uniforms, tuple(memory.shape[:2]), added, progress)
        seen = decode(once(memory[drawn.environment, drawn.slot]), self.layout)

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor, Tensor]]:
            read = self.features(parameters, seen.observation)
            said = self.of_actions(parameters, read)
            losses = self.imitation.loss(said, seen.action)
            observed = Observed(parameters, action=seen.action, features=read)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            loss, terms = total({self.imitation.name: empirical_loss(losses, drawn.weight), **penalties})
            return loss, (terms, said, losses)

        gradient, (loss, (terms, said, losses)) = torch.func.grad_and_value(objective, has_aux=True)(state.parameters)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss} | self.imitation.told(said, seen.action)
        gradient, metrics["gradient/norm"] = clip_by_global_norm(gradient, self.max_gradient_norm)
        parameters, optimizer = self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        replay = self.replay.learned(state.replay, drawn, memory.shape[1], losses)
        return CloningState(parameters, optimizer, replay), metrics

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return {name: float(metric) for name, metric in metrics.items()}
