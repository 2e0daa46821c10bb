"""What a checkpoint holds of a run in training, how all runs are saved, and of which run it is, so that no other goes on from it."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from agents import run_directory
from agents.event_log import EventLog

# Counts up when a checkpoint would go on otherwise than the code that wrote it.
FORMAT = 7
WRITERS = 16  # threads, while checkpoints are written


def described(value: Any, name: str) -> dict[str, Any]:
    """Everything that a value consists of, by dotted name, as JSON keeps it."""
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: type(value).__name__} | _described(parts, name)
    if isinstance(value, Mapping):
        return {name: list(value)} | _described(value, name)
    # Where an object lies in memory is no part of it.
    return {name: value if isinstance(value, (bool, int, float, str)) else re.sub(r" at 0x\w+", "", repr(value))}


def _described(parts: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: each for part, value in parts.items() for key, each in described(value, f"{name}.{part}").items()}


def identity(run: Any) -> dict[str, Any]:
    """What must be equal for a run to be the one that a checkpoint is of."""
    numbers = {"format": FORMAT, "seed": run.seed, "total_steps": run.total_steps, "num_envs": run.num_envs}
    return numbers | described(run.agent, "agent") | described(run.environment, "env")


def differences(run: Any, written: Mapping[str, Any]) -> list[str]:
    """The names of what a run and the identity in a checkpoint differ in."""
    if written.get("format") != FORMAT:
        return ["the format of checkpoints"]
    mine = identity(run)
    return [name for name in {**mine, **written} if name not in written or name not in mine or written[name] != mine[name]]


def saved(training: Any, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of one run, and the rest as JSON has it: all that determines its future."""
    of_episodes, rest = training.episodes.saved(index)
    population = training.population
    filled = min(training.step // training.settings.num_envs, population.memory.shape[2])
    tensors = population.learner_tensors(index)
    tensors["memory"] = population.memory[index, :, :filled]
    # Copies: outputs of a program may be one tensor, which the file format refuses.
    tensors |= {f"metrics/{name}": leaf[index].clone() for name, leaf in population.metrics.items()}
    tensors |= {f"episodes/{name}": tensor for name, tensor in of_episodes.items()}
    tensors["observation"] = torch.from_numpy(training.episodes.observation[index])
    return tensors, {
        "identity": identity(training.runs[index]),
        "step": training.step,
        "updates": training.updates,
        "wall_seconds": training.wall_seconds,
        "event_bytes": training.logs[index].size,
        "episodes": rest,
    }


def save(training: Any) -> None:
    """Write the checkpoint of the training's step for every run that has a log, which is brought to the disk first."""

    def write(index: int) -> None:
        training.logs[index].flush(to_disk=True)
        run_directory.save_checkpoint(training.runs[index].directory, training.step, *saved(training, index))

    _each(training, write)


def drop_others(training: Any, keep: Collection[int]) -> None:
    """Delete all checkpoints of every run that has a log but those of the steps `keep`."""
    _each(training, lambda index: run_directory.drop_checkpoints(training.runs[index].directory, keep))


def _each(training: Any, do: Callable[[int], None]) -> None:
    """Do it for every run that has a log; they wait for the disk side by side, which then serves many at once."""
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(do, [index for index, log in enumerate(training.logs) if log]))


def load(training: Any, index: int) -> dict[str, torch.Tensor]:
    """Bring one run back to where the checkpoint of the training's step has it; returns the metrics of the last update.

    Raises RunDirectoryError if it's no checkpoint of this run.
    """
    run, population = training.runs[index], training.population
    tensors, rest = run_directory.load_checkpoint(run.directory, training.step)
    if differing := differences(run, rest.get("identity", {})):
        raise run_directory.RunDirectoryError(f"{run.directory} holds another run: it differs in {', '.join(differing[:5])}")
    try:
        population.load_learner(index, tensors)
    except ValueError as error:
        raise run_directory.RunDirectoryError(f"{run.directory}: {error}") from error
    population.memory[index, :, : tensors["memory"].shape[1]] = tensors["memory"]
    training.updates, training.wall_seconds = rest["updates"], rest["wall_seconds"]
    of_episodes = {name.removeprefix("episodes/"): tensor for name, tensor in tensors.items() if name.startswith("episodes/")}
    training.episodes.resume(index, of_episodes, rest["episodes"], tensors["observation"].numpy())
    training.logs.append(EventLog(run.directory, rest["event_bytes"]))
    run_directory.clear_failure(run.directory)
    return {name.removeprefix("metrics/"): leaf for name, leaf in tensors.items() if name.startswith("metrics/")}
