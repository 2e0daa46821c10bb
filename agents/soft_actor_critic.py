"""Soft actor-critic as a value, for Box and for Discrete actions: a policy paid for its entropy, and critics that learn from replay."""

from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import actions, off_policy, parts
from agents.action_values import Expectation, report
from agents.agent import Metrics, Plan
from agents.batches import Batch
from agents.critics import Critics
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.policies import Gaussian, Policy, fitting
from agents.replay import Replay, UniformReplay, record
from agents.spaces import encode, features, storage
from agents.target_networks import Polyak, TargetNetwork
from agents.temperatures import LearnedTemperature, Temperature
from rlloss import MSE, Regularizer, ValueLoss, discrete_soft_actor, empirical_loss, frozen, soft_actor, total
from rlloss.numbers import times
from rlloss.penalties import entropy_bonus
from rlloss.targets import mixed_target

# At first tanh of a normal number, about as likely everywhere between its bounds.
GAUSSIAN = Gaussian(1.0, state_dependent=True, squashed=True)


class SoftActorCriticState(NamedTuple):
    """All that learning changes; `actor` holds the temperature's parameters too."""

    actor: Parameters
    critics: Parameters
    target_critics: Parameters
    actor_optimizer: NamedTuple
    critic_optimizer: NamedTuple
    replay: Any
    transform: tuple


class Following(NamedTuple):
    """The policy at s′: an action drawn from it and its log-probability [batch], or the log-probabilities of all actions [batch, actions]."""

    action: Tensor | None
    log_probability: Tensor


@frozen
class SoftActorCritic:
    """An actor π(a|s) that climbs the lowest of several critics, and is paid α times its entropy.

        y = R + D·(min_k Q(s′, a′; θₖ⁻) − α log π(a′|s′)),  a′ ~ π
        θ ← θ − η ∇ Σₖ (1/n Σ w·ℓ(Q(s, a; θₖ), y) + Σⱼ λⱼΩⱼ)
        φ ← φ − η ∇ 1/n Σ w·(α log π(a|s) − min_k Q(s, a; θₖ)),  a ~ π through its noise

    α is what `temperature` says, with a loss of its own where it is learned. R and D are of `steps` rewards; entropy is counted at s′
    alone, not along the way. Discrete actions are summed over in y and in the actor's loss, not drawn; Box actions are normal numbers
    squashed by tanh between their bounds. Critics move first, and the actor sees them moved. The weights w are prioritized replay's.
    With distributional heads the target is made of the critic whose value is the lowest. A weight decay of the optimizer pulls log α to 0 too.

    Source: Haarnoja et al., Soft actor-critic algorithms and applications, arXiv 1812.05905; Discrete: Christodoulou, arXiv 1910.07207.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    steps: int = 1
    batch_size: int = 256
    learning_starts: int = 1000
    update_every: int = 1
    updates_per_step: int = 1
    max_gradient_norm: float = float("inf")
    critics: int = 2
    temperature: Temperature = LearnedTemperature()
    network: Network = MLP((256, 256))
    optimizer: Optimizer = Adam(3e-4, eps=1e-8)
    value_loss: ValueLoss = MSE()
    target_network: TargetNetwork = Polyak()
    replay: Replay = UniformReplay(1_000_000)
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"SoftActorCritic needs Box or Discrete actions, but this environment has {self.action_space}; choose another or wrap it")
        off_policy.check(self)

    @property
    def action_values(self) -> Critics:
        """Networks, heads, value loss and regularisers of the critics in one."""
        return Critics(self.observation_space, self.action_space, self.network, self.value_loss, self.regularizers, self.critics)

    @property
    def policy(self) -> Policy:
        """That of the action space."""
        return fitting(self.action_space, GAUSSIAN)

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return record(*storage(self.observation_space), action=actions.storage(self.action_space))

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where memory holds too little."""
        drawing = 0 if self.action_values.discrete else 2 * self.batch_size * self.policy.numbers  # at s′, and at s
        return off_policy.plan(self, num_envs, acting=num_envs * self.policy.numbers, updating=drawing)

    def init(self, generator: torch.Generator, slots: int) -> SoftActorCriticState:
        """The state before the first update, with memory for so many records: the target critics equal the critics."""
        shape = features(self.observation_space)
        actor = self.network.init(generator, shape) | named("policy.", self.policy.init(generator, self.network.width(shape)))
        actor |= named("temperature.", self.temperature.init())
        critics = self.action_values.init(generator)
        copy = {name: p.clone() for name, p in critics.items()}
        optimizers = self.optimizer.init(actor), self.optimizer.init(critics)
        return SoftActorCriticState(actor, critics, copy, *optimizers, self.replay.init(slots), parts.init_transform(self.value_loss))

    def said(self, actor: Parameters, observation: Tensor) -> Tensor:
        """What the policy says of actions [batch, outputs], for stored observations [batch, …]."""
        return self.policy(part("policy.", actor), self.network(actor, encode(self.observation_space, observation)))

    def act(self, state: SoftActorCriticState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments, …] drawn from the policy, and their probabilities or densities; the likeliest where `explore` is 0."""
        said = self.said(state.actor, observation)
        action = self.policy.draw(said, uniforms.reshape(len(observation), -1), explore)
        return action, self.policy.log_probability(said, action).exp()

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: SoftActorCriticState) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""
        self.replay.write(memory, time, records, state.replay)

    def refresh(self, state: SoftActorCriticState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> SoftActorCriticState:
        """The state with the target critics renewed."""
        return state._replace(target_critics=self.target_network.refresh(state.target_critics, state.critics))

    def update(self, state: SoftActorCriticState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[SoftActorCriticState, Metrics]:
        """One gradient step of critics, actor and temperature on a batch from memory [environments, length, words], and what can be told of it."""
        drawn, batch = off_policy.draw(self, state, memory, uniforms, added, progress)
        state, metrics = self.learn(state, batch, progress, uniforms[self.batch_size :])
        return state._replace(replay=self.replay.learned(state.replay, drawn, memory.shape[1], metrics["td_error"])), metrics

    def learn(self, state: SoftActorCriticState, batch: Batch, progress: Tensor, uniforms: Tensor) -> tuple[SoftActorCriticState, Metrics]:
        """One gradient step of critics, actor and temperature on a batch, by uniforms [2 · batch · numbers], and what can be told of it."""
        of_next, of_now = uniforms.reshape(2, len(batch.reward), -1)
        following = self._following(state, batch, of_next)

        def make_target(state: SoftActorCriticState, value_loss: ValueLoss | Expectation) -> Tensor:
            return self._target(state, batch, following, value_loss)

        state, value_loss, metrics = off_policy.step(self, state, batch, make_target, following.action, progress)
        gradient, told = self._actor_gradient(state.actor, state.critics, value_loss, batch, of_now)
        # The temperature's gradient is no part of the policy's.
        of_temperature = {name: g for name, g in gradient.items() if name.startswith("temperature.")}
        of_policy = {name: g for name, g in gradient.items() if name not in of_temperature}
        of_policy, metrics["gradient/policy_norm"] = clip_by_global_norm(of_policy, self.max_gradient_norm)
        gradient = {name: (of_policy | of_temperature)[name] for name in gradient}
        actor, optimizer = self.optimizer.step(state.actor, gradient, state.actor_optimizer, progress)
        metrics |= told | {"loss/total": metrics["loss/total"] + told["loss/total"]}
        tracked = self.target_network.track(state.target_critics, state.critics)
        return state._replace(actor=actor, actor_optimizer=optimizer, target_critics=tracked), metrics

    def _temperature(self, actor: Parameters, reference: Tensor) -> Tensor:
        return self.temperature(part("temperature.", actor), reference)

    def _following(self, state: SoftActorCriticState, batch: Batch, uniforms: Tensor) -> Following:
        said = self.said(state.actor, batch.next_observation)
        return Following(None, said.log_softmax(-1)) if self.action_values.discrete else Following(*self.policy.sample(said, uniforms))

    def _target(self, state: SoftActorCriticState, batch: Batch, following: Following, value_loss: ValueLoss | Expectation) -> Tensor:
        q, bonus = self.action_values, -self._temperature(state.actor, batch.reward) * following.log_probability
        outputs = q.lowest(state.target_critics, value_loss, q.inputs(batch.next_observation, following.action))
        if q.discrete:
            return mixed_target(value_loss, batch.reward, batch.discount, outputs, following.log_probability.exp(), bonus)
        return value_loss.target(batch.reward + times(batch.discount, bonus), batch.discount, outputs)

    def _actor_gradient(self, actor: Parameters, critics: Parameters, value_loss: ValueLoss, batch: Batch, uniforms: Tensor) -> tuple[Parameters, Metrics]:
        q, temperature = self.action_values, self._temperature(actor, batch.reward)

        def value(action: Tensor | None) -> Tensor:
            return value_loss.value(q.outputs(critics, q.inputs(batch.observation, action))).amin(0)

        def objective(actor: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
            said = self.said(actor, batch.observation)
            if q.discrete:
                loss, log_probability = discrete_soft_actor(said, value(None), temperature), entropy_bonus(said)
            else:
                action, log_probability = self.policy.sample(said, uniforms)
                loss = soft_actor(log_probability, value(action), temperature)
            learned = self.temperature.terms(part("temperature.", actor), log_probability, batch.weight, self.action_space)
            loss, terms = total({"policy": empirical_loss(loss, batch.weight), **learned})
            return loss, (terms, -log_probability.mean())

        gradient, (loss, (terms, entropy)) = torch.func.grad_and_value(objective, has_aux=True)(actor)
        return gradient, {f"loss/{name}": term for name, term in terms.items()} | {
            "loss/total": loss, "policy/entropy": entropy, "policy/temperature": temperature
        }  # fmt: skip

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return report(metrics, self.value_loss)
