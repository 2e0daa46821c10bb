"""A run's directory: who owns it, its checkpoints, and its result or failure. Every write is whole or not at all."""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.run import Failure

CONFIG, RESULT, FAILURE, PRUNED, LOCK, LOG = "config.yaml", "result.json", "failure.json", "pruned.json", "lock", "run.log"
CHECKPOINT, EVENTS = "checkpoint-", "events.out.tfevents.*"


class RunDirectoryError(ValueError):
    """A run directory that can't be used, in one line."""


def refuse_used(directory: Path, setting: str = "hydra.run.dir") -> None:
    """Raise RunDirectoryError if a run lives in this directory, which `setting` names, already, or nobody can write there."""
    if (directory / CONFIG).exists():
        raise RunDirectoryError(f"{directory} already holds a run; continue it with resume={directory} or choose another directory")
    refuse_unwritable(directory, setting)


def refuse_unwritable(directory: Path, setting: str) -> None:
    """Raise RunDirectoryError if nobody can write in a directory, existing or not, that `setting` names."""
    parent = directory.absolute()
    while not parent.exists():
        parent = parent.parent
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise RunDirectoryError(f"can't write to {directory}: {error.strerror}: {parent}; choose another {setting}") from error


def claim(directory: Path, config: Mapping[str, Any]) -> None:
    """Make the directory this run's own by creating its config file, which only one process can do.

    Raises RunDirectoryError if another run has it.
    """
    refuse_used(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / CONFIG).open("x") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    except OSError as error:
        raise RunDirectoryError(f"can't write to {directory}: {error.strerror}; choose another hydra.run.dir") from error


def clear_unstarted(directory: Path) -> None:
    """Delete what a run left that was killed before its first checkpoint, so that it can begin again."""
    if (directory / CONFIG).exists() and not checkpoints(directory) and not (directory / RESULT).exists():
        with locked(directory):
            for path in [*directory.glob(FAILURE), *directory.glob(EVENTS), *directory.glob(f".{CHECKPOINT}*"), directory / CONFIG]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory while training; the system frees it when the process dies, however it dies.

    Raises RunDirectoryError if another process holds it.
    """
    try:
        with FileLock(directory / LOCK, blocking=False):
            yield
    except Timeout as error:
        raise RunDirectoryError(f"another process is training in {directory}") from error
    except PermissionError as error:
        raise RunDirectoryError(f"can't write to {directory}: {error.strerror}; choose a directory of yours") from error


def read_config(directory: Path) -> dict[str, Any]:
    """The config of the run that lives here; raises RunDirectoryError if none does."""
    path = directory / CONFIG
    if not path.is_file():
        raise RunDirectoryError(f"{directory} is not a run directory: it has no {CONFIG}")
    return OmegaConf.to_container(OmegaConf.load(path))


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return directory / f"{CHECKPOINT}{step:012d}"


def save_checkpoint(directory: Path, step: int, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step beside older ones and make sure it is on the disk."""
    final = checkpoint_path(directory, step)
    if final.exists():
        return  # A step has one state, and it is there already.
    with writing(directory):
        made = Path(tempfile.mkdtemp(prefix=f".{CHECKPOINT}", dir=directory))
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, made / "state.safetensors")
            (made / "state.json").write_text(json.dumps(rest))
            for path in (made / "state.safetensors", made / "state.json", made):
                _to_disk(path)
            os.replace(made, final)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        _to_disk(directory)


def drop_checkpoints(directory: Path, keep: Collection[int]) -> None:
    """Delete all checkpoints but those of the steps `keep`, and what killed processes left half-written."""
    kept = {checkpoint_path(directory, step) for step in keep}
    for path in [*directory.glob(f"{CHECKPOINT}*"), *directory.glob(f".{CHECKPOINT}*")]:
        if path not in kept:
            shutil.rmtree(path)


def checkpoints(directory: Path) -> frozenset[int]:
    """The steps of the checkpoints in a directory."""
    return frozenset(int(path.name.removeprefix(CHECKPOINT)) for path in directory.glob(f"{CHECKPOINT}*"))


def newest_checkpoint(directories: Sequence[Path]) -> int:
    """The last step for which all these runs have a checkpoint; raises RunDirectoryError if there is none."""
    steps = [checkpoints(directory) for directory in directories]
    common = frozenset.intersection(*steps)
    if not common:
        listing = ", ".join(str(directory) for directory, found in zip(directories, steps, strict=True) if not found) or "these runs together"
        raise RunDirectoryError(f"no checkpoint in {listing}: the run stopped before its first one, so start it again elsewhere")
    return max(common)


def load_checkpoint(directory: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the rest of the checkpoint of a step; raises RunDirectoryError if it can't be read."""
    path = checkpoint_path(directory, step)
    try:
        return load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise RunDirectoryError(f"{path} can't be read: {error}") from error


def write_result(directory: Path, result: Mapping[str, Any]) -> None:
    """Write result.json whole or not at all."""
    _write_json(directory / RESULT, result)


def read_result(directory: Path) -> dict[str, Any] | None:
    """What result.json says, None before a run is complete."""
    return _read_json(directory / RESULT)


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def write_pruned(directory: Path, step: int, return_mean: float) -> None:
    """Write pruned.json whole or not at all: a run that was given up at this step, with this evaluation return."""
    _write_json(directory / PRUNED, {"step": step, "return_mean": return_mean})


def read_pruned(directory: Path) -> dict[str, Any] | None:
    """What pruned.json says, None where the run wasn't pruned."""
    return _read_json(directory / PRUNED)


def note(directory: Path, words: str) -> None:
    """Write words with the time at the end of run.log."""
    with writing(directory), (directory / LOG).open("a") as log:
        log.write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {words}\n")


def write_failure(directory: Path, failure: Failure) -> None:
    """Write failure.json, whole or not at all, and the same in words at the end of run.log; in both the checkpoint goes by its name in the directory."""
    checkpoint = failure.checkpoint and failure.checkpoint.name
    note(directory, f"{failure.reason}; last good checkpoint: {checkpoint or 'none'}\n{failure.traceback}".removesuffix("\n"))
    _write_json(directory / FAILURE, dataclasses.asdict(failure) | {"checkpoint": checkpoint})


def read_failure(directory: Path) -> Failure | None:
    """Why the run failed, None where it didn't."""
    values = _read_json(directory / FAILURE)
    return values and Failure(**values | {"checkpoint": values["checkpoint"] and directory / values["checkpoint"]})


def clear_failure(directory: Path) -> None:
    """Forget that the run failed: it's going on."""
    (directory / FAILURE).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what goes wrong in writing, such as a full disk, into a RunDirectoryError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunDirectoryError(f"can't write to {directory}: {getattr(error, 'strerror', None) or error}; make room, then continue with resume={directory}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    made = path.with_name(f".{path.name}")
    with writing(path.parent):
        try:
            made.write_text(json.dumps(values, indent=2) + "\n")
            _to_disk(made)
            os.replace(made, path)
        except OSError:
            made.unlink(missing_ok=True)
            raise
        _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
