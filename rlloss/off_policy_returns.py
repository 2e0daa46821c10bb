"""Returns from trajectories of another policy: V-trace for values, Retrace and Q(λ) for action values.

Conventions as in `returns.py`. `ratio[t]` = π(a_t|s_t)/μ(a_t|s_t) belongs to row t's own action.
"""

import torch
from torch import Tensor

from rlloss.checks import floating, in_range, same_shape
from rlloss.frozen import frozen
from rlloss.numbers import like, times
from rlloss.returns import Estimate, Trajectory, continues, estimate, lambda_return, linear_recurrence


def v_trace(
    reward: Tensor,
    discount: Tensor,
    truncated: Tensor,
    value: Tensor,
    next_value: Tensor,
    ratio: Tensor,
    lambda_: float | Tensor = 1.0,
    clip_error: float | Tensor = 1.0,
    clip_trace: float | Tensor = 1.0,
    clip_policy: float | Tensor = 1.0,
    leak: float | Tensor = 0.0,
) -> Estimate:
    """V-trace: value targets and advantages of π from what μ did.

        v_t = V(s_t) + ρ_t δ_t + d_t c_t (v_{t+1} − V(s_{t+1})),  δ_t = r_t + d_t·V(s′_t) − V(s_t)
        A_t = ρ̂_t·(r_t + d_t·v_{t+1} − V(s_t)),  V(s′_t) in place of v_{t+1} at a cut
        ρ_t = clip(w_t, ρ̄), c_t = λ·clip(w_t, c̄), ρ̂_t = clip(w_t, p̄),  clip(w, x) = (1−κ)·min(w, x) + κ·w

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        value: V(s), same shape.
        next_value: V(s′), same shape.
        ratio: w = π/μ of the action taken, same shape.
        lambda_: λ in [0, 1].
        clip_error: ρ̄ > 0, decides which policy's values are learned.
        clip_trace: c̄ > 0, decides how fast.
        clip_policy: p̄ > 0, the clip of the advantage's weight.
        leak: κ in [0, 1], the share of the unclipped ratio (leaky V-trace); 0 is V-trace.

    Returns:
        v and A, same shape, without gradient.

    Raises:
        ValueError: shapes differ.

    For: learning from other, or older, policies.
    Source: Espeholt et al., IMPALA, arXiv 1802.01561; leaky: Zahavy et al., arXiv 2002.12928.
    """
    in_range("lambda_", lambda_, 0, 1)
    for name, limit in (("clip_error", clip_error), ("clip_trace", clip_trace), ("clip_policy", clip_policy)):
        in_range(name, limit, 0, above=True)
    in_range("leak", leak, 0, 1)
    floating(reward=reward, discount=discount, value=value, next_value=next_value, ratio=ratio)
    same_shape(reward=reward, discount=discount, truncated=truncated, value=value, next_value=next_value, ratio=ratio)

    leak = like(ratio, leak)
    # Without a leak a ratio may be infinite, and 0·∞ would be NaN.
    leaked = leak * torch.where(leak > 0, ratio, torch.zeros_like(ratio))

    def clipped(limit: float | Tensor) -> Tensor:
        return (1 - leak) * torch.minimum(ratio, like(ratio, limit)) + leaked

    on = continues(truncated, reward)
    error = clipped(clip_error) * (reward + times(discount, next_value) - value)
    target = value + linear_recurrence(error, discount * on * like(reward, lambda_) * clipped(clip_trace))
    following = torch.where(on > 0, torch.cat([target[1:], next_value[-1:]]), next_value)
    advantage = clipped(clip_policy) * (reward + times(discount, following) - value)
    return Estimate(target.detach(), advantage.detach())


def retrace(reward: Tensor, discount: Tensor, truncated: Tensor, action_value: Tensor, next_value: Tensor, ratio: Tensor, lambda_: float | Tensor = 1.0) -> Tensor:
    """Retrace: targets of action values of π from what μ did.

        G_t = r_t + d_t·(V_π(s′_t) + c_{t+1}·(G_{t+1} − Q(s_{t+1}, a_{t+1}))),  c_t = λ·min(1, w_t), 0 behind a cut

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        action_value: Q(s, a) of the action taken, same shape.
        next_value: V_π(s′) = Σ_a π(a|s′) Q(s′, a), same shape.
        ratio: w = π/μ of the action taken, same shape.
        lambda_: λ in [0, 1].

    Returns:
        G, same shape, without gradient.

    Raises:
        ValueError: shapes differ.

    For: action values from a replay of sequences, safe for any behaviour.
    Source: Munos et al., Safe and efficient off-policy reinforcement learning, arXiv 1606.02647.
    """
    in_range("lambda_", lambda_, 0, 1)
    floating(reward=reward, discount=discount, action_value=action_value, next_value=next_value, ratio=ratio)
    same_shape(reward=reward, discount=discount, truncated=truncated, action_value=action_value, next_value=next_value, ratio=ratio)
    trace = like(ratio, lambda_) * ratio.clamp(max=1.0)
    following = continues(truncated, reward) * torch.cat([trace[1:], trace[:1]])
    error = reward + times(discount, next_value) - action_value
    return (action_value + linear_recurrence(error, discount * following)).detach()


def peng_q_lambda(reward: Tensor, discount: Tensor, truncated: Tensor, next_value: Tensor, lambda_: float | Tensor) -> Tensor:
    """Peng's Q(λ): λ-returns over greedy values, as if all actions had been greedy.

        G_t = r_t + d_t·((1 − λ)·max_a Q(s′_t, a) + λ·G_{t+1}),  λ = 0 at a cut

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        next_value: max_a Q(s′, a), same shape.
        lambda_: λ in [0, 1].

    Returns:
        G, same shape, without gradient.

    Raises:
        ValueError: shapes differ.

    For: fast learning with little exploration; λ < 1 keeps the bias small.
    Source: Peng and Williams, Incremental multi-step Q-learning (1996); Kozuno et al., arXiv 2103.00107.
    """
    return lambda_return(reward, discount, truncated, next_value, lambda_)


def watkins_q_lambda(reward: Tensor, discount: Tensor, truncated: Tensor, next_value: Tensor, greedy: Tensor, lambda_: float | Tensor) -> Tensor:
    """Watkins' Q(λ): λ-returns over greedy values, up to the first action that wasn't greedy.

        G_t = r_t + d_t·((1 − λ_t)·max_a Q(s′_t, a) + λ_t·G_{t+1}),  λ_t = λ·1[a_{t+1} greedy], 0 at a cut

    Args:
        reward: r [time, batch, …].
        discount: γ·(1 − terminated), same shape.
        truncated: where the trajectory was cut, same shape, float or bool.
        next_value: max_a Q(s′, a), same shape.
        greedy: whether row t's own action was greedy, same shape, float or bool.
        lambda_: λ in [0, 1].

    Returns:
        G, same shape, without gradient.

    Raises:
        ValueError: shapes differ.

    For: multi-step Q-learning without bias.
    Source: Watkins, Learning from delayed rewards (1989).
    """
    in_range("lambda_", lambda_, 0, 1)
    same_shape(reward=reward, greedy=greedy)
    greedy = greedy.to(reward.dtype)
    return lambda_return(reward, discount, truncated, next_value, like(reward, lambda_) * torch.cat([greedy[1:], greedy[:1]]))


@frozen
class VTrace:
    """V-trace, leaky with `leak` > 0.

        v_t = V(s_t) + ρ_t δ_t + d_t c_t (v_{t+1} − V(s_{t+1}))

    For: actors that lag behind the learner.
    Source: Espeholt et al., IMPALA, arXiv 1802.01561; leaky: Zahavy et al., arXiv 2002.12928.
    """

    lambda_: float = 1.0
    clip_error: float = 1.0
    clip_trace: float = 1.0
    clip_policy: float = 1.0
    leak: float = 0.0

    reads = Trajectory
    of_states = True  # an error of Q(s, a) would be weighted by the ratio of the very action it is about

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)
        in_range("clip_error", self.clip_error, 0, above=True)
        in_range("clip_trace", self.clip_trace, 0, above=True)
        in_range("clip_policy", self.clip_policy, 0, above=True)
        in_range("leak", self.leak, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient; raises ValueError without ratios."""
        _need_ratio(self, trajectory)
        return v_trace(*trajectory, self.lambda_, self.clip_error, self.clip_trace, self.clip_policy, self.leak)


@frozen
class Retrace:
    """Retrace as a return estimator; a trajectory's `value` is Q(s, a), its `next_value` V_π(s′).

        y_t = r_t + d_t·(V_π(s′_t) + c_{t+1}·(y_{t+1} − Q(s_{t+1}, a_{t+1}))),  c_t = λ·min(1, w_t);  A_t = y_t − Q(s_t, a_t)

    For: action values from stored sequences, safe for any behaviour.
    Source: Munos et al., arXiv 1606.02647.
    """

    lambda_: float = 1.0

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient; raises ValueError without ratios."""
        _need_ratio(self, trajectory)
        return estimate(retrace(*trajectory, self.lambda_), trajectory.value)


@frozen
class PengQLambda:
    """Peng's Q(λ) as a return estimator; a trajectory's `value` is Q(s, a), its `next_value` max_a Q(s′, a).

        y_t = r_t + d_t·((1 − λ)·max_a Q(s′_t, a) + λ·y_{t+1});  A_t = y_t − Q(s_t, a_t)

    For: fast learning with little exploration.
    Source: Peng and Williams (1996); Kozuno et al., arXiv 2103.00107.
    """

    lambda_: float = 0.7

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient."""
        reward, discount, truncated, value, next_value, _ = trajectory
        return estimate(peng_q_lambda(reward, discount, truncated, next_value, self.lambda_), value)


@frozen
class WatkinsQLambda:
    """Watkins' Q(λ) as a return estimator: Peng's up to the first action that wasn't greedy.

        y_t = r_t + d_t·((1 − λ_t)·max_a Q(s′_t, a) + λ_t·y_{t+1}),  λ_t = λ·1[w_{t+1} > 0];  A_t = y_t − Q(s_t, a_t)

    A greedy policy's ratio w is 0 exactly for the actions that aren't greedy.

    For: multi-step Q-learning without bias.
    Source: Watkins, Learning from delayed rewards (1989).
    """

    lambda_: float = 0.7

    reads = Trajectory

    def __post_init__(self) -> None:
        in_range("lambda_", self.lambda_, 0, 1)

    def __call__(self, trajectory: Trajectory) -> Estimate:
        """Value targets and advantages, without gradient; raises ValueError without ratios."""
        _need_ratio(self, trajectory)
        reward, discount, truncated, value, next_value, ratio = trajectory
        return estimate(watkins_q_lambda(reward, discount, truncated, next_value, ratio > 0, self.lambda_), value)


def _need_ratio(estimator: object, trajectory: Trajectory) -> None:
    if trajectory.ratio is None:
        raise ValueError(f"{type(estimator).__name__} needs the ratios of both policies' probabilities; use GAE or TDLambda where one policy acts and learns")
