"""TD3 and DDPG as one value: a deterministic policy for Box actions, and critics that learn from replay."""

import math
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils import _pytree as pytree

from agents import actions, off_policy, parts
from agents.action_values import Expectation, report
from agents.agent import Metrics, Plan
from agents.batches import Batch
from agents.critics import Critics
from agents.heads import Linear
from agents.networks import MLP, Network, Parameters, named, part
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.replay import Replay, UniformReplay, record
from agents.spaces import encode, features, storage
from agents.streams import normal_rows, paired
from agents.target_networks import Polyak, TargetNetwork
from rlloss import MSE, Regularizer, ValueLoss, deterministic_policy_gradient, empirical_loss, frozen
from rlloss.checks import in_range
from rlloss.numbers import like


class DeterministicState(NamedTuple):
    """All that learning changes; `updates` counts those of the critics."""

    actor: Parameters
    critics: Parameters
    target_actor: Parameters
    target_critics: Parameters
    actor_optimizer: NamedTuple
    critic_optimizer: NamedTuple
    replay: Any
    transform: tuple
    updates: Tensor


@frozen
class DeterministicActorCritic:
    """An actor μ(s) that climbs the first of several critics, which bootstrap from the lowest of them all.

        y = R + D·min_k Q(s′, a′; θₖ⁻),  a′ = clip(μ(s′; φ⁻) + clip(ε, ±c), ±1),  ε ~ N(0, σ̃²)
        θ ← θ − η ∇ Σₖ (1/n Σ w·ℓ(Q(s, a; θₖ), y) + Σⱼ λⱼΩⱼ)
        φ ← φ − η ∇ 1/n Σ −w·Q(s, μ(s; φ); θ₁),  at every `policy_every`-th update, and only then the target networks track

    R and D are of `steps` rewards, σ̃ is `target_noise`, c its `target_noise_clip`, the weights w are prioritized replay's. What acts is
    μ + N(0, `exploration_noise`²), cut to ±1, and before the first update any action; half the range of an action is 1.
    DDPG is one critic, `policy_every` 1 and no target noise. With distributional heads the target is made of the critic whose value is the lowest.

    Source: Fujimoto, van Hoof and Meger, arXiv 1802.09477; DDPG: Lillicrap et al., arXiv 1509.02971.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    steps: int = 1
    batch_size: int = 256
    learning_starts: int = 1000
    update_every: int = 1
    updates_per_step: int = 1
    max_gradient_norm: float = math.inf
    critics: int = 2
    policy_every: int = 2
    exploration_noise: float = 0.1
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    network: Network = MLP((256, 256))
    optimizer: Optimizer = Adam(3e-4, eps=1e-8)
    value_loss: ValueLoss = MSE()
    target_network: TargetNetwork = Polyak()
    replay: Replay = UniformReplay(1_000_000)
    regularizers: dict[str, Regularizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.action_space, spaces.Box):
            has = f"this environment has {self.action_space}"
            raise ValueError(f"DeterministicActorCritic needs Box actions, but {has}; choose another environment or agent=sac")
        off_policy.check(self)
        in_range("policy_every", self.policy_every, 1)
        for name in ("exploration_noise", "target_noise", "target_noise_clip"):
            in_range(name, getattr(self, name), 0)

    @property
    def action_values(self) -> Critics:
        """Networks, heads, value loss and regularisers of the critics in one."""
        return Critics(self.observation_space, self.action_space, self.network, self.value_loss, self.regularizers, self.critics)

    @property
    def count(self) -> int:
        """How many numbers an action is."""
        return math.prod(self.action_space.shape)

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return record(*storage(self.observation_space), action=actions.storage(self.action_space))

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where memory holds too little."""
        return off_policy.plan(self, num_envs, acting=num_envs * paired(self.count), updating=self.batch_size * paired(self.count))

    def init(self, generator: torch.Generator, slots: int) -> DeterministicState:
        """The state before the first update, with memory for so many records: the target networks equal the networks."""
        shape = features(self.observation_space)
        policy = Linear().init(generator, self.network.width(shape), (self.count, 1))
        online = self.network.init(generator, shape) | named("policy.", policy), self.action_values.init(generator)
        targets = [{name: p.clone() for name, p in parameters.items()} for parameters in online]
        optimizers = [self.optimizer.init(parameters) for parameters in online]
        transform = parts.init_transform(self.value_loss)
        return DeterministicState(*online, *targets, *optimizers, self.replay.init(slots), transform, torch.zeros((), dtype=torch.long))

    def action(self, actor: Parameters, observation: Tensor) -> Tensor:
        """μ(s) [batch, numbers], within ±1, for stored observations [batch, …]."""
        read = self.network(actor, encode(self.observation_space, observation))
        return torch.tanh(Linear()(part("policy.", actor), read, (self.count, 1)).squeeze(-1))

    def act(self, state: DeterministicState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [environments, …]: μ with noise, anything before the first update, μ itself where `explore` is 0; nothing reads their probability, 1."""
        chosen, numbers = self.action(state.actor, observation), uniforms.reshape(len(observation), -1)
        noisy = (chosen + self.exploration_noise * normal_rows(numbers, self.count)).clamp(-1, 1)
        explored = torch.where(state.updates == 0, 2 * numbers[:, : self.count] - 1, noisy)
        action = torch.where(explore > 0, explored, chosen).reshape(len(observation), *self.action_space.shape)
        return action, torch.ones_like(chosen[:, 0])

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: DeterministicState) -> None:
        """Write records [runs, environments, words] over the oldest of `memory` [runs, environments, length, words]."""
        self.replay.write(memory, time, records, state.replay)

    def refresh(self, state: DeterministicState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> DeterministicState:
        """The state with the target networks renewed."""
        renew = self.target_network.refresh
        return state._replace(target_actor=renew(state.target_actor, state.actor), target_critics=renew(state.target_critics, state.critics))

    def update(self, state: DeterministicState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[DeterministicState, Metrics]:
        """One gradient step on a batch from memory [environments, length, words], and what can be told of it."""
        drawn, batch = off_policy.draw(self, state, memory, uniforms, added, progress)
        state, metrics = self.learn(state, batch, progress, uniforms[self.batch_size :])
        return state._replace(replay=self.replay.learned(state.replay, drawn, memory.shape[1], metrics["td_error"])), metrics

    def learn(self, state: DeterministicState, batch: Batch, progress: Tensor, uniforms: Tensor) -> tuple[DeterministicState, Metrics]:
        """One gradient step of the critics on a batch, of the actor when it is due, by uniforms [batch · numbers], and what can be told of it."""
        q, next_action = self.action_values, self._next_action(state, batch, uniforms.reshape(len(batch.reward), -1))
        following = q.inputs(batch.next_observation, next_action)

        def make_target(state: DeterministicState, value_loss: ValueLoss | Expectation) -> Tensor:
            return value_loss.target(batch.reward, batch.discount, q.lowest(state.target_critics, value_loss, following))

        state, value_loss, metrics = off_policy.step(self, state, batch, make_target, next_action, progress)
        gradient, loss = self._actor_gradient(state.actor, state.critics, value_loss, batch)
        gradient, metrics["gradient/policy_norm"] = clip_by_global_norm(gradient, self.max_gradient_norm)
        metrics |= {"loss/policy": loss, "loss/total": metrics["loss/total"] + loss}
        return self._delayed(state, gradient, progress), metrics

    def _delayed(self, state: DeterministicState, gradient: Parameters, progress: Tensor) -> DeterministicState:
        """The state after an update of the critics: if the actor is due, it has moved too, and the target networks have tracked both."""
        actor, optimizer = self.optimizer.step(state.actor, gradient, state.actor_optimizer, progress)
        target_actor, target_critics = self.target_network.track(state.target_actor, actor), self.target_network.track(state.target_critics, state.critics)
        moved = {"actor": actor, "actor_optimizer": optimizer, "target_actor": target_actor, "target_critics": target_critics}
        updates = state.updates + 1
        # Made at every update, kept when it's due: a compiled program has no branches, and the actor's step is a fifth of an update.
        due = updates % self.policy_every == 0
        kept = {name: pytree.tree_map(lambda new, old: torch.where(due, new, old), new, getattr(state, name)) for name, new in moved.items()}
        return state._replace(updates=updates, **kept)

    def _next_action(self, state: DeterministicState, batch: Batch, uniforms: Tensor) -> Tensor:
        noise = self.target_noise * normal_rows(uniforms, self.count)
        limit = like(noise, self.target_noise_clip)
        return (self.action(state.target_actor, batch.next_observation) + noise.clamp(-limit, limit)).clamp(-1, 1)

    def _actor_gradient(self, actor: Parameters, critics: Parameters, value_loss: ValueLoss, batch: Batch) -> tuple[Parameters, Tensor]:
        q, first = self.action_values, {name: p[0] for name, p in critics.items()}

        def objective(actor: Parameters) -> Tensor:
            inputs = q.inputs(batch.observation, self.action(actor, batch.observation))
            value = value_loss.value(q.of_one(first, inputs))
            return empirical_loss(deterministic_policy_gradient(value), batch.weight)

        return torch.func.grad_and_value(objective)(actor)

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        return {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return report(metrics, self.value_loss)
