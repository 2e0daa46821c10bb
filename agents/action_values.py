"""Action values as a value: a network, a head and a value loss, and how they explore. What DQN and PQN share."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from agents import action_masks, parts, recurrent
from agents.agent import Metrics
from agents.batches import Batch
from agents.exploration import Exploration, Greedy
from agents.heads import Head
from agents.networks import Network, Parameters, named, part
from agents.spaces import encode, features, storage
from agents.streams import normal, paired
from rlloss import Observed, Regularizer, ReturnEstimator, Target, ValueLoss, empirical_loss, frozen, settled, total
from rlloss.numbers import only
from rlloss.targets import action_outputs
from rlloss.value_losses import ScalarHead, ScalarTarget

# What regularisers may read of action values.
OBSERVED = ("parameters", "action_values", "action", "features", "next_features")


@frozen
class ActionValues:
    """Q(s, ·) of Discrete actions: features by a network, outputs by a head of the size that the value loss asks for.

    Of observations that carry an action mask, see `agents.action_masks`, it is obeyed and the rest is read.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    network: Network
    head: Head
    value_loss: ValueLoss
    regularizers: dict[str, Regularizer]

    def check(self, agent: str, exploration: Exploration, target: Target | ReturnEstimator) -> None:
        """Raise ValueError where the parts, or an exploration or a target with them, can't serve an agent of this name."""
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"{agent} needs Discrete actions, but this environment has {self.action_space}; choose another environment or wrap it")
        storage(self.observation_space)
        action_masks.check(self.observation_space, self.action_space)
        recurrent.refuse(agent, self.network)
        self.network.width(features(self.read))  # Refuses observations that it can't read.
        if isinstance(exploration, Greedy) and not self.noise:
            raise ValueError("exploration Greedy needs a head with noise, or nothing would ever be explored; choose head=noisy or another exploration")
        if getattr(target, "of_states", False):
            raise ValueError(f"target {type(target).__name__} is for values of states: {agent} would never learn an action that isn't greedy; choose Retrace")
        parts.check(agent, self.value_loss, self.regularizers, OBSERVED, ("value", "total"))

    @property
    def read(self) -> spaces.Space:
        """The space of what the network reads."""
        return action_masks.without(self.observation_space)

    @property
    def shape(self) -> tuple[int, int]:
        """Actions, and outputs per action."""
        return int(self.action_space.n), self.value_loss.outputs

    @property
    def noise(self) -> int:
        """Normal random numbers that one pass through the head takes."""
        return self.head.numbers(self.network.width(features(self.read)), self.shape)

    def init(self, generator: torch.Generator) -> Parameters:
        """Initial parameters, those of the head with `head.` before their names."""
        shape = features(self.read)
        return self.network.init(generator, shape) | named("head.", self.head.init(generator, self.network.width(shape), self.shape))

    def features(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """What the head reads, [batch, width], of stored observations [batch, …]."""
        return self.network(parameters, encode(self.read, action_masks.observed(self.observation_space, observation)))

    def allowed(self, observation: Tensor) -> Tensor | None:
        """Which actions stored observations [batch, …] allow, bool [batch, actions]; None for all."""
        return action_masks.allowed(self.observation_space, self.action_space, observation)

    def of_features(self, parameters: Parameters, read: Tensor, noise: Tensor | None = None) -> Tensor:
        """The head's outputs [batch, actions, outputs] for features [batch, width]."""
        return self.head(part("head.", parameters), read, self.shape, noise)

    def outputs(self, parameters: Parameters, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """The head's outputs [batch, actions, outputs] for stored observations [batch, …]."""
        return self.of_features(parameters, self.features(parameters, observation), noise)

    def values(self, parameters: Parameters, transform: tuple, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Q(s, ·) [batch, actions] for stored observations [batch, …], −∞ where an action isn't allowed, with the running transform in a state."""
        return only(settled(self.value_loss, transform).value(self.outputs(parameters, observation, noise)), self.allowed(observation))

    def acting_uniforms(self, exploration: Exploration, num_envs: int) -> int:
        """Uniform random numbers that acting in so many environments takes."""
        return num_envs * exploration.numbers(self.shape[0]) + paired(self.noise)

    def act(
        self, exploration: Exploration, parameters: Parameters, transform: tuple, observation: Tensor, uniforms: Tensor, progress: Tensor, explore: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Actions [environments], counted from 0, and the probabilities with which they were chosen.

        Args:
            exploration: how an action is chosen from values.
            parameters: of network and head.
            transform: the state of the running transform.
            observation: [environments, …].
            uniforms: flat, `acting_uniforms`, in [0, 1).
            progress: share of the training done, 0-dim.
            explore: 1 to explore, 0 for the greedy policy, 0-dim.
        """
        each = exploration.numbers(self.shape[0])
        of_choice, of_noise = uniforms[: len(observation) * each], uniforms[len(observation) * each :]
        noise = explore * normal(of_noise)[: self.noise] if self.noise else None
        values = self.values(parameters, transform, observation, noise)
        mask = () if (allowed := self.allowed(observation)) is None else (allowed,)
        return exploration(values, of_choice.reshape(len(observation), each), progress, explore, *mask)

    def gradient(self, parameters: Parameters, transform: tuple, batch: Batch, target: Tensor, noise: Tensor | None = None) -> tuple[Parameters, Metrics]:
        """The gradient of the regularised loss of a batch against its targets, and what can be told of it.

            J = 1/n Σ w·ℓ(Q(s, a), y) + Σₖ λₖΩₖ
        """
        value_loss = settled(self.value_loss, transform)
        reads_next = any("next_features" in regularizer.needs for regularizer in self.regularizers.values())

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
            read = self.features(parameters, batch.observation)
            everything = self.of_features(parameters, read, noise)
            outputs = action_outputs(everything, batch.action)
            following = self.features(parameters, batch.next_observation) if reads_next else None
            observed = Observed(parameters, value_loss.value(everything), batch.action, read, following, mask=batch.mask)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            value = empirical_loss(value_loss(outputs, target), batch.weight, batch.mask)
            loss, terms = total({"value": value, **penalties})
            return loss, (terms, outputs)

        gradient, (loss, (terms, outputs)) = torch.func.grad_and_value(objective, has_aux=True)(parameters)
        value = value_loss.value(outputs)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss}
        metrics |= {"td_error": value - value_loss.expected(target), "value": value}
        if batch.mask is not None:
            metrics["mask"] = batch.mask
        if hasattr(value_loss, "linear_zone"):
            metrics["linear_zone"] = value_loss.linear_zone(outputs, target)
        return gradient, metrics

    def moved(self, trees: list[Parameters], transform: tuple, returns: Tensor, mask: Tensor | None) -> tuple[list[Parameters], tuple]:
        """Parameters and state of the running transform after it has seen returns [batch]; all networks keep what `value_loss.moved` keeps."""
        if not parts.running(self.value_loss):
            return trees, transform
        scale, shift, fresh = parts.followed(self.value_loss, transform, returns, mask)
        return [tree | named("head.", self.head.rescaled(part("head.", tree), scale, shift)) for tree in trees], fresh


class Expectation(ScalarTarget):
    """A value loss whose targets are numbers, which no support clips: what a running scale should see."""

    def __init__(self, value_loss: ValueLoss) -> None:
        self.outputs, self.value = value_loss.outputs, value_loss.value


def noise_of_passes(uniforms: Tensor, passes: int, count: int) -> tuple[Tensor | None, ...]:
    """For each pass through a head as many normal numbers as it takes, from `passes` times `paired(count)` uniform ones; None where it takes none."""
    if not count:
        return (None,) * passes
    return tuple(normal(each)[:count] for each in uniforms.float().clamp(max=1 - 2**-24).chunk(passes))


def report(metrics: Metrics, value_loss: ValueLoss) -> dict[str, float]:
    """The metrics of one update as numbers, by TensorBoard tag."""
    counted = metrics["mask"] if "mask" in metrics else torch.ones_like(metrics["td_error"], dtype=torch.bool)
    magnitude = metrics["td_error"][counted].abs().numpy()
    p50, p95 = np.percentile(magnitude, (50, 95)) if len(magnitude) else (np.nan, np.nan)
    numbers = {name: float(metric) for name, metric in metrics.items() if metric.ndim == 0}
    numbers |= {
        "value/mean": float(metrics["value"][counted].mean()),
        "td_error/abs_mean": float(metrics["td_error"][counted].abs().mean()),
        "td_error/abs_p50": float(p50),
        "td_error/abs_p95": float(p95),
    }
    if "linear_zone" in metrics:
        numbers["td_error/linear_zone_share"] = float(metrics["linear_zone"][counted].float().mean())
    if isinstance(value_loss, ScalarHead) and not parts.running(value_loss):
        numbers["td_error/curvature"] = effective_curvature(value_loss, metrics["value"][counted], metrics["td_error"][counted])
    return numbers


def effective_curvature(value_loss: ScalarHead, value: Tensor, error: Tensor) -> float:
    """How strongly the loss curves where the errors are: the mean of ℓ″ over values [batch] and their errors [batch].

        1/n Σ (ℓ(e + w) − 2ℓ(e) + ℓ(e − w)) / w²,  w = 1/20 of the mean |e|

    Of Huber's loss it is the share of errors within δ. Differences of this width give a kink its part too: 2p(0) for |e|, where errors have the density p.
    """
    target, output = (value - error).double(), value_loss.transform(value.double())
    width = 0.05 * (output - value_loss.transform(target)).abs().mean().clamp(min=1e-6)
    around = output + width * torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    above, at, below = value_loss(around[..., None], target.expand_as(around))
    return float((above - 2 * at + below).mean() / width**2)
