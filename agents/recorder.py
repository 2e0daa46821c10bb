"""A record of what a function computes, which names the compiled package that computes the same."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Writes down the operations of a function: two functions with one record compute the same thing.

    It stands in for tracing where only the key of a compiled package is asked for: it is exact, whatever
    code the function calls, and takes milliseconds where torch's tracer takes seconds to import.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch._dynamo, which takes more than a second.

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.used: set[int] = set()
        self.operations = 0
        self.inputs = list(inputs)
        self._known: dict[int, int] = {}
        self._places: dict[int, list[int]] = {}
        self._alive: list[Tensor] = []  # A tensor that is freed could pass its identity on.
        self._digest = hashlib.sha256()
        for place, leaf in enumerate(inputs):
            self._places.setdefault(id(leaf), []).append(place)
            self._note(self._new(leaf))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self._note(function, pytree.tree_map(self._read, (args, kwargs or {})))
        result = function(*args, **(kwargs or {}))
        self._note(pytree.tree_map(self._new, result))
        return result

    def key(self, *more: Any) -> str:
        """A name for what was recorded, on this machine, with this torch, and whatever more matters."""
        self._note(torch.__version__, torch.backends.cpu.get_cpu_capability(), processor(), *more)
        return self._digest.hexdigest()[:32]

    def outputs(self, outputs: Sequence[Tensor]) -> None:
        """Write down what the function returned, which is part of what it computes."""
        self._note(len(outputs), *(self._read(output) for output in outputs))

    def _note(self, *parts: Any) -> None:
        self._digest.update(repr([str(part) for part in parts]).encode())

    def _new(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = len(self._alive)
            self._alive.append(value)
        return f"#{self._known[id(value)]}:{value.dtype}{list(value.shape)}{list(value.stride())}{value.device}"

    def _read(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._known:  # A constant of the program.
            self._note(value.numpy(force=True).tobytes())
        self.used.update(self._places.get(id(value), ()))
        return self._new(value)


def processor() -> str:
    """What the machine code depends on: Linux tells the instruction sets, elsewhere the name must do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.machine() + platform.processor()
