"""A run's directory: who owns it, its checkpoints and its result. Every write is whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, RESULT, LOCK = "config.yaml", "result.json", "lock"
CHECKPOINT = "checkpoint-"


class RunDirectoryError(ValueError):
    """A run directory that can't be used, in one line."""


def refuse_used(directory: Path) -> None:
    """Raise RunDirectoryError if a run lives in this directory already, or nobody can write there."""
    if (directory / CONFIG).exists():
        raise RunDirectoryError(f"{directory} already holds a run; continue it with resume={directory} or choose another directory")
    refuse_unwritable(directory, "hydra.run.dir")


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
            for path in [directory / CONFIG, *directory.glob("events.out.tfevents.*"), *directory.glob(f".{CHECKPOINT}*")]:
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


def save_checkpoint(directory: Path, step: int, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step beside older ones and make sure it is on the disk."""
    final = directory / f"{CHECKPOINT}{step:012d}"
    if final.exists():
        return  # A step has one state, and it is there already.
    made = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=directory))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, made / "state.safetensors")
    (made / "state.json").write_text(json.dumps(rest))
    for path in (made / "state.safetensors", made / "state.json", made):
        _to_disk(path)
    os.replace(made, final)
    _to_disk(directory)


def drop_checkpoints(directory: Path, keep: int) -> None:
    """Delete all checkpoints but that of step `keep`, and what killed processes left half-written."""
    for path in [*directory.glob(f"{CHECKPOINT}*"), *directory.glob(f".{CHECKPOINT}*")]:
        if path.name != f"{CHECKPOINT}{keep:012d}":
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
    path = directory / f"{CHECKPOINT}{step:012d}"
    try:
        return load_file(path / "state.safetensors"), json.loads((path / "state.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise RunDirectoryError(f"{path} can't be read: {error}") from error


def write_result(directory: Path, result: Mapping[str, Any]) -> None:
    """Write result.json whole or not at all."""
    made = directory / f".{RESULT}"
    made.write_text(json.dumps(result, indent=2) + "\n")
    _to_disk(made)
    os.replace(made, directory / RESULT)
    _to_disk(directory)


def read_result(directory: Path) -> dict[str, Any] | None:
    """What result.json says, None before a run is complete."""
    path = directory / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
