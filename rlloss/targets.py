"""One-step targets: what a Q-value is regressed on, in the space of any value loss.

A target looks at a `Step`: what was seen, and networks that are asked only where the target needs them.
Targets that mix actions rely on targets being linear (see `value_losses.py`): a weighted mean over
actions has the expected value of the mixture, for scalar, categorical and quantile heads alike.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rlloss.checks import in_range, same_shape
from rlloss.frozen import frozen
from rlloss.numbers import FEW, like, once, only, times
from rlloss.value_losses import ValueLoss

Outputs = Callable[[], Tensor]


class Step(NamedTuple):
    """A batch of transitions and what networks say of them, [batch, actions, outputs] each.

    `discount` is γ·(1 − terminated); truncation is not termination. `target` and `online` are the two
    networks at the next state, `current` is the target network at the present one. `allowed` and `next_allowed`, bool
    [batch, actions], say which actions there are in the present and in the next state, at least one; None for all.
    """

    reward: Tensor
    discount: Tensor
    action: Tensor
    target: Outputs
    online: Outputs
    current: Outputs
    next_action: Tensor | None = None
    allowed: Tensor | None = None
    next_allowed: Tensor | None = None


class Target(Protocol):
    """How the target of a Q-value is made."""

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's own space [batch, …], without gradient."""


@frozen
class QLearning:
    """The target network both chooses and values the next action.

        y = r + d · max_a Q(s′, a; θ⁻),  d = γ·(1 − terminated)

    For: the optimal policy's values; noise makes them too high.
    Source: Watkins (1989); with a target network: Mnih et al., Human-level control (2015).
    """

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            outputs = step.target()
            return value_loss.target(step.reward, step.discount, greedy_outputs(value_loss, outputs, outputs, step.next_allowed))


@frozen
class DoubleQLearning:
    """The online network chooses the next action, the target network values it.

        y = r + d · Q(s′, argmax_a Q(s′, a; θ); θ⁻)

    For: values that noise makes less high.
    Source: van Hasselt, Guez and Silver, arXiv 1509.06461.
    """

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            return value_loss.target(step.reward, step.discount, greedy_outputs(value_loss, step.target(), step.online(), step.next_allowed))


@frozen
class ClippedDoubleQLearning:
    """The online network chooses the next action, and the lower of both networks' values counts.

        y = r + d · min(Q(s′, a*; θ), Q(s′, a*; θ⁻)),  a* = argmax_a Q(s′, a; θ)

    For: values that are rather too low than too high.
    Source: Fujimoto, van Hoof and Meger, arXiv 1802.09477.
    """

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            online = step.online()
            candidates = torch.stack([greedy_outputs(value_loss, outputs, online, step.next_allowed) for outputs in (online, step.target())])
            return value_loss.target(step.reward, step.discount, lowest_outputs(value_loss, candidates))


@frozen
class SARSA:
    """The next action that was really taken is valued.

        y = r + d · Q(s′, a′; θ⁻)

    For: the values of the policy that acts, exploration included.
    Source: Rummery and Niranjan, On-line Q-learning using connectionist systems (1994).
    """

    needs = ("next_action",)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient; raises ValueError without next actions."""
        if step.next_action is None:
            raise ValueError("SARSA needs the next action of every transition; use ExpectedSARSA where it is not stored")
        with torch.no_grad():
            return value_loss.target(step.reward, step.discount, action_outputs(step.target(), step.next_action))


@frozen
class ExpectedSARSA:
    """The expectation over the next action of an ε-greedy policy.

        y = r + d · Σ_a π(a|s′) Q(s′, a; θ⁻),  π = (1 − ε)·greedy + ε·uniform

    For: SARSA's values with less variance; ε = 0 is Q-learning.
    Source: van Seijen et al., A theoretical and empirical analysis of expected Sarsa (2009).
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        in_range("epsilon", self.epsilon, 0, 1)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            outputs = step.target()
            values = only(value_loss.value(outputs), step.next_allowed)
            actions = torch.arange(values.shape[-1], device=values.device)
            greedy = (actions == values.argmax(-1, keepdim=True)).to(values.dtype)
            uniform = 1 / values.shape[-1] if step.next_allowed is None else step.next_allowed / step.next_allowed.sum(-1, keepdim=True)
            policy = (1 - self.epsilon) * greedy + self.epsilon * uniform
            return mixed_target(value_loss, step.reward, step.discount, outputs, policy)


@frozen
class SoftQLearning:
    """The expectation over a softmax policy, its entropy added.

        y = r + d · Σ_a π(a|s′)(Q(s′, a; θ⁻) − τ log π(a|s′)),  π = softmax(Q/τ)

    For a scalar head the sum is τ log Σ_a exp(Q/τ).

    For: maximum-entropy policies, which stay stochastic.
    Source: Haarnoja et al., Reinforcement learning with deep energy-based policies, arXiv 1702.08165.
    """

    temperature: float = 0.03

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0, above=True)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            return _soft_target(value_loss, step, step.reward, self.temperature)


@frozen
class MunchausenQLearning:
    """Soft Q-learning with the scaled log-policy of the action taken added to the reward.

        y = r + α·clip(τ log π(a|s), l₀, 0) + d · Σ_a′ π(a′|s′)(Q(s′, a′; θ⁻) − τ log π(a′|s′))

    with π = softmax(Q(·; θ⁻)/τ).

    For: larger gaps between actions and an implicit KL penalty; among the best one-line changes to DQN.
    Source: Vieillard, Pietquin and Geist, arXiv 2007.14430.
    """

    temperature: float = 0.03
    alpha: float = 0.9
    lowest: float = -1.0

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0, above=True)
        in_range("alpha", self.alpha, 0, 1)
        in_range("lowest", self.lowest, -1e30, 0)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            log_policy = (only(value_loss.value(step.current()), step.allowed) / self.temperature).log_softmax(-1)
            taken = log_policy.gather(-1, step.action[:, None]).squeeze(-1)
            bonus = (self.temperature * taken).clamp(max=0)
            reward = step.reward + self.alpha * torch.maximum(bonus, like(bonus, self.lowest))
            return _soft_target(value_loss, step, reward, self.temperature)


@frozen
class AdvantageLearning:
    """Q-learning's target lowered by a share of the action's disadvantage.

        y = r − α·(max_b Q(s, b; θ⁻) − Q(s, a; θ⁻)) + d · max_a′ Q(s′, a′; θ⁻)

    For: larger gaps between the best action and the others; α < 1 keeps the best action.
    Source: Baird, Reinforcement learning through gradient descent (1999); Bellemare et al., arXiv 1512.04860.
    """

    alpha: float = 0.9

    def __post_init__(self) -> None:
        in_range("alpha", self.alpha, 0, 1, below=True)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            outputs = step.target()
            reward = step.reward - self.alpha * action_gap(value_loss, step)
            return value_loss.target(reward, step.discount, greedy_outputs(value_loss, outputs, outputs, step.next_allowed))


@frozen
class PersistentAdvantageLearning:
    """The higher of advantage learning's target and that of repeating the action.

        y = max(r − α·(max_b Q(s, b; θ⁻) − Q(s, a; θ⁻)) + d · max_a′ Q(s′, a′; θ⁻),  r + d · Q(s′, a; θ⁻))

    For: advantage learning where actions are short.
    Source: Bellemare et al., Increasing the action gap, arXiv 1512.04860.
    """

    alpha: float = 0.9

    def __post_init__(self) -> None:
        in_range("alpha", self.alpha, 0, 1, below=True)

    def __call__(self, value_loss: ValueLoss, step: Step) -> Tensor:
        """The target in the value loss's space, without gradient."""
        with torch.no_grad():
            outputs = step.target()
            reward = step.reward - self.alpha * action_gap(value_loss, step)
            changed = value_loss.target(reward, step.discount, greedy_outputs(value_loss, outputs, outputs, step.next_allowed))
            repeated = value_loss.target(step.reward, step.discount, action_outputs(outputs, step.action))
            higher = value_loss.expected(changed) >= value_loss.expected(repeated)
            if step.next_allowed is not None:
                higher = higher | ~step.next_allowed.gather(1, step.action[:, None]).squeeze(1)
            return torch.where(higher.reshape(higher.shape + (1,) * (changed.ndim - 1)), changed, repeated)


def action_outputs(outputs: Tensor, action: Tensor) -> Tensor:
    """The outputs [batch, outputs] of one action [batch] in each row of [batch, actions, outputs].

        outputs[i, a_i]

    For: the Q-value of the action taken, for any head.
    Source: Mnih et al., Human-level control (2015).
    """
    if outputs.shape[1] > FEW:
        index = action[:, None, None].expand(-1, 1, outputs.shape[-1])
        return outputs.gather(1, index).squeeze(1)
    chosen, action = outputs[:, 0], once(action) if outputs.shape[-1] > 1 else action
    for index in range(1, outputs.shape[1]):
        chosen = torch.where(action[:, None] == index, outputs[:, index], chosen)
    return chosen


def greedy_outputs(value_loss: ValueLoss, outputs: Tensor, selector: Tensor, allowed: Tensor | None = None) -> Tensor:
    """The outputs [batch, outputs] of the action that `selector` values most; both [batch, actions, outputs]; `allowed` as in `Step`.

        outputs[i, argmax_a V(selector[i, a])]

    For: Q-learning, and double Q-learning with another selector.
    Source: van Hasselt, Guez and Silver, arXiv 1509.06461.
    """
    if outputs.shape[1] > FEW:
        return action_outputs(outputs, only(value_loss.value(selector), allowed).argmax(-1))

    def values(index: int) -> Tensor:
        return only(value_loss.value(selector[:, index]), None if allowed is None else allowed[:, index])

    chosen, highest = outputs[:, 0], values(0)
    for index in range(1, outputs.shape[1]):
        value = values(index)
        chosen, highest = torch.where((value > highest)[:, None], outputs[:, index], chosen), torch.maximum(value, highest)
    return chosen


def lowest_outputs(value_loss: ValueLoss, outputs: Tensor) -> Tensor:
    """The outputs [..., outputs] of the critic with the lowest value among [critics, ..., outputs].

        outputs[argmin_k V(outputs[k])]

    For: clipped double Q of any head, and the twin critics of SAC and TD3.
    Source: Fujimoto, van Hoof and Meger, arXiv 1802.09477.
    """
    index = value_loss.value(outputs).argmin(0, keepdim=True)[..., None].expand(1, *outputs.shape[1:])
    return outputs.gather(0, index).squeeze(0)


def mixed_target(value_loss: ValueLoss, reward: Tensor, discount: Tensor, outputs: Tensor, policy: Tensor, bonus: Tensor | None = None) -> Tensor:
    """The target of a next action drawn from a policy.

        y = Σ_a π(a|s′) · target(r + d·b(a), d, outputs[a])

    Args:
        value_loss: makes the target of each action.
        reward: r [batch].
        discount: d [batch]; where it is 0 outputs, policy and bonus may be anything.
        outputs: [batch, actions, outputs] at the next state.
        policy: π(a|s′) [batch, actions].
        bonus: b [batch, actions], added to each action's value, such as an entropy; None for 0.

    Returns:
        The target [batch, …] in the value loss's space, without gradient.

    For: expected SARSA, soft and Munchausen targets, with any head.
    Source: van Seijen et al. (2009); for quantiles: Vieillard et al., arXiv 2007.14430.
    """
    discount = discount[:, None].expand(policy.shape)
    reward = reward[:, None].expand(policy.shape)
    reward = reward if bonus is None else reward + times(discount, bonus)
    # Behind an end outputs may be NaN, and the policy with them; there every action has the same target.
    policy = torch.where(discount == 0, torch.full_like(policy, 1 / policy.shape[-1]), policy)
    targets = value_loss.target(reward, discount, outputs)
    weights = policy.reshape(policy.shape + (1,) * (targets.ndim - policy.ndim))
    return (weights * targets).sum(1).detach()


def n_step_backup(reward: Tensor, discount: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The n-step reward of each trajectory's first row, the discount of its bootstrap, and the row to bootstrap from.

        R = Σ_{k<m} (Π_{j<k} d_j) r_k,  D = Π_{j<m} d_j,  row m − 1,  m = min(n, rows up to the cut)

    so that any one-step target becomes an n-step target with R and D in place of r and d.

    Args:
        reward: r [batch, n].
        discount: γ·(1 − terminated) [batch, n].
        cut: where row k+1 doesn't go on with row k, bool [batch, n − 1].

    Returns:
        R [batch], D [batch] and m − 1 [batch], integers.

    Raises:
        ValueError: shapes differ.

    For: n-step Q-learning of any kind, as in Rainbow.
    Source: Watkins (1989); Hessel et al., Rainbow, arXiv 1710.02298.
    """
    same_shape(reward=reward, discount=discount)
    same_shape(reward=reward[:, 1:], cut=cut)
    total, product, last = reward[:, 0], discount[:, 0], torch.zeros_like(reward[:, 0], dtype=torch.long)
    on = torch.ones_like(last, dtype=torch.bool)
    for k in range(1, reward.shape[1]):
        on = on & ~cut[:, k - 1]
        total = torch.where(on, total + product * reward[:, k], total)
        product = torch.where(on, product * discount[:, k], product)
        last = last + on
    return total, product, last


def action_gap(value_loss: ValueLoss, step: Step) -> Tensor:
    """How much less the target network values the action taken than the best one, [batch].

        max_b Q(s, b; θ⁻) − Q(s, a; θ⁻)

    For: advantage learning.
    Source: Bellemare et al., Increasing the action gap, arXiv 1512.04860.
    """
    values = only(value_loss.value(step.current()), step.allowed)
    return values.max(-1).values - values.gather(-1, step.action[:, None]).squeeze(-1)


def _soft_target(value_loss: ValueLoss, step: Step, reward: Tensor, temperature: float | Tensor) -> Tensor:
    outputs = step.target()
    log_policy = (only(value_loss.value(outputs), step.next_allowed) / temperature).log_softmax(-1)
    surprise = log_policy if step.next_allowed is None else log_policy.masked_fill(~step.next_allowed, 0)
    return mixed_target(value_loss, reward, step.discount, outputs, log_policy.exp(), -temperature * surprise)
