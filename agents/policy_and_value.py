"""A policy and a value of states in one: their networks, heads, and what they read of observations. What actor and critic share."""

import torch
from gymnasium import spaces
from torch import Tensor

from agents import action_masks, actions, normalization, parts, recurrent
from agents.heads import Linear
from agents.networks import Network, Parameters, named, part
from agents.normalization import Moments
from agents.policies import Gaussian, Policy, fitting
from agents.spaces import encode, features, storage
from agents.spaces import parts as simple
from rlloss import ValueLoss, frozen
from rlloss.numbers import only


@frozen
class PolicyAndValue:
    """π(·|s) and V(s): features by a network each, or with `shared` by one together, and a linear head each.

    The critic's is of the size that the value loss asks for. With `normalized` networks read observations with mean 0 and deviation 1.
    Of observations that carry an action mask, see `agents.action_masks`, it is obeyed and the rest is read.
    """

    observation_space: spaces.Space
    action_space: spaces.Space
    network: Network
    shared: bool
    normalized: bool
    gaussian: Gaussian
    value_loss: ValueLoss

    def check(self) -> None:
        """Raise ValueError for spaces that can't be read, normalised, or acted in."""
        storage(self.observation_space)
        actions.storage(self.action_space)
        action_masks.check(self.observation_space, self.action_space)
        self.network.width(features(self.read))  # Refuses observations that it can't read.
        if self.normalized and any(storage(space)[1] != torch.float32 for space in simple(self.read)):
            raise ValueError(f"normalize_observations is for numbers, not for images, bits or categories, but observations are {self.read}; leave it false")

    @property
    def read(self) -> spaces.Space:
        """The space of what networks read."""
        return action_masks.without(self.observation_space)

    @property
    def torsos(self) -> tuple[str, ...]:
        """Before the names of whose parameters stands what."""
        return ("actor.",) if self.shared else ("actor.", "critic.")

    @property
    def remembers(self) -> int:
        """How many numbers all networks remember of each episode; 0 for those without memory."""
        return len(self.torsos) * recurrent.remembers(self.network)

    @property
    def policy(self) -> Policy:
        """That of the action space."""
        return fitting(self.action_space, self.gaussian)

    def init(self, generator: torch.Generator) -> Parameters:
        """Initial parameters: `actor.` and `critic.` those of networks, `policy.` and `value.` those of heads."""
        shape = features(self.read)
        width = self.network.width(shape)
        parameters = {name: p for torso in self.torsos for name, p in named(torso, self.network.init(generator, shape)).items()}
        parameters |= named("policy.", self.policy.init(generator, width))
        return parameters | named("value.", Linear().init(generator, width, (1, self.value_loss.outputs)))

    def init_moments(self) -> Moments | tuple[()]:
        """The moments of observations before any was seen; () where they aren't normalised."""
        return normalization.unseen(features(self.read)) if self.normalized else ()

    def seen(self, moments: Moments | tuple[()], observation: Tensor) -> Moments | tuple[()]:
        """The moments after stored observations [batch, …] more."""
        return normalization.seen(moments, self._encoded(observation)) if self.normalized else ()

    def _encoded(self, observation: Tensor) -> Tensor:
        return encode(self.read, action_masks.observed(self.observation_space, observation))

    def encoded(self, moments: Moments | tuple[()], observation: Tensor) -> Tensor:
        """What networks read [batch, *features] of stored observations [batch, …]."""
        encoded = self._encoded(observation)
        return normalization.normalized(moments, encoded) if self.normalized else encoded

    def allowed(self, observation: Tensor) -> Tensor | None:
        """Which actions stored observations [batch, …] allow, bool [batch, outputs]; None for all."""
        return action_masks.allowed(self.observation_space, self.action_space, observation)

    def features(self, parameters: Parameters, encoded: Tensor, remembered: Tensor | None = None, ended: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the policy and what the critic reads [batch, width], of encoded observations [batch, *features], and what is remembered then.

        With memory a batch is sequences, one for each row of `remembered` [sequences, remembers], with the `ended` [batch] of
        `Recurrent`; None where each is one step.
        """
        nets = [part(torso, parameters) for torso in self.torsos]
        if not self.remembers:
            read = [self.network(net, encoded) for net in nets]
            return read[0], read[-1], None
        ended = torch.zeros_like(encoded.flatten(1)[:, 0], dtype=torch.bool) if ended is None else ended
        # Side by side, since steps one after the other make a program long.
        stacked, each = {name: torch.stack([net[name] for net in nets]) for name in nets[0]}, remembered.unflatten(-1, (len(nets), -1))
        read, kept = torch.func.vmap(self.network, (0, None, 1, None), (0, 1))(stacked, encoded, each, ended)
        return read[0], read[-1], kept.flatten(1)

    def of_actions(self, parameters: Parameters, read: Tensor, allowed: Tensor | None) -> Tensor:
        """What the policy says of actions [batch, outputs] for its features [batch, width], of those that are allowed."""
        return only(self.policy(part("policy.", parameters), read), allowed)

    def said(self, parameters: Parameters, moments: Moments | tuple[()], observation: Tensor, remembered: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the policy says of actions [batch, outputs] for stored observations [batch, …], and what is remembered then."""
        encoded = self.encoded(moments, observation)
        # The critic's network is left alone where it can be: what it reads would cost time at every call, though nothing came of it.
        actor, remembered = self.features(parameters, encoded, remembered)[::2] if self.remembers else (self.network(part("actor.", parameters), encoded), None)
        return self.of_actions(parameters, actor, self.allowed(observation)), remembered

    def outputs(self, parameters: Parameters, read: Tensor) -> Tensor:
        """The critic's [batch, outputs] for its features [batch, width]."""
        return Linear()(part("value.", parameters), read, (1, self.value_loss.outputs)).squeeze(1)

    def moved(self, parameters: Parameters, transform: tuple, returns: Tensor) -> tuple[Parameters, tuple]:
        """Parameters and state of the running transform after it has seen returns; the critic keeps its values."""
        if not parts.running(self.value_loss):
            return parameters, transform
        scale, shift, fresh = parts.followed(self.value_loss, transform, returns)
        return parameters | named("value.", Linear().rescaled(part("value.", parameters), scale, shift)), fresh
