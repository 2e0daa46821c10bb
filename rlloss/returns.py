"""Returns and advantages over whole trajectories, [time, batch, …], first row first.

Conventions of all functions here and in `off_policy_returns.py`:

    reward[t]      r of the step from s_t to s′_t
    discount[t]    γ·(1 − terminated[t]): 0 where the environment ended the episode
    truncated[t]   1 where the trajectory was cut after step t and row t+1 belongs to another episode, such
                   as at a time limit; that step is bootstrapped, and no finite number behind the cut counts
    value[t]       V(s_t)
    next_value[t]  V(s′_t) of the true next observation; at a cut not that of the next row, at an end anything

Where no cut happens, next_value[t] = value[t+1]. Behind the last row there is a cut as well, truncated or
not. Results carry no gradient. A recursion over time is one `linear_recurrence`, whose work is parallel.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, in_range, same_shape
from rlloss.frozen import frozen
from rlloss.numbers import like, once, times

# Rows of a block in `linear_recurrence`.
BLOCK = 8


class Trajectory(NamedTuple):
    """What returns are made of, [time, batch, …] each; see the top of this file.

    `ratio` is π(a|s)/μ(a|s) of the action taken, where another policy μ acted; None where π itself did.
    """

    reward: Tensor
    discount: Tensor
    truncated: Tensor
    value: Tensor
    next_value: Tensor
    ratio: Tensor | None = None


class Estimate(NamedTuple):
    """What a trajectory says of each row: a return to regress V(s) on, and an advantage for the policy."""

    value_target: Tensor
    advantage: Tensor


class ReturnEstimator(Protocol):
    """How returns and advantages are made of a trajectory."""

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages [time, batch, …], without gradient."""


def linear_recurrence(constant: Tensor, factor: Tensor, last: Tensor | None = None) -> Tensor:
    """The solution of a linear recurrence that runs backwards in time, parallel over blocks of time.

        x_t = a_t + b_t·x_{t+1}

    Within a block of L rows it is a chain, x_t = A_t + B_t·x_{t+L}, computed for all blocks at once; what
    enters a block, the first x of the next one, obeys a recurrence over blocks, solved in the same way.

    A product of factors that overflows counts as the largest number: what it should cancel with may come out wrong.

    Args:
        constant: a [time, ...], finite.
        factor: b, same shape, finite; 0 cuts the recurrence.
        last: x_T [...], what the last row goes on with; zeros if not given.

    Returns:
        x [time, ...], differentiable.

    Raises:
        ValueError: shapes differ.

    For: every return below.
    Source: Blelloch, Prefix sums and their applications (1990).
    """
    floats_of_one_shape(constant=constant, factor=factor)
    if not constant.numel():
        return constant
    last = torch.zeros_like(constant[0]) if last is None else last
    floats_of_one_shape(constant=constant[0], last=last)
    # Both are read twice, on the way up the blocks and down.
    a, b = (once(x.reshape(len(x), -1)) for x in (constant, factor))
    return _solved(a, b, last.reshape(1, -1)).reshape(constant.shape)


def _solved(constant: Tensor, factor: Tensor, last: Tensor) -> Tensor:
    """`linear_recurrence` of [time, columns] and [1, columns]."""
    time = constant.shape[0]
    length = min(BLOCK, time)
    if missing := -time % length:
        constant, factor = (torch.nn.functional.pad(x, (0, 0, 0, missing), value=value) for x, value in ((constant, 0.0), (factor, 1.0)))
    # Rows by their place in a block, last place first, [blocks, columns] each.
    a, b = (x.unflatten(0, (-1, length)).unbind(1)[::-1] for x in (constant, factor))
    entering = last
    if time > length:
        first, product = a[0], b[0]
        for a_t, b_t in zip(a[1:], b[1:], strict=True):
            first, product = a_t + b_t * first, b_t * product
        # A product that overflowed makes NaN of a 0: of a factor's, where the product is 0, or of what it multiplies.
        largest = torch.finfo(product.dtype).max  # product == product, not isnan: that isn't vectorised.
        product = torch.where(product == product, product, torch.zeros_like(product)).clamp(-largest, largest)
        entering = torch.cat([_solved(first, product, last)[1:], last])
    x = [entering]
    for a_t, b_t in zip(a, b, strict=True):
        x.append(a_t + b_t * x[-1])
    return torch.stack(x[:0:-1], 1).flatten(0, 1)[:time]


def lambda_return(reward: Tensor, discount: Tensor, truncated: Tensor, next_value: Tensor, lambda_: float | Tensor) -> Tensor:
    """The λ-return of every row.

        G_t = r_t + d_t·((1 − λ_t)·V(s′_t) + λ_t·G_{t+1}),  λ_t = 0 at a cut

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        next_value: V(s′), same shape.
        lambda_: λ in [0, 1], a number or one a row; 0 is TD(0), 1 the whole return.

    Returns:
        G, same shape, without gradient.

    Raises:
        ValueError: shapes differ.

    For: value targets between bootstrapping at once and never.
    Source: Sutton, Learning to predict by the methods of temporal differences (1988).
    """
    in_range("lambda_", lambda_, 0, 1)
    floating(reward=reward, discount=discount, next_value=next_value)
    same_shape(reward=reward, discount=discount, truncated=truncated, next_value=next_value)
    factor = discount * continues(truncated, reward) * like(reward, lambda_)
    constant = reward + times(discount - factor, next_value)
    return linear_recurrence(constant, factor, _behind(discount, next_value)).detach()


def n_step_return(reward: Tensor, discount: Tensor, truncated: Tensor, next_value: Tensor, n: int) -> Tensor:
    """The n-step return of every row, of fewer steps where the trajectory ends or is cut before.

        G_t = Σ_{k<m} (Π_{j<k} d_{t+j}) r_{t+k} + (Π_{j<m} d_{t+j}) V(s′_{t+m−1}),  m = min(n, steps to the cut)

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        next_value: V(s′), same shape.
        n: at least 1.

    Returns:
        G, same shape, without gradient.

    Raises:
        ValueError: shapes differ, or n < 1.

    For: value targets that look n rewards ahead.
    Source: Watkins (1989); Sutton and Barto, Reinforcement learning (2018), chapter 7.
    """
    in_range("n", n, 1, whole=True)
    floating(reward=reward, discount=discount, next_value=next_value)
    same_shape(reward=reward, discount=discount, truncated=truncated, next_value=next_value)
    on = continues(truncated, reward)
    returns = one_step = reward + times(discount, next_value)
    for _ in range(min(n, reward.shape[0]) - 1):
        following = torch.cat([returns[1:], next_value[-1:]])
        returns = torch.where(on > 0, reward + times(discount, following), one_step)
    return returns.detach()


def gae(reward: Tensor, discount: Tensor, truncated: Tensor, value: Tensor, next_value: Tensor, lambda_: float | Tensor) -> Tensor:
    """Generalised advantage estimation.

        A_t = δ_t + d_t·λ_t·A_{t+1},  δ_t = r_t + d_t·V(s′_t) − V(s_t),  λ_t = 0 at a cut

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        value: V(s), same shape.
        next_value: V(s′), same shape.
        lambda_: λ in [0, 1]; 0 is the TD error, 1 the return less the value.

    Returns:
        A, same shape, without gradient; A + V is the λ-return.

    Raises:
        ValueError: shapes differ.

    For: advantages of policy gradients, λ trading bias for variance.
    Source: Schulman et al., High-dimensional continuous control, arXiv 1506.02438.
    """
    in_range("lambda_", lambda_, 0, 1)
    floating(reward=reward, discount=discount, value=value, next_value=next_value)
    same_shape(reward=reward, discount=discount, truncated=truncated, value=value, next_value=next_value)
    error = reward + times(discount, next_value) - value
    return linear_recurrence(error, discount * continues(truncated, reward) * like(reward, lambda_)).detach()


def continues(truncated: Tensor, reward: Tensor) -> Tensor:
    """1 where row t+1 goes on with row t's trajectory, 0 at a cut, with the reward's dtype.

        m_t = 1 − truncated_t

    It doesn't know which row is the last: what goes on behind it is for the caller to say.

    For: keeping episodes apart.
    Source: Pardo et al., Time limits in reinforcement learning, arXiv 1712.00378.
    """
    return 1 - truncated.to(reward.dtype)


def _behind(discount: Tensor, next_value: Tensor) -> Tensor:
    """The return behind the last row, its bootstrap value: what a cut there comes to. 0 behind an end, where it may be NaN."""
    return torch.where(discount[-1] == 0, torch.zeros_like(next_value[-1]), next_value[-1])


def estimate(returns: Tensor, value: Tensor) -> Estimate:
    """Returns as value targets, and their advantages over the values.

        y_t = G_t,  A_t = G_t − V(s_t)

    For: estimators whose advantage is one step of their return.
    Source: Sutton and Barto, Reinforcement learning (2018), chapter 13.
    """
    return Estimate(returns, (returns - value).detach())


@frozen
class GAE:
    """Generalised advantage estimation; its value target is the λ-return where the next value is the next row's value.

        A_t = δ_t + d_t·λ·A_{t+1},  y_t = A_t + V(s_t)

    With action values, whose next value is that of another action, it is Q*(λ) (arXiv 1602.04951): Retrace without ratios.

    For: A2C and PPO.
    Source: Schulman et al., arXiv 1506.02438.
    """

    lambda_: float = 0.95

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient."""
        reward, discount, truncated, value, next_value, _ = trajectory
        advantage = gae(reward, discount, truncated, value, next_value, self.lambda_)
        return Estimate((advantage + value).detach(), advantage)


@frozen
class TDLambda:
    """The λ-return as value target; the advantage is one step of it.

        y_t = G_t,  A_t = G_t − V(s_t)

    For: value targets with one λ and advantages with the same.
    Source: Sutton (1988).
    """

    lambda_: float = 0.95

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient."""
        reward, discount, truncated, value, next_value, _ = trajectory
        return estimate(lambda_return(reward, discount, truncated, next_value, self.lambda_), value)


@frozen
class NStep:
    """The n-step return as value target.

        y_t = G_t⁽ⁿ⁾,  A_t = y_t − V(s_t)

    For: A2C's classic target.
    Source: Mnih et al., Asynchronous methods for deep reinforcement learning, arXiv 1602.01783.
    """

    n: int = 5

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("n", self.n, 1, whole=True)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient."""
        reward, discount, truncated, value, next_value, _ = trajectory
        return estimate(n_step_return(reward, discount, truncated, next_value, self.n), value)
