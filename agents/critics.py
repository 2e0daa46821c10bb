"""Several action-value critics as one value: what SAC, TD3 and DDPG bootstrap from and climb."""

import math

import torch
from gymnasium import spaces
from torch import Tensor

from agents import parts
from agents.agent import Metrics
from agents.batches import Batch
from agents.heads import Linear
from agents.networks import Network, Parameters, named, part
from agents.spaces import encode, features
from rlloss import Observed, Regularizer, ValueLoss, empirical_loss, frozen, total
from rlloss.checks import in_range
from rlloss.numbers import once
from rlloss.targets import action_outputs, lowest_outputs

# What regularisers may read of critics; where actions are Discrete also the values of all of them.
OBSERVED = ("parameters", "action", "features", "next_features")


@frozen
class Critics:
    """Q₁, …, Q_count, each with a network of its own and as many outputs per value as the value loss asks for.

    Of Box actions Q(s, a): the network reads the encoded observation, flat, and the action behind it. Of Discrete ones Q(s, ·),
    all at once. A parameter holds those of all critics, [count, …].

    Source: Fujimoto, van Hoof and Meger, Addressing function approximation error in actor-critic methods, arXiv 1802.09477.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    network: Network
    value_loss: ValueLoss
    regularizers: dict[str, Regularizer]
    count: int = 2

    def check(self, agent: str) -> None:
        """Raise ValueError where the parts can't serve an agent of this name."""
        in_range("critics", self.count, 1)
        self.network.width(self.reads)  # Refuses what it can't read.
        observed = OBSERVED + ("action_values",) * self.discrete
        parts.check(agent, self.value_loss, self.regularizers, observed, ("value", "policy", "temperature", "total"))

    @property
    def discrete(self) -> bool:
        """Whether actions are Discrete, else Box."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def reads(self) -> tuple[int, ...]:
        """The shape of what a network reads of one observation, and of one action if that is a Box."""
        shape = features(self.observation_space)
        return shape if self.discrete else (math.prod(shape) + math.prod(self.action_space.shape),)

    @property
    def shape(self) -> tuple[int, int]:
        """Values that a head says at once, and outputs per value."""
        return int(self.action_space.n) if self.discrete else 1, self.value_loss.outputs

    def init(self, generator: torch.Generator) -> Parameters:
        """Initial parameters of all critics [count, …], those of the heads with `head.` before their names."""
        each = [self._one(generator) for _ in range(self.count)]
        return {name: torch.stack([parameters[name] for parameters in each]) for name in each[0]}

    def _one(self, generator: torch.Generator) -> Parameters:
        return self.network.init(generator, self.reads) | named("head.", Linear().init(generator, self.network.width(self.reads), self.shape))

    def inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        """What networks read [batch, *reads] of stored observations [batch, …] and, if they are Boxes, actions [batch, …]."""
        encoded = encode(self.observation_space, observation)
        # Once: the first layer of each critic would compute a policy's action anew for each of its units.
        return encoded if self.discrete else once(torch.cat([encoded.flatten(1), action.reshape(len(action), -1)], 1))

    def of_features(self, parameters: Parameters, read: Tensor) -> Tensor:
        """One critic's [batch, outputs], of Discrete actions [batch, actions, outputs], for its features [batch, width]."""
        outputs = Linear()(part("head.", parameters), read, self.shape)
        return outputs if self.discrete else outputs.squeeze(1)

    def of_one(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """What one critic of these parameters says of `inputs` [batch, outputs], of Discrete actions [batch, actions, outputs]."""
        return self.of_features(parameters, self.network(parameters, inputs))

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """What all critics say of `inputs` [critics, batch, outputs], of Discrete actions [critics, batch, actions, outputs]."""
        return torch.func.vmap(self.of_one, (0, None))(parameters, inputs)

    def lowest(self, parameters: Parameters, value_loss: ValueLoss, inputs: Tensor) -> Tensor:
        """The outputs [batch, …, outputs] of the critic whose value is the lowest."""
        return lowest_outputs(value_loss, self.outputs(parameters, inputs))

    def gradient(self, parameters: Parameters, value_loss: ValueLoss, batch: Batch, target: Tensor, next_action: Tensor | None) -> tuple[Parameters, Metrics]:
        """The gradient of the regularised loss of a batch against its targets, and what can be told of it.

            J = Σₖ (1/n Σ w·ℓ(Qₖ(s, a), y) + Σⱼ λⱼΩⱼ)

        Every critic has the gradient that it would have alone. Errors told are mean magnitudes over critics, values are means.
        """
        inputs = self.inputs(batch.observation, batch.action)
        reads_next = any("next_features" in regularizer.needs for regularizer in self.regularizers.values())
        following = self.inputs(batch.next_observation, next_action) if reads_next else None

        def of_one(parameters: Parameters) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            read = self.network(parameters, inputs)
            outputs, values = self.of_features(parameters, read), None
            if self.discrete:
                outputs, values = action_outputs(outputs, batch.action), value_loss.value(outputs)
            observed = Observed(parameters, values, batch.action, read, self.network(parameters, following) if reads_next else None)
            penalties = {name: regularizer(observed) for name, regularizer in self.regularizers.items()}
            value = value_loss.value(outputs)
            told = {"td_error": (value - value_loss.expected(target)).abs(), "value": value}
            if hasattr(value_loss, "linear_zone"):
                told["linear_zone"] = value_loss.linear_zone(outputs, target).float()
            return {"value": empirical_loss(value_loss(outputs, target), batch.weight), **penalties}, told

        def objective(parameters: Parameters) -> tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]:
            terms, told = torch.func.vmap(of_one)(parameters)
            loss, terms = total({name: term.sum() for name, term in terms.items()})
            return loss, (terms, told)

        gradient, (loss, (terms, told)) = torch.func.grad_and_value(objective, has_aux=True)(parameters)
        metrics = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss}
        return gradient, metrics | {name: each.mean(0) for name, each in told.items()}

    def moved(self, trees: list[Parameters], transform: tuple, returns: Tensor) -> tuple[list[Parameters], tuple]:
        """Parameters and state of the running transform after it has seen returns [batch]; all critics keep what `value_loss.moved` keeps."""
        scale, shift, fresh = parts.followed(self.value_loss, transform, returns)
        rescaled = torch.func.vmap(lambda head: Linear().rescaled(head, scale, shift))
        return [tree | named("head.", rescaled(part("head.", tree))) for tree in trees], fresh
