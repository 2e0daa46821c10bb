"""A person's own torch.nn.Module as a network: its parameters are taken out, and given back at each call."""

import contextlib
import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from agents.convolutions import convolution
from agents.networks import Parameters, named, part
from rlloss.frozen import frozen


@frozen
class Module:
    """A network made of a class that is a torch.nn.Module, and maps [batch, *features] to [batch, width].

        φ = module(x; θ)

    If the constructor has an argument `features`, it gets the shape of an encoded observation. Buffers, and
    parameters that require no gradient, are constants, the same in all runs. A module that changes its buffers or
    draws random numbers when it is called, such as BatchNorm or Dropout, is refused: a network is a pure function.
    """

    target: type
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(self.arguments)
            inspect.signature(self.target).bind(**_given(self.target, (), self.arguments))
        except TypeError as error:
            raise ValueError(f"{self.target.__name__} can't be made of {dict(self.arguments)}: {error}") from error

    def width(self, features: tuple[int, ...]) -> int:
        """What comes out for zeros; ValueError where the module can't be made or called, or isn't pure."""
        return _width(self.target, json.dumps(self.arguments), features)

    def init(self, generator: torch.Generator, features: tuple[int, ...]) -> Parameters:
        """The module's own initial parameters, `module.` before their names, drawn from a seed out of the generator."""
        _skeleton(self.target, json.dumps(self.arguments), features)
        seed = int(torch.randint(2**62, (), generator=generator))
        return named("module.", trained(make(self.target, json.dumps(self.arguments), features, seed)))

    def __call__(self, parameters: Parameters, observation: Tensor) -> Tensor:
        """Features [batch, width] of encoded observations [batch, *features]."""
        module = _skeleton(self.target, json.dumps(self.arguments), tuple(observation.shape[1:]))
        with Convolutions():
            return torch.func.functional_call(module, part("module.", parameters), (observation,))


def _given(target: type, features: tuple[int, ...], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a constructor is called with: the arguments, and the features if it has an argument of this name."""
    return ({"features": features} if "features" in inspect.signature(target).parameters else {}) | dict(arguments)


def trained(module: torch.nn.Module) -> Parameters:
    """The parameters that a gradient changes."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def make(target: type, arguments: str, features: tuple[int, ...], seed: int) -> torch.nn.Module:
    """A module of its class and its arguments as JSON, initialised from a seed; ValueError, in one line, where that fails."""
    with _one_line(f"{target.__name__} can't be made"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return target(**_given(target, features, json.loads(arguments)))


@functools.cache
def _skeleton(target: type, arguments: str, features: tuple[int, ...]) -> torch.nn.Module:
    """The module whose parameters are replaced at each call; its constants are those of seed 0."""
    # Kept from `width` and `init` on: inside vmap or a trace, no module can be made.
    return make(target, arguments, features, 0)


@functools.cache
def _width(target: type, arguments: str, features: tuple[int, ...]) -> int:
    _skeleton(target, arguments, features)
    module, name = make(target, arguments, features, 0), target.__name__
    if any(isinstance(parameter, torch.nn.parameter.UninitializedParameter) for parameter in module.parameters()):
        raise ValueError(f"{name} has lazy layers, whose sizes only a first call would say; give them their sizes; a constructor argument named features gets the shape of an observation")
    before = {buffer: tensor.clone() for buffer, tensor in module.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        drawn = torch.get_rng_state()
        with _one_line(f"{name} can't read observations of shape {features}"):
            outputs = module(torch.zeros(2, *features))
        if not torch.equal(drawn, torch.get_rng_state()):
            raise ValueError(f"{name} draws random numbers when it is called, so it is no pure function; leave out Dropout and the like")
    if changed := [buffer for buffer, tensor in module.named_buffers() if not torch.equal(tensor, before[buffer])]:
        changes = f"changes its buffers {', '.join(changed)}"
        raise ValueError(f"{name} {changes} when it is called, so it is no pure function; LayerNorm could stand for BatchNorm")
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 2:
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"{name} must map [batch, {', '.join(map(str, features))}] to [batch, width]; for a batch of 2 it gave {found}")
    return outputs.shape[1]


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # A person's own code raises anything.
        raise ValueError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error


class Convolutions(TorchFunctionMode):
    """Within it, torch's conv2d is our `convolution`, which compiles for any number of runs, wherever ours can do it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or ours."""
        if function is torch.conv2d and (ours := self._ours(*args, **(kwargs or {}))) is not None:
            return ours
        return function(*args, **(kwargs or {}))

    # The names are torch's, since arguments may come by them.
    def _ours(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor | None:
        """The convolution as ours; None where filters aren't square, or have gaps, groups or a padding in words."""
        (stride, across), (padding, beside), dilation = _pair(stride), _pair(padding), _pair(dilation)
        square = stride == across and padding == beside and weight.shape[2] == weight.shape[3]
        if not square or dilation != (1, 1) or groups != 1 or isinstance(padding, str) or input.ndim != 4:
            return None
        bias = torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias
        return convolution(input.permute(0, 2, 3, 1), weight, bias, stride, padding).permute(0, 3, 1, 2)


def _pair(number: Any) -> tuple[Any, Any]:
    return tuple(number) if isinstance(number, (tuple, list)) else (number, number)
