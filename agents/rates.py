"""How fast populations train on this machine: kept beside the compiled programs, to choose their sizes and to tell how long a sweep will take."""

import contextlib
import hashlib
import heapq
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from agents.compilation import cache_directory
from agents.recorder import processor
from agents.sweep import flat

# Environment steps a second of a population of so many runs, all together, on one core, as a share of the fastest: usually a little faster
# with every run that is added, until their tensors no longer fit the core's cache. DQN's, measured by scripts/benchmark_sizes.py; PPO on CartPole
# is fastest with 8 runs, 5 % slower with 16 and 13 % with 64, and SAC on Pendulum, all matrix products, equally fast with any number.
USUAL = {1: 0.62, 2: 0.74, 4: 0.86, 8: 0.95, 16: 1.0, 32: 0.97, 64: 0.92, 128: 0.86}
WITHOUT = ("seed", "total_steps", "log_every", "checkpoint_every", "evaluation", "resume", "return_range")
NEARLY = 1.05
SECONDS = 5.0  # of training that a rate is taken from

Rates = Mapping[int, float]


class Measured(NamedTuple):
    """Environment steps a second of populations of one structure, all runs of one together, by their size."""

    best: dict[int, float]  # so far: what else a machine has to do only slows it down
    last: dict[int, float]


def read(config: Mapping[str, Any]) -> Measured:
    """What was measured of this structure on this machine; empty where nothing was trained."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # What another version wrote is as nothing.
        found = {int(size): both for size, both in json.loads(_path(config).read_text()).items()}
        return Measured(*({size: both[index] for size, both in found.items()} for index in (0, 1)))
    return Measured({}, {})


def keep(config: Mapping[str, Any], size: int, rate: float) -> None:
    """Keep the rate of a population of this structure and size for the next sweep."""
    with contextlib.suppress(OSError):
        path, known = _path(config), read(config)
        found = {other: [known.best[other], known.last[other]] for other in known.last}
        found[size] = [max(rate, known.best.get(size, 0.0)), rate]
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(found, file)
        os.replace(file.name, path)


def _path(config: Mapping[str, Any]) -> Path:
    structure = [(key, "" if isinstance(value, float) else value) for key, value in flat(config).items() if key.partition(".")[0] not in WITHOUT]
    return cache_directory() / "rates" / f"{hashlib.sha256(repr((structure, processor())).encode()).hexdigest()[:32]}.json"


def rate(size: int, known: Rates) -> float:
    """Steps a second of a population of this size: as measured, or as the nearest measured size and the usual course of things let expect.

    Where nothing was measured it is a share of the fastest, which compares sizes, but tells no time.
    """
    if size in known:
        return known[size]
    if not known:
        return _usual(size)
    nearest = min(known, key=lambda other: abs(other / size - 1) if other > size else abs(size / other - 1))
    return known[nearest] * _usual(size) / _usual(nearest)


def _usual(size: int) -> float:
    """The usual share of the fastest rate at this size, in between those that were measured on a line."""
    sizes = sorted(USUAL)
    if size >= sizes[-1]:
        return USUAL[sizes[-1]]
    above = next(other for other in sizes if other >= size)
    below = max(other for other in sizes if other <= size)
    part = (size - below) / (above - below) if above > below else 0.0
    return USUAL[below] + part * (USUAL[above] - USUAL[below])


def makespan(seconds: Sequence[float], workers: int) -> float:
    """How long so many workers take for tasks of these durations, each beginning the next when it is free."""
    free = [0.0] * workers
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def best_size(counts: Sequence[int], steps: Sequence[float], known: Sequence[Rates], workers: int, most: int) -> int:
    """The size of populations, at most `most`, that trains all groups soonest: groups of so many runs, of so many steps each, with these rates.

    The largest of those that are nearly as good: what every population costs once isn't counted.
    """
    runs = sum(counts)
    sizes = {*USUAL, *(ceil(runs / (workers * rounds)) for rounds in range(1, 9)), *(ceil(count / part) for count in counts for part in range(1, 9))}

    def seconds(size: int) -> float:
        durations = [share * step / rate(share, rates) for count, step, rates in zip(counts, steps, known, strict=True) for share in shares(count, size)]
        return makespan(durations, workers)

    found = {size: seconds(size) for size in sizes if size <= most} or {1: 0.0}
    return max(size for size in found if found[size] <= NEARLY * min(found.values()))


def shares(count: int, size: int) -> list[int]:
    """A number of runs in as few populations as can be of at most `size`, which differ by one where they must."""
    parts = ceil(count / size)
    return [count // parts + (place < count % parts) for place in range(parts)]
