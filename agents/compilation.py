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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree


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
    compiled = _compiled(flat, leaves, donated, name, say) if compile else None
    return Program(compiled or functools.partial(flat, *leaves), lambda outputs: pytree.tree_unflatten(outputs, outputs_structure))


def write_over(old: Any, new: Any) -> None:
    """Copy the leaves of one pytree over those of another, in place.

    A leaf that is an old leaf already is skipped when it is in its own place, and copied first when not.
    """
    old_leaves, new_leaves = pytree.tree_leaves(old), pytree.tree_leaves(new)
    owners = {leaf.untyped_storage()._cdata for leaf in old_leaves}
    pairs = [(o, n) for o, n in zip(old_leaves, new_leaves, strict=True) if o.untyped_storage()._cdata != n.untyped_storage()._cdata]
    pairs = [(o, n.clone() if n.untyped_storage()._cdata in owners else n) for o, n in pairs]
    for target, source in pairs:
        target.copy_(source)


def _compiled(flat: Callable, leaves: list[Tensor], donated: int, name: str, say: Callable[[str], None]) -> Callable[[], list[Tensor]] | None:
    """A runner of the compiled package, or None with a warning where compiling fails."""
    try:
        with _quiet():
            # Tracing runs the function once: the donated leaves must not change by it.
            graph = make_fx(flat)(*(leaf.clone() for leaf in leaves[:donated]), *leaves[donated:])
        leaves = _drop_unused(graph, leaves)
        package = cache_directory() / f"{_key(graph, leaves)}.pt2"
        if not package.exists():
            say(f"compiling {name} ({len(graph.graph.nodes)} operations), once for this structure …")
            started = time.perf_counter()
            with _quiet():
                _compile(graph, leaves, package)
            say(f"compiled {name} in {time.perf_counter() - started:.1f} s, kept in {package.parent}")
        runner = torch._inductor.aoti_load_package(str(package), run_single_threaded=True).loader
        return functools.partial(runner.run, leaves)
    except Exception as error:  # Whatever the compiler's trouble is, training can go on without it.
        reason = str(error).strip().splitlines()
        warnings.warn(f"compiling {name} failed ({type(error).__name__}: {reason[0] if reason else ''}); going on without, several times slower. compile=false silences this.", stacklevel=2)
        return None


def _drop_unused(graph: torch.fx.GraphModule, leaves: list[Tensor]) -> list[Tensor]:
    """Take inputs that nothing reads out of a graph, since each costs time at every call; returns those that stay."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    used = [leaf for leaf, node in zip(leaves, placeholders, strict=True) if node.users]
    for node in placeholders:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return used


def _compile(graph: torch.fx.GraphModule, leaves: list[Tensor], package: Path) -> None:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(package.parent / "inductor"))
    import torch._inductor

    program = torch.export.export(graph, tuple(leaves), strict=False)
    with tempfile.TemporaryDirectory(dir=package.parent) as directory:
        made = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(directory) / "made.pt2"))
        os.replace(made, package)


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


def _key(graph: torch.fx.GraphModule, leaves: list[Tensor]) -> str:
    """The structure of a program: its code, constants and shapes, torch's version, threads, and the processor."""
    digest = hashlib.sha256()
    shapes = [(tuple(leaf.shape), leaf.stride(), str(leaf.dtype), str(leaf.device)) for leaf in leaves]
    parts = (graph.code, shapes, torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), _processor())
    digest.update(repr(parts).encode())
    for _, constant in sorted(graph.named_buffers()):
        digest.update(constant.numpy(force=True).tobytes())
    for name in sorted(vars(graph)):
        if isinstance(getattr(graph, name), Tensor):
            digest.update(getattr(graph, name).numpy(force=True).tobytes())
    return digest.hexdigest()[:32]


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
