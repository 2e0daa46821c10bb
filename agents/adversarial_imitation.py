"""Generative adversarial imitation as a value: an actor and a critic whose reward is how much they are taken for the demonstrated policy."""

from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import softplus

from agents import action_masks, actions, recurrent
from agents.actor_critic import ActorCritic, ActorCriticState
from agents.agent import Metrics, Plan
from agents.demonstrations import Demonstrations
from agents.heads import Linear
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer
from agents.replay import decode, replaced
from agents.spaces import encode, features
from rlloss import BinaryCrossEntropy, ClassificationLoss, empirical_loss, frozen
from rlloss.numbers import once


class GAILState(NamedTuple):
    """All that learning changes: the actor-critic's state, and the discriminator's parameters with their optimiser's state."""

    learner: ActorCriticState
    discriminator: Parameters
    optimizer: NamedTuple


@frozen
class GAIL:
    """An actor-critic that imitates demonstrations: a discriminator D tells its actions from theirs, and is its reward.

        r(s, a) = −log(1 − D(s, a)),  D = σ(x),  for all of a rollout before returns are made of it
        x ← x − η ∇ 1/2n (Σ ℓ(x(s, a), 0) over a minibatch of the rollout + Σ ℓ(x(s, a), 1) over as many demonstrated pairs)

    The environment's own reward is never read. D is the probability that a pair was demonstrated; in the paper it is that
    of the other kind. This reward is positive, which favours long episodes whatever is done in them. Every gradient step of the
    actor-critic comes with one of the discriminator's on the same minibatch. `learner` is any `ActorCritic`; `network`, `optimizer` and
    `classification`, a loss ℓ of two classes, are the discriminator's, whose network reads observation and action in one row.

    Source: Ho and Ermon, Generative adversarial imitation learning, arXiv 1606.03476.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    demonstrations: Demonstrations
    learner: ActorCritic
    network: Network = MLP(activation="tanh")
    optimizer: Optimizer = Adam()
    classification: ClassificationLoss = BinaryCrossEntropy()

    def __post_init__(self) -> None:
        self.demonstrations.check(self.observation_space, self.action_space)
        recurrent.refuse("GAIL's discriminator", self.network)
        action_masks.refuse("GAIL's discriminator", self.observation_space)
        self.network.width(self.width)  # Refuses what it can't read.
        two = torch.zeros(2, 2)
        if self.classification(two, two + 0.5).shape != two.shape:
            raise ValueError(f"classification {type(self.classification).__name__} is of several classes, but GAIL tells two apart; choose loss/classification=binary_cross_entropy or binary_focal")

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return self.learner.layout

    @property
    def remembers(self) -> int:
        """How many numbers the actor-critic remembers of each episode."""
        return self.learner.remembers

    @property
    def width(self) -> tuple[int]:
        """How many numbers the discriminator reads."""
        return (int(np.prod(features(self.observation_space))) + actions.width(self.action_space),)

    def plan(self, num_envs: int) -> Plan:
        """The actor-critic's, with a random number for each demonstrated pair of a batch."""
        try:
            plan = self.learner.plan(num_envs)
        except ValueError as error:
            raise ValueError(str(error).replace("agent.", "agent.learner.")) from error
        return plan._replace(update_uniforms=plan.update_uniforms + plan.length * num_envs // self.learner.minibatches)

    def init(self, generator: torch.Generator, slots: int) -> GAILState:
        """The state before the first rollout of so many records."""
        learner = self.learner.init(generator, slots)
        head = Linear().init(generator, self.network.width(self.width), (1, 1))
        discriminator = self.network.init(generator, self.width) | named("head.", head)
        return GAILState(learner, discriminator, self.optimizer.init(discriminator))

    def logits(self, discriminator: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """The discriminator's x [batch] for stored observations and actions [batch, …]."""
        seen, done = encode(self.observation_space, observation).flatten(1), actions.encode(self.action_space, action)
        read = self.network(discriminator, torch.cat([seen, done], 1))
        return Linear()(part("head.", discriminator), read, (1, 1)).flatten()

    def reward(self, discriminator: Parameters, observation: Tensor, action: Tensor) -> Tensor:
        """−log(1 − D) [batch] of stored observations and actions [batch, …]."""
        return softplus(self.logits(discriminator, observation, action))

    def act(self, state: GAILState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """The actor's actions [environments, …] and their probabilities; with memory, also that afterwards."""
        return self.learner.act(state.learner, observation, uniforms, progress, explore, *remembered)

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: GAILState) -> None:
        """Write records [runs, environments, words] into the rollout `memory` [runs, environments, length, words]."""
        self.learner.write(memory, time, records, state.learner)

    def refresh(self, state: GAILState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> GAILState:
        """The state with returns and advantages of a whole rollout, whose rewards are the discriminator's."""
        seen = decode(memory.flatten(0, 1), self.layout)
        reward = once(self.reward(state.discriminator, seen.observation, seen.action))
        rewarded = replaced(memory, self.layout, "reward", reward.unflatten(0, memory.shape[:2]))
        return state._replace(learner=self.learner.refresh(state.learner, rewarded, uniforms, added, progress))

    def update(self, state: GAILState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[GAILState, Metrics]:
        """One gradient step of the actor-critic and one of the discriminator on the next minibatch of the rollout, and what can be told of them."""
        chosen = once(state.learner.order[state.learner.next])
        seen = decode(once(memory.flatten(0, 1)[chosen]), self.layout)
        of_pairs, of_learner = uniforms[: len(chosen)], uniforms[len(chosen) :]
        learner, metrics = self.learner.update(state.learner, memory, of_learner, added, progress)
        pairs = [torch.cat(each) for each in zip((seen.observation, seen.action), self._demonstrated(of_pairs), strict=True)]
        label = torch.cat([torch.zeros_like(seen.reward), torch.ones_like(seen.reward)])

        def objective(discriminator: Parameters) -> tuple[Tensor, Tensor]:
            logits = self.logits(discriminator, *pairs)
            return empirical_loss(self.classification(logits, label)), logits

        gradient, (loss, logits) = torch.func.grad_and_value(objective, has_aux=True)(state.discriminator)
        metrics |= {"loss/discriminator": loss, "discriminator/accuracy": ((logits > 0) == (label > 0)).float().mean()}
        metrics["discriminator/reward"] = softplus(logits[: len(chosen)]).mean()
        discriminator, optimizer = self.optimizer.step(state.discriminator, gradient, state.optimizer, progress)
        return GAILState(learner, discriminator, optimizer), metrics

    def _demonstrated(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Demonstrated observations and actions [batch, …], drawn with replacement by uniforms [batch]."""
        row = once((uniforms * len(self.demonstrations)).long())
        observation, action = (torch.from_numpy(each).to(row.device) for each in (self.demonstrations.observation, self.demonstrations.action))
        return once(observation[row]), once(action[row])

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return self.learner.schedules(progress) | {"schedule/discriminator_learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return self.learner.report(metrics)
