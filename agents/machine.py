"""What a process must be told about its machine to be fast."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def raise_malloc_thresholds() -> None:
    """Let glibc keep large buffers instead of returning each one to the kernel; does nothing elsewhere.

    A population's temporary tensors are just over its threshold of 128 KiB, and page faults would
    then cost more than the arithmetic.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
            libc.mallopt(M_TOP_PAD, 1 << 26)


def cores() -> int:
    """The number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def threads(runs: int) -> Iterator[None]:
    """One torch thread for a small run, as many as cores for a population, and the old number afterwards.

    Never more threads than runs: then each run's sums are made by one thread, in one order, so that
    a run ends the same in any population.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(runs, cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Spare the garbage collector all that exists already, which lives as long as the training does."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
