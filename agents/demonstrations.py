"""Demonstrations: transitions that a policy made in an environment, in one file or in a Minari dataset, and what records them."""

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agents.actions import storing
from agents.spaces import COMPOSITE, packing, storage

FIELDS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")
SPACES = ("observation_space", "action_space")
MINARI = "minari:"

Arrays = dict[str, np.ndarray]


class Demonstrations:
    """Transitions in time order, episode by episode: for each of `FIELDS` an array [steps, …].

    Observations and actions are as `agents.spaces` and `agents.actions` store them. The last step of every episode is
    terminated or truncated. Two are equal if they have the same contents.

    Args:
        source: a file that `rlloss-evaluate --record` wrote, or the id of a Minari dataset behind `minari:`.

    Raises:
        ValueError: it can't be read, in one line.
    """

    def __init__(self, source: str) -> None:
        if not source:
            raise ValueError("no demonstrations are named: give a file that rlloss-evaluate --record wrote, or minari:ID for a dataset of Minari's")
        minari = source.startswith(MINARI)
        self.source = source
        arrays, self.spaces = _dataset(source.removeprefix(MINARI)) if minari else _file(source, _stamp(source))
        self.observation, self.action, self.reward, self.terminated, self.truncated, self.next_observation = (arrays[name] for name in FIELDS)
        self.digest = hashlib.sha256(b"".join(np.ascontiguousarray(arrays[name]) for name in FIELDS)).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        return f"Demonstrations({len(self)} steps, {self.digest})"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Demonstrations) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def check(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Raise ValueError unless they come from an environment with these spaces."""
        for name, space in zip(SPACES, (observation_space, action_space), strict=True):
            if self.spaces[name] != str(space):
                raise ValueError(f"{self.source} was recorded with {name.replace('_', ' ')} {self.spaces[name]}, but this environment has {space}; record it there")
        shape, dtype = storage(observation_space)
        if (self.observation.shape[1:], str(self.observation.dtype)) != (shape, str(dtype).removeprefix("torch.")):
            raise ValueError(f"{self.source} keeps observations as another version of rlloss does; record it anew")


def _stamp(path: str) -> tuple[int, int]:
    """What changes when a file is written anew; raises ValueError if there is none."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"there are no demonstrations at {path}: {error.strerror}; record some with rlloss-evaluate RUN_DIR --record {path}") from error
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=8)  # All runs of a population look at one copy.
def _file(path: str, stamp: tuple[int, int]) -> tuple[Arrays, dict[str, str]]:
    try:
        with safe_open(path, "numpy") as file:
            told, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read as demonstrations: {error}") from error
    if missing := [name for name in (*FIELDS, *SPACES) if name not in arrays and name not in told]:
        raise ValueError(f"{path} holds no demonstrations: it has no {missing[0]}; record some with rlloss-evaluate RUN_DIR --record FILE")
    return _ended(arrays, path), {name: told[name] for name in SPACES}


@functools.lru_cache(maxsize=8)
def _dataset(name: str) -> tuple[Arrays, dict[str, str]]:
    try:
        import minari
    except ImportError as error:
        raise ValueError(f"{MINARI}{name} needs the extra minari: pip install 'rlloss[minari]'") from error
    try:
        dataset = minari.load_dataset(name, download=True)
    except Exception as error:  # It raises anything; a person wants one line of it.
        raise ValueError(f"Minari can't load {name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    seen, acted = dataset.observation_space, dataset.action_space
    parts, kept = [], str(storage(seen)[1]).removeprefix("torch.")
    pack = packing(seen) if isinstance(seen, COMPOSITE) else lambda observations, count: np.asarray(observations).astype(kept)
    for episode in dataset.iterate_episodes():
        observation = pack(episode.observations, len(episode.rewards) + 1)
        over = np.arange(1, len(observation)) == len(observation) - 1
        terminated = np.asarray(episode.terminations, bool)
        told = (observation[:-1], storing(acted)(np.asarray(episode.actions)), episode.rewards, terminated, over & ~terminated, observation[1:])
        parts.append(told)
    arrays = {name: np.concatenate(each) for name, each in zip(FIELDS, zip(*parts, strict=True), strict=True)}
    return _ended(arrays, name), {"observation_space": str(seen), "action_space": str(acted)}


def _ended(arrays: Arrays, source: str) -> Arrays:
    """Arrays whose last step ends an episode, as numbers of one precision."""
    if not len(arrays["reward"]):
        raise ValueError(f"{source} holds no steps; record at least one episode")
    last = np.arange(len(arrays["reward"])) == len(arrays["reward"]) - 1
    terminated = arrays["terminated"].astype(bool)
    truncated = (arrays["truncated"].astype(bool) | last) & ~terminated
    return arrays | {"reward": arrays["reward"].astype(np.float32), "terminated": terminated, "truncated": truncated}


class Recording:
    """Takes note of transitions of episodes that are played side by side, see `agents.evaluation.Tell`, and writes them episode by episode."""

    def __init__(self, environment: str, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.told = {"environment": environment, "observation_space": str(observation_space), "action_space": str(action_space)}
        self.store = storing(action_space)
        self.episodes: dict[int, list[tuple]] = {}

    def __call__(self, episode: int, *transition: Any) -> None:
        self.episodes.setdefault(episode, []).append(transition)

    @property
    def arrays(self) -> Arrays:
        """All that was told, as `Demonstrations` has it."""
        columns = zip(*(transition for episode in sorted(self.episodes) for transition in self.episodes[episode]), strict=True)
        arrays = {name: np.stack(column) for name, column in zip(FIELDS, columns, strict=True)}
        return arrays | {"action": self.store(arrays["action"]), "reward": arrays["reward"].astype(np.float32)}

    def write(self, path: Path) -> int:
        """Write a file, whole or not at all, and say how many steps it holds."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".recording-", dir=path.parent)) / "recording"
        save_file(arrays, made, self.told)
        os.replace(made, path)
        made.parent.rmdir()
        return len(arrays["reward"])

