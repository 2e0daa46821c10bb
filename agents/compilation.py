"""Pure functions bound to fixed tensors: compiled ahead of time, kept in the user's cache, run in place."""

import contextlib
import functools
import hashlib
import io
import logging
import os
import platform
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Program(NamedTuple):
    """A function bound to its tensors: `run()` gives flat outputs, `result(outputs)` their tree."""

    run: Callable[[], list[Tensor]]
    result: Callable[[list[Tensor]], Any]


def bind(function: Callable, arguments: Sequence[Any], *, donate: bool, compile: bool, name: str, say: Callable[[str], None]) -> Program:
    """`function` as a program without arguments, bound to the tensors that `arguments` hold now.

    Whoever writes into those tensors changes what the next run reads.

    Args:
        function: pure. With `donate` it returns (new first argument, outputs), else only outputs.
        arguments: pytrees of tensors.
        donate: write the new first argument over the old one's tensors.
        compile: compile ahead of time, or take the package from the cache; falls back to eager with one warning.
        name: said while compiling.
        say: takes lines for a person.

    Returns:
        The program; its `result` is known once it has been compiled or run.
    """
    leaves, structure = pytree.tree_flatten(tuple(arguments))
    outputs_structure = None

    def flat(*leaves: Tensor) -> list[Tensor]:
        nonlocal outputs_structure
        inputs = pytree.tree_unflatten(list(leaves), structure)
        result = function(*inputs)
        if donate:
            fresh, result = result
            write_over(inputs[0], fresh)
        outputs, outputs_structure = pytree.tree_flatten(result)
        return outputs

    donated = len(pytree.tree_leaves(arguments[0])) if donate else 0
    run = _compiled(flat, leaves, donated, name, say) if compile else None
    return Program(run or functools.partial(flat, *leaves), lambda outputs: pytree.tree_unflatten(outputs, outputs_structure))


def write_over(old: Any, new: Any) -> None:
    """Copy the leaves of one pytree over those of another, in place.

    A leaf that is an old leaf already is skipped when it is in its own place, and copied first when not.
    """
    pairs = [(o, n) for o, n in zip(pytree.tree_leaves(old), pytree.tree_leaves(new), strict=True) if _place(o) != _place(n)]
    owners = {_place(leaf)[0] for leaf in pytree.tree_leaves(old)}
    # Not clone(): the compiler takes it for nothing, and would read the leaf after it has been written over.
    pairs = [(o, torch.maximum(n, n) if _place(n)[0] in owners else n) for o, n in pairs]
    for target, source in pairs:
        target.copy_(source)


def _place(leaf: Tensor) -> tuple:
    """Where a tensor lies: equal places are one tensor."""
    return leaf.untyped_storage()._cdata, leaf.storage_offset(), tuple(leaf.shape), leaf.stride()


def _compiled(flat: Callable, leaves: list[Tensor], donated: int, name: str, say: Callable[[str], None]) -> Callable[[], list[Tensor]] | None:
    """A runner of the compiled package, or None with a warning where compiling fails."""
    try:
        # Recording runs the function once: the donated leaves must not change by it.
        trial = [leaf.clone() if index < donated else leaf for index, leaf in enumerate(leaves)]
        recorder = Recorder(trial)
        with recorder:
            flat(*trial)
        package = cache_directory() / f"{recorder.key()}.pt2"
        if not package.exists():
            say(f"compiling {name} ({recorder.operations} operations), once for this structure …")
            started = time.perf_counter()
            with _quiet():
                _compile(flat, trial, sorted(recorder.used), package)
            say(f"compiled {name} in {time.perf_counter() - started:.1f} s, kept in {package.parent}")
        # Not torch._inductor.aoti_load_package: importing it takes over a second, which a warm start need not spend.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1)
        return functools.partial(loader.run, [leaves[index] for index in sorted(recorder.used)])
    except Exception as error:  # Whatever the compiler's trouble is, training can go on without it.
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"compiling {name} failed ({type(error).__name__}: {reason}); going on without, several times slower. compile=false silences this.", stacklevel=2)
        return None


def _compile(flat: Callable, leaves: list[Tensor], used: list[int], package: Path) -> None:
    """Compile a function of those of its leaves that it uses, since each input costs time at every call."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(package.parent / "inductor"))
    from torch._inductor import aoti_compile_and_package
    from torch.fx.experimental.proxy_tensor import make_fx

    def reduced(*inputs: Tensor) -> list[Tensor]:
        everything = list(leaves)
        for index, leaf in zip(used, inputs, strict=True):
            everything[index] = leaf
        return flat(*everything)

    inputs = tuple(leaves[index] for index in used)
    program = torch.export.export(make_fx(reduced)(*(leaf.clone() for leaf in inputs)), inputs, strict=False)
    with tempfile.TemporaryDirectory(dir=package.parent) as directory:
        made = aoti_compile_and_package(program, package_path=str(Path(directory) / "made.pt2"))
        os.replace(made, package)


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
        self._inputs = len(inputs)
        self._known: dict[int, int] = {}
        self._alive: list[Tensor] = []  # A tensor that is freed could pass its identity on.
        self._digest = hashlib.sha256()
        for leaf in inputs:
            self._note(self._new(leaf))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self._note(function, pytree.tree_map(self._read, (args, kwargs or {})))
        result = function(*args, **(kwargs or {}))
        self._note(pytree.tree_map(self._new, result))
        return result

    def key(self) -> str:
        """A name for what was recorded, on this machine, with this torch and so many threads."""
        self._note(torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
        return self._digest.hexdigest()[:32]

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
        elif self._known[id(value)] < self._inputs:
            self.used.add(self._known[id(value)])
        return self._new(value)


def cache_directory() -> Path:
    """Where compiled packages are kept: $RLLOSS_CACHE, or rlloss in the user's cache directory.

    Packages are code that will be run, so the directory must belong to the user and nobody else may write there.
    Raises PermissionError otherwise.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("RLLOSS_CACHE") or Path(home) / "rlloss")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{directory} belongs to, or can be written by, others; run chmod 700 on it or set RLLOSS_CACHE")
    return directory


def _processor() -> str:
    """What the machine code depends on: Linux tells the instruction sets, elsewhere the name must do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.machine() + platform.processor()


@contextlib.contextmanager
def _quiet():
    """Keep torch's own warnings and prints about compiling from a person's screen."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
