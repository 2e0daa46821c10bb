"""What runs left behind: every run below some directories as a value, its config, its end and its scalars.

Event files are read frame by frame without TensorBoard's loader, which is tens of times slower.
"""

import os
import struct
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tensorboard.compat.proto.event_pb2 import Event

from agents.run import Failure
from agents.run_directory import CONFIG, EVENTS, read_failure, read_pruned, read_result

OVERRIDES = ".hydra/overrides.yaml"
EVALUATION, TRAINING = "evaluation/return_mean", "rollout/episode_return"
SKIPPED = ("time/", "rollout/episode_length")


class Curve(NamedTuple):
    """Steps and values of one tag, two arrays [points], in the order of steps."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class RunRecord:
    """One run as its directory tells it; `result` is None before it is complete, `failure` and `pruned` where it neither failed nor was given up."""

    directory: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]  # what the command line chose: {"loss/value": "huber"}
    result: Mapping[str, Any] | None
    failure: Failure | None
    pruned: Mapping[str, Any] | None
    scalars: Mapping[str, Curve]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed", 0))


def read_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """All runs that live in or below some directories, each once, in the order of their paths."""
    return [read_run(directory) for directory in sorted({run.resolve() for directory in directories for run in run_directories(directory)})]


def run_directories(directory: Path) -> Iterator[Path]:
    """The directories below one, itself too, in which a run lives; hidden ones, and those within a run, are not looked at."""
    for path, folders, files in os.walk(directory):
        folders[:] = [] if CONFIG in files else [name for name in folders if not name.startswith(".")]
        if CONFIG in files:
            yield Path(path)


def read_run(directory: Path) -> RunRecord:
    """The run that lives in a directory."""
    result = read_result(directory)
    failure = None if result else read_failure(directory)
    pruned = None if result or failure else read_pruned(directory)
    return RunRecord(directory, _yaml(directory / CONFIG), _choices(directory), result, failure, pruned, scalars(directory))


def _yaml(path: Path) -> Any:
    with path.open("rb") as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def _choices(directory: Path) -> dict[str, str]:
    """The words of the command line, by name, where Hydra noted them."""
    path = directory / OVERRIDES
    words = _yaml(path) if path.is_file() else []
    return {name.lstrip("+"): value for name, _, value in (str(word).partition("=") for word in words) if not name.startswith("~")}


def scalars(directory: Path) -> dict[str, Curve]:
    """The scalars of a run's event files by tag, but for those that no report reads."""
    points: dict[str, tuple[array, array]] = defaultdict(lambda: (array("d"), array("d")))
    for path in sorted(directory.glob(EVENTS)):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            step = event.step
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value" and not value.tag.startswith(SKIPPED):
                    steps, values = points[value.tag]
                    steps.append(step)
                    values.append(value.simple_value)
    return {tag: _curve(*found) for tag, found in points.items()}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, content, its checksum; one cut off at the end is left out."""
    at, end = 0, len(content)
    while at + 12 <= end:
        (length,) = struct.unpack_from("<Q", content, at)
        if at + 16 + length > end:
            return
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def _curve(steps: array, values: array) -> Curve:
    order = np.argsort(steps, kind="stable")
    return Curve(np.array(steps)[order], np.array(values)[order])
