"""How actions are chosen from their values while learning. Each rule also tells how likely its choice was."""

from typing import Protocol

import torch
from torch import Tensor

from agents.schedules import Linear, Schedule
from rlloss.checks import in_range
from rlloss.frozen import frozen


class Exploration(Protocol):
    """A rule that chooses actions."""

    def numbers(self, actions: int) -> int:
        """How many uniform random numbers one choice takes."""

    def __call__(self, values: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions [batch] and their probabilities [batch]; the greedy ones where `explore` is 0.

        Args:
            values: Q(s, ·) [batch, actions].
            uniforms: [batch, numbers] in [0, 1).
            progress: share of the training done, 0-dim.
            explore: 1 or 0, 0-dim.
            allowed: which actions may be chosen, bool [batch, actions], the others' values being −∞; None for all, and not handed over then.
        """

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """What is scheduled, by TensorBoard tag."""


@frozen
class EpsilonGreedy:
    """A uniformly random action, of those that are allowed, with probability ε, else the greedy one.

        π(a|s) = ε/|A| + (1 − ε)·1[a = argmax Q(s, ·)]

    Source: Watkins, Learning from delayed rewards (1989).
    """

    epsilon: Schedule = Linear(1.0, 0.05, 0.2)

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, Linear):
            in_range("epsilon.start", self.epsilon.start, 0, 1)
            in_range("epsilon.end", self.epsilon.end, 0, 1)

    def numbers(self, actions: int) -> int:
        """Two: whether to explore, and where to."""
        return 2

    def __call__(self, values: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions and their probabilities; see `Exploration`."""
        greedy, actions = values.argmax(-1), values.shape[-1]
        epsilon = explore * self.epsilon(progress)
        count = actions if allowed is None else allowed.sum(-1)
        anywhere = (uniforms[:, 1] * count).long().clamp(max=count - 1)
        if allowed is not None:
            anywhere = (allowed.cumsum(-1) <= anywhere[:, None]).sum(-1)  # The action before which so many are allowed.
        action = torch.where(uniforms[:, 0] < epsilon, anywhere, greedy)
        return action, epsilon / count + (1 - epsilon) * (action == greedy)

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """ε."""
        return {"schedule/epsilon": float(self.epsilon(progress))}


@frozen
class Softmax:
    """An action drawn from the softmax of the values.

        π(a|s) = exp(Q(s, a)/τ) / Σ_b exp(Q(s, b)/τ)

    For: soft and Munchausen targets, with the same temperature τ.
    Source: Sutton, Integrated architectures for learning, planning, and reacting (1990).
    """

    temperature: float = 0.03

    def __post_init__(self) -> None:
        in_range("temperature", self.temperature, 0, above=True)

    def numbers(self, actions: int) -> int:
        """One an action."""
        return actions

    def __call__(self, values: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions and their probabilities; see `Exploration`."""
        logits = values / self.temperature
        # The highest of logits with Gumbel noise is a draw from their softmax.
        gumbel = -torch.log(-torch.log(uniforms.clamp(1e-7, 1 - 1e-7)))
        action = (logits + explore * gumbel).argmax(-1)
        probability = logits.softmax(-1).gather(-1, action[:, None]).squeeze(-1)
        return action, torch.where(explore > 0, probability, torch.ones_like(probability))

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """Nothing."""
        return {}


@frozen
class Greedy:
    """The greedy action: exploration is left to a noisy head. Source: Fortunato et al., arXiv 1706.10295."""

    def numbers(self, actions: int) -> int:
        """None."""
        return 0

    def __call__(self, values: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions and their probabilities; see `Exploration`."""
        return values.argmax(-1), torch.ones_like(values[:, 0])

    def schedules(self, progress: Tensor) -> dict[str, float]:
        """Nothing."""
        return {}
