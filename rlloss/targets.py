"""Bootstrapped targets: which next value a Q-value is regressed on."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rlloss.frozen import frozen
from rlloss.value_losses import ValueLoss

Outputs = Callable[[], Tensor]


class Target(Protocol):
    """How the target of a Q-value is made from the next state's outputs."""

    def __call__(self, value_loss: ValueLoss, reward: Tensor, discount: Tensor, target: Outputs, online: Outputs) -> Tensor:
        """The target in the head's own space, without gradient.

        Args:
            value_loss: gives values and the Bellman backup.
            reward: r [batch].
            discount: γ·(1 − terminated) [batch].
            target: () → the target network's outputs at the next state [batch, actions, outputs].
            online: () → the online network's outputs there; called only where the target needs them.
        """


def greedy_outputs(value_loss: ValueLoss, outputs: Tensor, selector: Tensor) -> Tensor:
    """The outputs of the action that `selector` values most.

        outputs[i, argmax_a V(selector[i, a])]

    Args:
        value_loss: gives the expected value of a head's outputs.
        outputs: [batch, actions, outputs], what is evaluated.
        selector: [batch, actions, outputs], what chooses.

    Returns:
        [batch, outputs].
    """
    action = value_loss.value(selector).argmax(-1)
    return action_outputs(outputs, action)


def action_outputs(outputs: Tensor, action: Tensor) -> Tensor:
    """The outputs [batch, outputs] of one action [batch] in each row of [batch, actions, outputs]."""
    index = action[:, None, None].expand(-1, 1, outputs.shape[-1])
    return outputs.gather(1, index).squeeze(1)


@frozen
class QLearning:
    """The target network both chooses and values the next action.

        y = r + d · max_a Q(s′, a; θ⁻),  d = γ·(1 − terminated)

    Source: Watkins (1989); with a target network: Mnih et al., Human-level control (2015).
    """

    def __call__(self, value_loss: ValueLoss, reward: Tensor, discount: Tensor, target: Outputs, online: Outputs) -> Tensor:
        """The target in the head's space; arguments as in `Target`."""
        with torch.no_grad():
            outputs = target()
            return value_loss.target(reward, discount, greedy_outputs(value_loss, outputs, outputs))


@frozen
class DoubleQLearning:
    """The online network chooses the next action, the target network values it.

        y = r + d · Q(s′, argmax_a Q(s′, a; θ); θ⁻),  d = γ·(1 − terminated)

    Source: van Hasselt, Guez and Silver, arXiv 1509.06461.
    """

    def __call__(self, value_loss: ValueLoss, reward: Tensor, discount: Tensor, target: Outputs, online: Outputs) -> Tensor:
        """The target in the head's space; arguments as in `Target`."""
        with torch.no_grad():
            return value_loss.target(reward, discount, greedy_outputs(value_loss, target(), online()))
