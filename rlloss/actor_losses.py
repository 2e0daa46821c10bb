"""Actor losses: what a policy minimises when it follows a critic instead of the actions that were taken.

Elementwise, to be minimised. In the continuous losses the action is a function of the policy's parameters and
Q(s, a) is evaluated there, so the gradient runs through Q into the action and Q is not detached. That it
would also reach the critic's parameters is the caller's affair: hold them fixed (an optimiser of the actor alone,
or `torch.func.functional_call` with detached critic parameters).
"""

from torch import Tensor

from rlloss.checks import floating, floats_of_one_shape, in_range
from rlloss.numbers import like


def deterministic_policy_gradient(action_value: Tensor) -> Tensor:
    """The loss whose gradient is the deterministic policy gradient.

        ℓ = −Q(s, μ(s)),  ∇ℓ = −∇ₐQ(s, a)|ₐ₌μ(s)·∇μ(s)

    Args:
        action_value: Q(s, μ(s)) of the policy's own action, any shape, not detached: the gradient runs through it.

    Returns:
        The loss, same shape, in the units of the return.

    For: deterministic policies with continuous actions (DDPG, TD3).
    Source: Silver et al., Deterministic policy gradient algorithms (2014); Lillicrap et al., arXiv 1509.02971.
    """
    floating(action_value=action_value)
    return -action_value


def soft_actor(log_probability: Tensor, action_value: Tensor, temperature: float | Tensor) -> Tensor:
    """The soft actor loss of reparameterised actions.

        ℓ = α·log π(a|s) − Q(s, a),  a = f(s, noise) ~ π,  ∇ℓ = α·∇log π(a|s) − ∇ₐQ(s, a)·∇a

    Args:
        log_probability: log π(a|s) of an action sampled from π with a gradient, any shape, in nats.
        action_value: Q(s, a) of the same action, same shape, not detached: the gradient runs through a.
        temperature: α ≥ 0, 0-dim, detached: it has a loss of its own, `temperature_loss`.

    Returns:
        The loss, same shape, in the units of the return.

    Raises:
        ValueError: shapes differ.

    For: continuous actions with an entropy bonus (SAC).
    Source: Haarnoja et al., Soft actor-critic, arXiv 1801.01290.
    """
    floats_of_one_shape(log_probability=log_probability, action_value=action_value)
    in_range("temperature", temperature, 0)
    return like(log_probability, temperature).detach() * log_probability - action_value


def discrete_soft_actor(logits: Tensor, action_values: Tensor, temperature: float | Tensor) -> Tensor:
    """The soft actor loss of discrete actions, exact instead of sampled.

        ℓ = Σₐ π(a|s)·(α·log π(a|s) − Q(s, a)),  π = softmax(logits);   least at π ∝ exp(Q/α)
        ∂ℓ/∂logits = π·(α·log π − Q − ℓ)

    Args:
        logits: of the policy [..., actions].
        action_values: Q(s, ·), same shape, detached: the policy's gradient runs through π alone.
        temperature: α ≥ 0, 0-dim, detached: it has a loss of its own, `temperature_loss`.

    Returns:
        The loss [...], in the units of the return.

    Raises:
        ValueError: shapes differ.

    For: discrete actions with an entropy bonus.
    Source: Christodoulou, Soft actor-critic for discrete action settings, arXiv 1910.07207.
    """
    floats_of_one_shape(logits=logits, action_values=action_values)
    in_range("temperature", temperature, 0)
    log_policy = logits.log_softmax(-1)
    policy = log_policy.exp()
    log_policy = log_policy.masked_fill(policy == 0, 0)  # An action ruled out by −∞ counts nothing.
    return (policy * (like(logits, temperature).detach() * log_policy - action_values.detach())).sum(-1)


def temperature_loss(log_temperature: Tensor, log_probability: Tensor, target_entropy: float | Tensor) -> Tensor:
    """The loss that moves the temperature until the policy's entropy is the target.

        ℓ = −α·(log π(a|s) + H̄),  α = exp(log α),  ∂ℓ/∂log α = ℓ

    Minimising it raises α while the entropy −log π is below H̄ on average, and lowers α while it is above.

    Args:
        log_temperature: log α, 0-dim, the only thing that gets a gradient.
        log_probability: log π(a|s) of actions from π, any shape, in nats, detached: the policy mustn't serve α.
            With discrete actions the exact −entropy can stand here.
        target_entropy: H̄ in nats, such as −(number of action dimensions).

    Returns:
        The loss, shape of log_probability.

    Raises:
        ValueError: log_temperature is not 0-dim.

    For: SAC without a temperature to choose.
    Source: Haarnoja et al., Soft actor-critic algorithms and applications, arXiv 1812.05905.
    """
    floating(log_temperature=log_temperature, log_probability=log_probability)
    if log_temperature.ndim:
        raise ValueError(f"log_temperature must be 0-dim, got shape {tuple(log_temperature.shape)}")
    return -log_temperature.exp() * (log_probability + like(log_probability, target_entropy)).detach()
