"""A2C and PPO as one value: an actor and a critic that learn from rollouts. Their losses and targets are choices."""

import functools
import math
from dataclasses import field
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.utils import _pytree as pytree

from agents import actions, parts, rollouts
from agents.action_values import report
from agents.agent import Metrics, Plan
from agents.networks import MLP, Network, Parameters
from agents.normalization import Moments
from agents.optimizers import Adam, Optimizer, clip_by_global_norm
from agents.policies import Gaussian
from agents.policy_and_value import PolicyAndValue
from agents.replay import decode, record
from agents.schedules import Linear as LinearSchedule
from agents.schedules import Schedule
from agents.spaces import storage
from rlloss import (
    GAE,
    MSE,
    EntropyBonus,
    Observed,
    PolicyLoss,
    PPOClip,
    Regularizer,
    ReturnEstimator,
    ValueLoss,
    empirical_loss,
    frozen,
    settled,
    total,
)
from rlloss.checks import in_range
from rlloss.numbers import like, mean, once, variance
from rlloss.returns import Trajectory
from rlloss.value_losses import ScalarHead

# What regularisers may read of an actor and a critic.
OBSERVED = ("parameters", "action", "entropy", "features")

# How far beyond its target a divergence ends the learning of a rollout.
TOLERANCE = 1.5


class ActorCriticState(NamedTuple):
    """All that learning changes, and what a rollout was made into.

    `moments` are those of the observations, if they are normalised; `returns` and `advantages` [records] are those of the rollout, `outputs` [records, 1] the critic's before it learned from
    it, if values are clipped, `behaviour` the log-probabilities of its actions under the policy
    that chose them, `order` as in `rollouts.orders`, and `next` counts the minibatches; `stopped` says that the rest of
    them change nothing.
    """

    parameters: Parameters
    optimizer: NamedTuple
    transform: tuple
    moments: Moments | tuple[()]
    returns: Tensor
    advantages: Tensor
    outputs: Tensor | tuple[()]
    behaviour: Tensor
    order: Tensor
    next: Tensor
    stopped: Tensor


@frozen
class ActorCritic:
    """An actor π(a|s) and a critic V(s), learned from rollouts with any policy loss, value loss and advantage.

        θ ← θ − η ∇ (1/n Σ ℓ_π(log π(a|s), log μ(a|s), A) + c·1/n Σ ℓ_V(V(s), G) + Σₖ λₖΩₖ)

    `rollout` steps are made in each environment; then returns G and advantages A of all are computed once by `target`, and
    learned in `epochs` times `minibatches` gradient steps, each epoch in an order of its own. μ is the policy that acted,
    c is `value_weight`. With `normalize_advantages` those of a minibatch have mean 0 and deviation 1. Actor and
    critic have a network each, or with `shared` one together. Box actions are drawn as `gaussian` says. Once π diverges
    from μ by more than 1.5·`target_kl` in a minibatch, neither that one nor the rest of the rollout is learned from.
    The range of a policy loss that has one is multiplied by `clip_schedule`. With `clip_values` the critic's loss is
    max(ℓ_V(x, G), ℓ_V(x̄, G)) for an output x and x̄ = clip(x, x_μ ± `value_clip`), where x_μ is that of the critic before the rollout was learned.
    A recurrent network learns whole sequences of `sequence` steps, each from the memory that was stored with its first step.
    With `normalize_observations` networks read them with the mean 0 and the deviation 1 of all that were seen in rollouts.

    Source: Mnih et al., Asynchronous methods, arXiv 1602.01783; Schulman et al., Proximal policy optimization, arXiv 1707.06347;
    stored memory: Kapturowski et al., Recurrent experience replay (2019).
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    discount: float = 0.99
    rollout: int = 128
    sequence: int = 16
    epochs: int = 4
    minibatches: int = 4
    value_weight: float = 0.5
    normalize_advantages: bool = True
    clip_values: bool = False
    value_clip: float = 0.2
    shared: bool = False
    normalize_observations: bool = False
    max_gradient_norm: float = 0.5
    target_kl: float | None = None
    gaussian: Gaussian = Gaussian()
    network: Network = MLP(activation="tanh")
    optimizer: Optimizer = Adam(schedule=LinearSchedule(1.0, 0.0))
    value_loss: ValueLoss = MSE()
    policy_loss: PolicyLoss = PPOClip()
    clip_schedule: Schedule = LinearSchedule()
    target: ReturnEstimator = GAE()
    regularizers: dict[str, Regularizer] = field(default_factory=lambda: {"entropy": EntropyBonus(0.01)})

    def __post_init__(self) -> None:
        self.networks.check()
        in_range("discount", self.discount, 0, 1)
        for name in ("rollout", "sequence", "epochs", "minibatches"):
            in_range(name, getattr(self, name), 1)
        in_range("value_weight", self.value_weight, 0)
        for name in ("max_gradient_norm", "value_clip", *(["target_kl"] if self.stops else [])):
            in_range(name, getattr(self, name), 0, math.inf, above=True)
        self._check_clip()
        if getattr(self.target, "reads", None) is not Trajectory:
            raise ValueError(f"target {type(self.target).__name__} looks at single steps, but ActorCritic learns from rollouts; choose gae or another over trajectories")
        if self.clip_values and not isinstance(self.value_loss, ScalarHead):
            raise ValueError(f"clip_values needs a value loss with one output, such as mse or huber, but {type(self.value_loss).__name__} is none; leave it false")
        parts.check("ActorCritic", self.value_loss, self.regularizers, OBSERVED, ("policy", "value", "total"))

    def _check_clip(self) -> None:
        if isinstance(self.clip_schedule, LinearSchedule):
            in_range("clip_schedule.start", self.clip_schedule.start, 0, 1)
            in_range("clip_schedule.end", self.clip_schedule.end, 0, 1)
        if self.clip_schedule != LinearSchedule() and not self.clips:
            raise ValueError(f"clip_schedule has nothing to narrow: policy_loss {type(self.policy_loss).__name__} has no range; leave it constant, or choose ppo_clip or spo")

    @property
    def stops(self) -> bool:
        """Whether the learning of a rollout may end early."""
        return self.target_kl is not None

    @property
    def clips(self) -> bool:
        """Whether the policy loss has a range."""
        return hasattr(self.policy_loss, "narrowed")

    @property
    def layout(self) -> np.dtype:
        """How a transition is stored."""
        return record(*storage(self.observation_space), action=actions.storage(self.action_space), remembers=self.remembers)

    @property
    def remembers(self) -> int:
        """How many numbers a policy with memory remembers of each episode; 0 for one without."""
        return self.networks.remembers

    @property
    def together(self) -> int:
        """How many steps are learned as one sequence; 1 without memory."""
        return self.sequence if self.remembers else 1

    @property
    def networks(self) -> PolicyAndValue:
        """Actor and critic in one."""
        read = self.observation_space, self.action_space, self.network, self.shared, self.normalize_observations
        return PolicyAndValue(*read, self.gaussian, self.value_loss)

    def plan(self, num_envs: int) -> Plan:
        """What a run of so many environments needs; ValueError where a rollout can't be shared between minibatches."""
        return rollouts.plan(num_envs, self.rollout, self.epochs, self.minibatches, acting=num_envs * self.networks.policy.numbers, sequence=self.together)

    def init(self, generator: torch.Generator, slots: int) -> ActorCriticState:
        """The state before the first rollout of so many records."""
        parameters = self.networks.init(generator)
        return ActorCriticState(
            parameters,
            self.optimizer.init(parameters),
            parts.init_transform(self.value_loss),
            self.networks.init_moments(),
            *[torch.zeros(slots)] * 2,
            torch.zeros(slots, 1) if self.clip_values else (),
            torch.zeros(slots),
            rollouts.no_order(slots, self.epochs, self.minibatches),
            torch.zeros((), dtype=torch.long),
            torch.zeros((), dtype=torch.bool),
        )

    def act(self, state: ActorCriticState, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Actions [environments, …] drawn from the policy, and their probabilities or densities; the likeliest where `explore` is 0. With memory, also that afterwards."""
        (said, kept), policy = self.networks.said(state.parameters, state.moments, observation, *remembered), self.networks.policy
        action = policy.draw(said, uniforms.reshape(len(observation), -1), explore)
        return action, policy.log_probability(said, action).exp(), *([kept] if remembered else [])

    def write(self, memory: np.ndarray, time: int, records: np.ndarray, state: ActorCriticState) -> None:
        """Write records [runs, environments, words] into the rollout `memory` [runs, environments, length, words]."""
        rollouts.write(memory, time, records)

    def refresh(self, state: ActorCriticState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> ActorCriticState:
        """The state with returns and advantages of a whole rollout, and with the orders in which it will be learned."""
        nets, shape, seen = self.networks, memory.shape[:2], decode(memory.flatten(0, 1), self.layout)
        # The policy that acted is the one that learns, but it acted by the moments of what had been seen by then.
        behaviour = nets.policy.log_probability(nets.said(state.parameters, state.moments, seen.observation, seen.remembered)[0], seen.action)
        moments, value_loss = nets.seen(state.moments, seen.observation), settled(self.value_loss, state.transform)
        _, critic, remembered = nets.features(state.parameters, nets.encoded(moments, seen.observation), seen.remembered)
        _, critic_next, _ = nets.features(state.parameters, nets.encoded(moments, seen.next_observation), remembered)
        value, following = (value_loss.value(nets.outputs(state.parameters, read)) for read in (critic, critic_next))
        rows = (seen.reward, self.discount * (1 - seen.terminated), seen.truncated, value, following, torch.ones_like(value))
        estimate = self.target(Trajectory(*(once(row).unflatten(0, shape).T for row in rows)))
        returns, advantages = (each.T.flatten().detach() for each in estimate)
        parameters, transform = nets.moved(state.parameters, state.transform, returns)
        outputs = nets.outputs(parameters, critic).detach() if self.clip_values else ()
        order = rollouts.orders(uniforms, self.epochs, self.minibatches, self.together)
        told = {"returns": returns, "advantages": advantages, "outputs": outputs, "behaviour": behaviour, "order": order}
        told |= {"next": torch.zeros_like(state.next), "stopped": torch.zeros_like(state.stopped)}
        return state._replace(parameters=parameters, transform=transform, moments=moments, **told)

    def update(self, state: ActorCriticState, memory: Tensor, uniforms: Tensor, added: Tensor, progress: Tensor) -> tuple[ActorCriticState, Metrics]:
        """One gradient step on the next minibatch of the rollout, and what can be told of it."""
        nets, chosen = self.networks, once(state.order[state.next])
        seen = decode(once(memory.flatten(0, 1)[chosen]), self.layout)
        encoded, allowed = nets.encoded(state.moments, seen.observation), nets.allowed(seen.observation)
        # Without memory both are None.
        remembered, ended = (once(seen.remembered[:: self.sequence]), seen.terminated + seen.truncated > 0) if self.remembers else (None, None)
        value_loss = settled(self.value_loss, state.transform)
        returns, advantage, behaviour = (once(each[chosen]) for each in (state.returns, state.advantages, state.behaviour))
        target, before = value_loss.of_return(returns), once(state.outputs[chosen]) if self.clip_values else None
        policy_loss = self.policy_loss.narrowed(self.clip_schedule(progress)) if self.clips else self.policy_loss
        if self.normalize_advantages:
            advantage = (advantage - once(mean(advantage))) / (once(variance(advantage)).sqrt() + 1e-8)

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor, Tensor]]:
            actor, critic, _ = nets.features(parameters, encoded, remembered, ended)
            said, outputs = nets.of_actions(parameters, actor, allowed), nets.outputs(parameters, critic)
            log_probability, entropy = nets.policy.log_probability(said, seen.action), nets.policy.entropy(said)
            observed = Observed(parameters, action=seen.action, entropy=entropy, features=critic)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            policy = empirical_loss(policy_loss(log_probability, behaviour, advantage))
            value = self.value_weight * empirical_loss(self._of_values(value_loss, outputs, target, before))
            loss, terms = total({"policy": policy, "value": value, **penalties})
            return loss, (terms, outputs, log_probability, entropy)

        gradient, (loss, (terms, outputs, log_probability, entropy)) = torch.func.grad_and_value(objective, has_aux=True)(state.parameters)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss}
        metrics |= {"policy/entropy": mean(entropy)} | self._told(value_loss, outputs, target, log_probability - behaviour)
        if hasattr(policy_loss, "beyond"):
            metrics["policy/clip_fraction"] = mean(policy_loss.beyond(log_probability - behaviour).float())
        gradient, metrics["gradient/norm"] = clip_by_global_norm(gradient, self.max_gradient_norm)
        stopped, learned = state.stopped, self.optimizer.step(state.parameters, gradient, state.optimizer, progress)
        if self.stops:
            stopped = once(state.stopped | (metrics["policy/kl"] > TOLERANCE * self.target_kl))
            learned = pytree.tree_map(functools.partial(torch.where, stopped), (state.parameters, state.optimizer), learned)
            metrics["policy/stopped"] = stopped.float()
        return state._replace(parameters=learned[0], optimizer=learned[1], next=state.next + 1, stopped=stopped), metrics

    def _of_values(self, value_loss: ValueLoss, outputs: Tensor, target: Tensor, before: Tensor | None) -> Tensor:
        """The critic's elementwise loss; with outputs from before the rollout was learned the higher one of x and x̄."""
        loss = value_loss(outputs, target)
        if before is None:
            return loss
        limit = like(outputs, self.value_clip)
        return torch.maximum(loss, value_loss(before + (outputs - before).clamp(-limit, limit), target))

    def _told(self, value_loss: ValueLoss, outputs: Tensor, target: Tensor, log_ratio: Tensor) -> Metrics:
        """What can be told of the critic and of the policy; the divergence from the behaviour is estimated without bias and above 0 (k3)."""
        value, expected = value_loss.value(outputs), value_loss.expected(target)
        metrics = {"td_error": value - expected, "value": value}
        if hasattr(value_loss, "linear_zone"):
            metrics["linear_zone"] = value_loss.linear_zone(outputs, target)
        metrics["policy/kl"] = mean(log_ratio.exp() - 1 - log_ratio)
        unexplained = variance(value - expected) / variance(expected).clamp(min=1e-12)
        return metrics | {"value/explained_variance": 1 - unexplained}

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What the schedules say at this progress, by TensorBoard tag."""
        clip = {"schedule/clip": float(self.clip_schedule(progress))} if self.clips else {}
        return clip | {"schedule/learning_rate": float(self.optimizer.rate(progress))}

    def report(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of one update as numbers, by TensorBoard tag."""
        return report(metrics, self.value_loss)
