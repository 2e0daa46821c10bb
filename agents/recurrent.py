"""Recurrent networks as values: fully connected layers, then a cell whose memory goes from one step of an episode to the next."""

from typing import Protocol

import torch
from torch import Tensor

from agents.networks import MLP, Network, Parameters, linear, named, part, uniform
from rlloss.checks import in_range
from rlloss.frozen import frozen


class Cell(Protocol):
    """One step of a recurrence, in two parts, so that what doesn't depend on the memory is computed for all steps at once."""

    units: int

    @property
    def remembers(self) -> int:
        """How many numbers are remembered."""

    def init(self, generator: torch.Generator, inputs: int) -> Parameters:
        """Initial parameters for so many inputs."""

    def read(self, parameters: Parameters, x: Tensor) -> Tensor:
        """What the inputs [batch, inputs] say of the gates, [batch, gates · units]."""

    def __call__(self, parameters: Parameters, read: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
        """Features [batch, units], and what is remembered then [batch, remembers]."""


@frozen
class GRU:
    """A gated recurrent unit, as torch.nn.GRUCell, initialised like it: U(±1/√units).

        r = σ(W_r x + b_r + U_r h + c_r),  z = σ(W_z x + b_z + U_z h + c_z)
        n = tanh(W_n x + b_n + r·(U_n h + c_n)),  h ← (1 − z)·n + z·h

    It remembers h, its features.

    Source: Cho et al., Learning phrase representations, arXiv 1406.1078.
    """

    units: int = 64

    def __post_init__(self) -> None:
        in_range("units", self.units, 1)

    @property
    def remembers(self) -> int:
        """The width of h."""
        return self.units

    def init(self, generator: torch.Generator, inputs: int) -> Parameters:
        """`input` and `hidden`, two `linear` layers to the gates r, z and n."""
        return _gates(generator, inputs, self.units, 3)

    def read(self, parameters: Parameters, x: Tensor) -> Tensor:
        """W x + b for all gates."""
        return _layer(parameters, "input", x)

    def __call__(self, parameters: Parameters, read: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
        """Features h [batch, units], and h."""
        (r, z, n), (hidden_r, hidden_z, hidden_n) = (each.chunk(3, -1) for each in (read, _layer(parameters, "hidden", remembered)))
        z = torch.sigmoid(z + hidden_z)
        h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n) + z * remembered
        return h, h


@frozen
class LSTM:
    """A long short-term memory, as torch.nn.LSTMCell, initialised like it: U(±1/√units).

        i, f, o = σ(W x + b + U h + c) each,  g = tanh(W_g x + b_g + U_g h + c_g)
        m ← f·m + i·g,  h ← o·tanh(m)

    It remembers m and h side by side; its features are h.

    Source: Hochreiter and Schmidhuber, Long short-term memory (1997); the gate f: Gers, Schmidhuber and Cummins, Learning to forget (2000).
    """

    units: int = 64

    def __post_init__(self) -> None:
        in_range("units", self.units, 1)

    @property
    def remembers(self) -> int:
        """The widths of m and of h."""
        return 2 * self.units

    def init(self, generator: torch.Generator, inputs: int) -> Parameters:
        """`input` and `hidden`, two `linear` layers to the gates i, f, g and o."""
        return _gates(generator, inputs, self.units, 4)

    def read(self, parameters: Parameters, x: Tensor) -> Tensor:
        """W x + b for all gates."""
        return _layer(parameters, "input", x)

    def __call__(self, parameters: Parameters, read: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor]:
        """Features h [batch, units], and m and h."""
        m, h = remembered.chunk(2, -1)
        i, f, g, o = (read + _layer(parameters, "hidden", h)).chunk(4, -1)
        m = torch.sigmoid(f) * m + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(m)
        return h, torch.cat([m, h], -1)


def _gates(generator: torch.Generator, inputs: int, units: int, gates: int) -> Parameters:
    parameters = {}
    for name, width in (("input", inputs), ("hidden", units)):
        layer = uniform(generator, width, gates * units)
        parameters |= named(f"{name}.", {each: (width / units) ** 0.5 * p for each, p in layer.items()})
    return parameters


def _layer(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    return linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


@frozen
class Recurrent:
    """Fully connected layers and then a cell; a `Network` that also reads and says what is remembered.

    It reads whole sequences of steps, the memory made anew wherever an episode has ended: the gradient goes back through a sequence,
    not beyond its first step.

    Source: Hausknecht and Stone, Deep recurrent Q-learning for partially observable MDPs, arXiv 1507.06527.
    """

    cell: Cell = GRU()
    hidden: tuple[int, ...] = (64,)
    activation: str = "tanh"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        self.layers  # noqa: B018  # It refuses what can't be.

    @property
    def layers(self) -> MLP:
        """Those before the cell."""
        return MLP(self.hidden, self.activation, self.layer_norm)

    @property
    def remembers(self) -> int:
        """How many numbers are remembered of each episode."""
        return self.cell.remembers

    def width(self, features: tuple[int, ...]) -> int:
        """That of the cell."""
        return self.cell.units

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """Those of the layers, and `cell.` those of the cell."""
        return self.layers.init(generator, features) | named("cell.", self.cell.init(generator, self.layers.width(features)))

    def __call__(self, parameters: Parameters, observation: Tensor, remembered: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Features [sequences · steps, width] of observations [sequences · steps, *features], sequence after sequence.

        Args:
            parameters: of layers and cell.
            observation: as many steps of each sequence as there are observations to a row of `remembered`.
            remembered: [sequences, remembers], before the first step of each; 0 where that begins an episode.
            ended: bool [sequences · steps], whether an episode ended with this step, so that the next one remembers nothing.

        Returns:
            The features, and what is remembered after the last step of each sequence, whether it ended an episode or not.
        """
        cell, shape = part("cell.", parameters), (len(remembered), -1)
        read = self.cell.read(cell, self.layers(parameters, observation)).unflatten(0, shape).unbind(1)
        features, ends = [], ended.unflatten(0, shape).unbind(1)
        for step, gates in enumerate(read):
            if step:
                remembered = torch.where(ends[step - 1][:, None], 0.0, remembered)  # Not a product: nothing that was remembered may show.
            h, remembered = self.cell(cell, gates, remembered)
            features.append(h)
        return torch.stack(features, 1).flatten(0, 1), remembered


def remembers(network: Network) -> int:
    """How many numbers a network remembers of each episode; 0 for one without memory."""
    return getattr(network, "remembers", 0)


def refuse(agent: str, network: Network) -> None:
    """Raise ValueError if an agent of this name, which keeps no memory, would get a recurrent network."""
    if remembers(network):
        raise ValueError(f"network {type(network).__name__} is recurrent, but {agent} keeps no memory from step to step; choose network=mlp, or agent=ppo or a2c")
