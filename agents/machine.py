"""What a process must be told about its machine to be fast."""

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

M_MXFAST, M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = 1, -1, -2, -3


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
            libc.mallopt(M_MXFAST, 0)  # Small chunks kept apart would be gone through at every large one.


def cores() -> int:
    """The number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def library_threads() -> int:
    """How many threads a library may have here: as many as OMP_NUM_THREADS says, else as there are cores."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else cores()


def thread_ids() -> set[int]:
    """The threads of this process; empty where the system doesn't tell."""
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir("/proc/self/task")}
    return set()


def step_aside(threads: Iterable[int]) -> None:
    """Let threads of this process run only while nobody else wants their core; does nothing where that can't be said.

    There may be no way back, and they may then wait for a second to end.
    """
    for thread in threads:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def give_way() -> None:
    """Let other threads that wait for this core go first."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def available_memory() -> int | None:
    """Bytes of memory that a process can still get, or that there are where the system doesn't say; None where nobody knows."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


# Seconds within which signals are one: `timeout` sends each twice, to the process and to its group.
AT_ONCE = 0.1


class NotEnoughMemory(ValueError):
    """What would be allocated is more than the machine has, in one line."""


class Stopped(KeyboardInterrupt):
    """A signal that asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stop:
    """Whether a signal asked to end, and which one."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.asked = 0.0

    def __call__(self) -> bool:
        return self.number is not None

    def _handle(self, number: int, frame: Any) -> None:
        if not self():
            self.number, self.asked = number, time.monotonic()
        elif time.monotonic() - self.asked > AT_ONCE:
            raise Stopped(number)


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Takes note of the first Ctrl-C (or SIGTERM), so that a loop can save; the second one ends at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def threads(runs: int) -> Iterator[None]:
    """One torch thread for a small run, as many as cores (or as torch was given) for a population, and the old number afterwards.

    Never more threads than runs: then each run's sums are made by one thread, in one order, so that
    a run ends the same in any population.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(runs, cores(), before))
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
