"""Pure functions bound to fixed tensors: compiled ahead of time, kept in the user's cache, run in place."""

import contextlib
import functools
import io
import itertools
import logging
import operator
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils import _pytree as pytree

from agents import substitutions
from agents.recorder import Recorder
from rlloss import numbers

# Two numbers of runs to trace with, and the number that the compiler takes for usual.
TRACED_RUNS = (1009, 1013)
TYPICAL_RUNS = 16

# How the folders begin that compilers work in, and how many seconds they are theirs.
COMPILING, DAY = "compiling-", 24 * 3600

# For two small programs, precompiling torch's headers and trying out every instruction set takes longer than it saves.
# One thread: several would share out a run's sums, in an order that depends on how many there are.
# Operations stay in their order: moved next to their readers, sums over the same pairs get far apart and loops of their own.
# All temporaries lie in planned pools, since making tensors one by one takes a seventh of a small update.
OPTIONS = {
    "cpp.threads": 1,
    "aot_inductor.precompile_headers": False,
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,
    "reorder_for_locality": False,
    "memory_planning": True,
}


class Program(NamedTuple):
    """A function bound to its tensors: `run()` gives flat outputs, which the next run may write over, `result(outputs)` their tree."""

    run: Callable[[], list[Tensor]]
    result: Callable[[list[Tensor]], Any]


def bind(function: Callable, stacked: Sequence[Any], shared: Sequence[Any] = (), *, donate: bool, compile: bool, name: str, say: Callable[[str], None]) -> Program:
    """One run's pure function as a program for a population, bound to the tensors that the arguments hold now.

    Whoever writes into those tensors changes what the next run of the program reads. A compiled program
    is made for any number of runs, so a run gets the same bits alone and among many.

    Args:
        function: pure, for one run. With `donate` it returns (new first argument, outputs), else only outputs.
        stacked: pytrees of tensors [runs, …], the parts of which the runs are mapped over.
        shared: pytrees of tensors that all runs see whole.
        donate: write the new first argument over the old one's tensors.
        compile: compile ahead of time, or take the package from the cache; falls back to eager with one warning.
        name: said while compiling.
        say: takes lines for a person.

    Returns:
        The program; its `result` is known once it has been compiled or run, and is [runs, …] throughout.
    """
    runs = pytree.tree_leaves(stacked)[0].shape[0]
    outputs_structure = None

    def program(function: Callable, arguments: Sequence[Any]) -> tuple[Callable, list[Tensor]]:
        leaves, structure = pytree.tree_flatten(tuple(arguments))

        def flat(*leaves: Tensor) -> list[Tensor]:
            nonlocal outputs_structure
            inputs = pytree.tree_unflatten(list(leaves), structure)
            result = function(*inputs)
            if donate:
                fresh, result = result
                write_over(inputs[0], fresh)
            outputs, outputs_structure = pytree.tree_flatten(result)
            return outputs

        return flat, leaves

    mapped = torch.func.vmap(function, in_dims=(0,) * len(stacked) + (None,) * len(shared))
    flat, leaves = program(mapped, (*stacked, *shared))
    if compile:
        counts = [len(pytree.tree_leaves(part)) for part in (stacked[0], stacked)]
        if run := _compiled(flat, leaves, counts[0] if donate else 0, counts[1], name, say):
            return Program(run, lambda outputs: pytree.tree_unflatten(outputs, outputs_structure))
    if runs > 1:
        return Program(functools.partial(flat, *leaves), lambda outputs: pytree.tree_unflatten(outputs, outputs_structure))
    # A single eager run goes without vmap, which would double its time.
    flat, leaves = program(function, (*pytree.tree_map(lambda leaf: leaf[0], tuple(stacked)), *shared))
    return Program(functools.partial(flat, *leaves), lambda outputs: pytree.tree_unflatten([output[None] for output in outputs], outputs_structure))


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


def _compiled(flat: Callable, leaves: list[Tensor], donated: int, stacked: int, name: str, say: Callable[[str], None]) -> Callable[[], list[Tensor]] | None:
    """A runner of the compiled package, or None with a warning where compiling fails.

    The first `donated` leaves are written over, the first `stacked` are [runs, …].
    """
    try:
        if not all(leaf.is_contiguous() for leaf in leaves):
            raise ValueError("all tensors must be contiguous")
        # Recording runs the function once, on two runs made of the first: the donated leaves must not change by it.
        trial = [leaf[:1].expand(2, *leaf.shape[1:]) if index < stacked else leaf for index, leaf in enumerate(leaves)]
        recorder = Recorder([leaf.clone() if index < donated else leaf for index, leaf in enumerate(trial)])
        with recorder:
            outputs = flat(*recorder.inputs)
        recorder.outputs(outputs)
        # Outputs go into fixed tensors: making them anew at every call costs half a microsecond each.
        kept, used = [output.new_empty(leaves[0].shape[0], *output.shape[1:]) for output in outputs], sorted(recorder.used)

        def into(*leaves: Tensor) -> list[Tensor]:
            for place, output in zip(leaves[: len(kept)], flat(*leaves[len(kept) :]), strict=True):
                place.copy_(output)
            return []

        package = cache_directory() / f"{recorder.key(*(Path(file).read_bytes() for file in (__file__, substitutions.__file__, numbers.__file__)))}.pt2"
        if not package.exists():
            with FileLock(package.with_suffix(".lock")):  # Another process may be at it.
                if not package.exists():
                    say(f"compiling {name} ({recorder.operations} operations), once for this structure …")
                    started = time.perf_counter()
                    with _quiet():
                        places = [*range(len(kept)), *(len(kept) + index for index in used)]
                        _compile(into, [*(torch.zeros_like(output) for output in outputs), *trial], len(kept) + stacked, places, package)
                    say(f"compiled {name} in {time.perf_counter() - started:.1f} s, kept in {package.parent}")
        loader, inputs = _load(package), [*kept, *(leaves[index] for index in used)]

        def run() -> list[Tensor]:
            loader.run(inputs)
            return kept

        return run
    except Exception as error:  # Whatever the compiler's trouble is, training can go on without it.
        warnings.warn(f"{_reason(name, error)}; training goes on without compiling, several times slower, as with compile=false", stacklevel=2)
        return None


def _reason(name: str, error: Exception) -> str:
    """Why compiling failed, the same for all programs where it lies in the machine, so that it's said once."""
    if "InvalidCxxCompiler" in f"{type(error).__name__}: {error}":
        return f"no C++ compiler found ({os.environ.get('CXX', 'g++')}); install one to train faster"
    if isinstance(error, PermissionError):
        return str(error)
    return f"compiling {name} failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _load(package: Path) -> Any:
    """The runner of a package; one that can't be read is deleted, so that the next start compiles it anew."""
    # Not torch._inductor.aoti_load_package: importing it takes over a second, which a warm start need not spend.
    try:
        return torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1)
    except RuntimeError:
        package.unlink(missing_ok=True)
        raise


def _compile(flat: Callable, trial: list[Tensor], stacked: int, used: list[int], package: Path) -> None:
    """Compile a function of those of its leaves that it uses, since each input costs time at every call."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(package.parent / "inductor"))
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._subclasses import FakeTensorMode

    get_cpp_compiler()  # A missing compiler is found before the work of tracing.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def imagine(runs: int) -> list[Tensor]:
        with mode:
            return [torch.empty((runs, *leaf.shape[1:]) if index < stacked else leaf.shape, dtype=leaf.dtype, device=leaf.device) for index, leaf in enumerate(trial)]

    graph = _for_any_runs(flat, imagine, trial, stacked, used)
    runs = torch.export.Dim("runs", min=1, max=65_536)
    dynamic = tuple({0: runs} if index < stacked else None for index in used)
    examples = imagine(TYPICAL_RUNS)
    program = torch.export.export(graph, tuple(examples[index] for index in used), dynamic_shapes=dynamic, strict=False)
    delete_abandoned(package.parent)
    with tempfile.TemporaryDirectory(prefix=COMPILING, dir=package.parent) as directory:
        made = aoti_compile_and_package(program, package_path=str(Path(directory) / "made.pt2"), inductor_configs=OPTIONS)
        os.replace(made, package)


def delete_abandoned(cache: Path) -> None:
    """Delete what compilers that were killed left in the cache: none works for longer than a day."""
    for directory in cache.glob(f"{COMPILING}*"):
        with contextlib.suppress(OSError):  # Another process may be at it.
            if time.time() - directory.stat().st_mtime > DAY:
                shutil.rmtree(directory)


def _for_any_runs(flat: Callable, imagine: Callable[[int], list[Tensor]], trial: list[Tensor], stacked: int, used: list[int]) -> torch.fx.GraphModule:
    """The graph of a function in which the number of runs is no constant but read from the first input.

    vmap writes the number of runs into a graph as a plain number. So the function is traced twice, with
    two numbers of runs; a number that differs between the graphs is a multiple of the number of runs, and
    is replaced by one. The graph is then tried on two runs against the function itself.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def traced(runs: int) -> torch.fx.GraphModule:
        everything = imagine(runs)

        def reduced(*inputs: Tensor) -> list[Tensor]:
            leaves = list(everything)
            for index, leaf in zip(used, inputs, strict=True):
                leaves[index] = leaf
            return flat(*leaves)

        return make_fx(reduced, substitutions.Substitutions(everything).table)(*(everything[index] for index in used))

    graph, other = (traced(runs) for runs in TRACED_RUNS)
    twins = dict(zip(graph.graph.nodes, other.graph.nodes, strict=True))
    placeholders = graph.graph.find_nodes(op="placeholder")
    first = next(node for index, node in zip(used, placeholders, strict=True) if index < stacked)
    with graph.graph.inserting_after(placeholders[-1]):
        runs = graph.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))

    def general(one: Any, two: Any) -> Any:
        if type(one) is not int or one == two:
            return one
        factor, rest = divmod(one, TRACED_RUNS[0])
        if rest or factor * TRACED_RUNS[1] != two:
            raise RuntimeError(f"the program depends on the number of runs: it has {one} for {TRACED_RUNS[0]} and {two} for {TRACED_RUNS[1]}")
        return graph.graph.call_function(operator.mul, (runs, factor))

    for node, twin in twins.items():
        if node.op == "call_function":
            if "convolution" in str(node.target) and _whole_numbers(node) != _whole_numbers(twin):
                # The compiler would take the usual number of runs for the only one, and read past the end of fewer.
                raise RuntimeError("torch's convolutions, with weights of each run's own, can't be compiled for any number of runs")
            with graph.graph.inserting_before(node):
                node.args, node.kwargs = pytree.tree_map(general, (node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)))
    graph.recompile()

    mine, its = ([leaf.clone() for leaf in trial] for _ in range(2))
    expected, found = [*flat(*mine), *mine], [*graph(*(its[index] for index in used)), *its]
    if not all(itertools.starmap(_equal_but_for_rounding, zip(expected, found, strict=True))):
        raise RuntimeError("the traced program differs from the function")
    return graph


def _equal_but_for_rounding(expected: Tensor, found: Tensor) -> bool:
    """Whether numbers differ by no more than what sums in another order do, next to the largest of them."""
    if not expected.is_floating_point():
        return torch.equal(expected, found)
    largest = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _whole_numbers(node: torch.fx.Node) -> list[int]:
    return [leaf for leaf in pytree.tree_leaves((node.args, dict(node.kwargs))) if type(leaf) is int]


def cache_directory() -> Path:
    """Where compiled packages are kept: $RLLOSS_CACHE, or rlloss in the user's cache directory.

    Packages are code that will be run, so the directory must belong to the user and nobody else may write there.
    Raises PermissionError otherwise.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("RLLOSS_CACHE") or Path(home) / "rlloss")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"compiled programs can't be kept in {directory} ({error.strerror}): set RLLOSS_CACHE to a directory of yours") from error
    status = directory.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{directory} belongs to, or can be written by, others; run chmod 700 on it or set RLLOSS_CACHE")
    return directory


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
