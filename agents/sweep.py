"""A sweep as values: its jobs, what has become of them, which can be trained together, and the plan in words."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils import _pytree as pytree

from agents import run_directory
from agents.run import LOWEST, Run
from agents.run_directory import RunDirectoryError

LABEL_LENGTH = 120


@dataclass(frozen=True)
class Job:
    """One run of a sweep as plain values: what was said of it, where it is written, and its config; `notes` are Hydra's own settings."""

    words: tuple[str, ...]
    directory: Path
    config: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Standing(NamedTuple):
    """What has become of a job so far: `value`, its mean evaluation return, once it is complete or was pruned, at a step; the steps it has checkpoints of before."""

    value: float | None
    checkpoints: frozenset[int]
    pruned: int | None = None


class Task(NamedTuple):
    """Jobs to train as one population, from the checkpoint of a step if there is one, until a step if that isn't the last."""

    jobs: tuple[Job, ...]
    step: int | None
    until: int | None = None


def labels(jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> list[str]:
    """A name for each job's directory, made of the keys that are swept, such as `value=mse,learning_rate=0.001,seed=3`.

    It says the same of a job whatever else is swept over the same keys, so that a sweep finds its runs again; but for jobs that would
    have the same name, whose words are told apart by a digest.
    """
    dotted = {key: re.sub(r"[/@]", ".", key.lstrip("+~")) for key in swept}
    names = {key: short(dotted[key], dotted.values()) for key in swept}
    found = []
    for words in jobs:
        parts = [f"{_file_name(names[key])}={_file_name(value)}" for key, _, value in (word.partition("=") for word in words) if key in names]
        found.append(_bounded(",".join(parts), words) or "run")
    twice = {label for label, count in Counter(found).items() if count > 1}
    return [f"{label},{_digest(words)}" if label in twice else label for label, words in zip(found, jobs, strict=True)]


def short(key: str, keys: Collection[str]) -> str:
    """The end of a dotted key by which it can be told from others, with as few parts as can be."""
    parts = key.split(".")
    ends = (".".join(parts[-length:]) for length in range(1, len(parts)))
    return next((end for end in ends if not any(other != key and f".{other}".endswith(f".{end}") for other in keys)), key)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_")


def _bounded(label: str, words: Sequence[str]) -> str:
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH - 9]},{_digest(words)}"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def differing(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The words of each job that not all of them have."""
    everywhere = set.intersection(*map(set, jobs)) if jobs else set()
    return [" ".join(word for word in words if word not in everywhere) for words in jobs]


def refuse_shared(jobs: Sequence[Job]) -> None:
    """Raise RunDirectoryError if two jobs would be written to one directory."""
    owners: dict[Path, Job] = {}
    for job in jobs:
        other = owners.setdefault(job.directory.resolve(), job)
        if other is not job:
            if set(other.words) == set(job.words):
                raise RunDirectoryError(f"there are two runs of {' '.join(job.words)}; say each value once")
            one, two = differing([other.words, job.words])
            raise RunDirectoryError(f"two runs would share {run_directory.shown(job.directory)}: {one} and {two}; give each its own, see hydra.sweep.subdir")


def standing(job: Job) -> Standing:
    """What its directory says has become of a job; raises RunDirectoryError if another run lives there."""
    if not (job.directory / run_directory.CONFIG).exists():
        return Standing(None, frozenset())
    if differing := _differences(job.config, run_directory.read_config(job.directory)):
        raise RunDirectoryError(f"{run_directory.shown(job.directory)} holds another run: it differs in {', '.join(differing[:5])}; choose another hydra.sweep.dir")
    if result := run_directory.read_result(job.directory):
        return Standing(result["evaluation"]["return_mean"], frozenset())
    if pruned := run_directory.read_pruned(job.directory):
        return Standing(pruned["return_mean"], frozenset(), pruned["step"])
    return Standing(None, run_directory.checkpoints(job.directory))


def _differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The dotted keys at which two configs differ."""
    if one == two:
        return []
    first, second = flat(one), flat(two)
    return sorted(key for key in first.keys() | second.keys() if key not in first or key not in second or first[key] != second[key])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted key; an empty part is a value too."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def structure(run: Run) -> tuple:
    """What runs of one population share: all but floats, seeds and directories. Runs of equal structures can be trained together."""
    plain = tuple(getattr(run, name) for name in LOWEST if name != "seed")
    environment = run.environment.id, run.environment.backend, run.environment.frame_stack
    return plain, run.evaluation, environment, run.config.get("compile", True), pytree.tree_structure(run.agent)


def groups(runs: Sequence[Run], standings: Sequence[Standing]) -> list[tuple[list[int], int | None]]:
    """The places of the runs that can be trained together, in order, and the step that they continue from, None for the beginning."""
    alike: dict[tuple, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(structure(run), []).append(place)
    return [part for places in alike.values() for part in _by_step(places, standings)]


def _by_step(places: Sequence[int], standings: Sequence[Standing]) -> list[tuple[list[int], int | None]]:
    """Runs of one structure parted by the step that they continue from, as few parts as can be: runs often have two checkpoints."""
    parts: list[tuple[list[int], int | None]] = []
    left = list(places)
    while left:
        counts = Counter(step for place in left for step in standings[place].checkpoints or [None])
        step = max(counts, key=lambda step: (counts[step], -1 if step is None else step))
        parts.append(([place for place in left if step in (standings[place].checkpoints or [None])], step))
        left = [place for place in left if place not in set(parts[-1][0])]
    return parts


def work(task: Task) -> int:
    """The environment steps that all runs of a population have left to make."""
    return sum(max((task.until or job.config["total_steps"]) - (task.step or 0), 0) for job in task.jobs)


def split(places: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Places in parts of these sizes."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [list(places[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def in_words(tasks: Sequence[Task], complete: int, workers: int, seconds: float | None) -> str:
    """The plan of a sweep in one line."""
    runs = sum(len(task.jobs) for task in tasks)
    sizes = sorted({len(task.jobs) for task in tasks})
    before = f"{counted(complete, 'run')} complete already, " if complete else ""
    if not tasks:
        return f"{before}nothing is left to train"
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    populations = f"{counted(len(tasks), 'population')} of {size}"
    resumed = sum(len(task.jobs) for task in tasks if task.step)
    continued = f" ({resumed} continued)" if resumed else ""
    duration = "time unknown until the first steps" if seconds is None else f"about {in_time(seconds)}"
    return f"{before}{counted(runs, 'run')}{continued} in {populations}, {min(workers, len(tasks))} at a time, {duration}"


def counted(number: int, noun: str) -> str:
    """So many things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_time(seconds: float) -> str:
    """A duration in the unit a person would choose."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return counted(round(seconds / size), unit)
    return counted(max(round(seconds), 1), "second")


def names(tasks: Sequence[Task]) -> list[str]:
    """What tells each population from the others: the words that all its jobs share, and others' don't; their number where nothing does."""
    shared = [set.intersection(*(set(job.words) for job in task.jobs)) for task in tasks]
    everywhere = set.intersection(*shared) if shared else set()
    found = [" ".join(word for word in task.jobs[0].words if word in common - everywhere) for task, common in zip(tasks, shared, strict=True)]
    counts, seen, named = Counter(found), Counter(), []
    for number, name in enumerate(found, 1):
        seen[name] += 1
        named.append(f"population {number}" if not name else f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return named
