"""Recorded episodes in place of environments that are stepped: what was demonstrated is shown again, transition by transition.

The agent's actions change nothing, so any agent that learns from replay learns offline. Greedy evaluation takes
place in the environment itself.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from agents import environments
from agents.demonstrations import FIELDS, Demonstrations
from agents.environments import Ended, Environment, UnrepeatableError
from agents.streams import generator


def spaces(environment: Environment) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The spaces of one observation and of one action; raises ValueError unless the recording has the same."""
    if environment.frame_stack > 1:
        raise ValueError(f"frame_stack {environment.frame_stack} is not for env.backend=recorded, which keeps whole observations; stack by +env/wrapper=frame_stack")
    if not environment.recording:
        raise ValueError("env.backend=recorded needs env.recording, a file that rlloss-evaluate --record wrote, or minari:ID")
    found = environments.spaces(environment)
    Demonstrations(environment.recording).check(*found)
    return found


class RecordedEpisodes:
    """What `agents.environments.Episodes` is, for recorded episodes: every step shows the next transition, with the recorded action.

    A run sees all episodes in an order of its own, then again in another one, and so on; its environments
    take them in turn.
    """

    def __init__(self, environments: Sequence[Environment], seeds: Sequence[int], observation: np.ndarray, layout: np.dtype) -> None:
        self.seeds, self.observation = seeds, observation
        sources = {environment.recording: Demonstrations(environment.recording) for environment in environments}
        self.demonstrations = [sources[environment.recording] for environment in environments]
        # Transitions of all recordings in one array, and where those of each begin.
        self.shown = np.concatenate([_records(each, layout) for each in sources.values()])
        self.ends = (self.shown["terminated"] + self.shown["truncated"]) > 0
        begins = dict(zip(sources, np.cumsum([0, *map(len, sources.values())]), strict=False))
        firsts = np.flatnonzero(np.concatenate([[True], self.ends[:-1]]))
        within = [(begins[environment.recording], begins[environment.recording] + len(sources[environment.recording])) for environment in environments]
        self.firsts = [firsts[(firsts >= begin) & (firsts < end)] for begin, end in within]
        shape = observation.shape[:2]
        self.records = np.zeros(shape, layout)
        self.words = self.records.view(np.int32).reshape(*shape, -1)
        self._words = self.shown.view(np.int32).reshape(len(self.shown), -1)
        self.numbers, self.rows, self.lengths = (np.zeros(shape, np.int64) for _ in range(3))
        self.returns, self.over = np.zeros(shape), np.zeros(shape, bool)
        self.raised: dict[int, Exception] = {}  # Nothing here raises.

    def begin(self) -> None:
        """Start the first episode everywhere."""
        for run, place in np.ndindex(self.rows.shape):
            self._start(run, place, place)
        self.observation[...] = self.shown["observation"][self.rows]

    def freeze(self, run: int) -> None:
        """Nothing is stepped."""

    def _start(self, run: int, place: int, number: int) -> None:
        """Go to the beginning of the `number`-th episode that the run sees."""
        turn, index = divmod(number, len(self.firsts[run]))
        self.numbers[run, place] = number
        self.rows[run, place] = self.firsts[run][order(self.seeds[run], turn, len(self.firsts[run]))[index]]
        self.returns[run, place], self.lengths[run, place] = 0.0, 0

    def step(self, actions: np.ndarray, probabilities: np.ndarray) -> list[Ended]:
        """Show the next transitions, whatever the actions were; returns the episodes that ended."""
        self.words[...] = self._words[self.rows]
        self.over = self.ends[self.rows]
        self.returns += self.records["reward"]
        self.lengths += 1
        return [Ended(run, place, self.returns[run, place].item(), self.lengths[run, place].item()) for run, place in np.argwhere(self.over).tolist()]

    def advance(self) -> None:
        """Move on to the successors, and to a new episode where one ended."""
        self.rows += 1
        for run, place in np.argwhere(self.over).tolist():
            self._start(run, place, self.numbers[run, place].item() + self.rows.shape[1])
        self.observation[...] = self.shown["observation"][self.rows]

    def saved(self, run: int) -> tuple[dict[str, torch.Tensor], Any]:
        """What brings one run back to where it is: tensors, and the rest as JSON has it."""
        kept = {name: getattr(self, name)[run].tolist() for name in ("numbers", "lengths", "returns")}
        return {}, kept | {"digest": self.demonstrations[run].digest}

    def resume(self, run: int, tensors: Mapping[str, torch.Tensor], rest: Any, observation: np.ndarray) -> None:
        """Bring one run back to where it was; raises UnrepeatableError if the recording isn't the same any more."""
        if rest["digest"] != self.demonstrations[run].digest:
            raise UnrepeatableError(f"{self.demonstrations[run].source} holds other demonstrations than when this run was started, so it can't be continued")
        for place, number in enumerate(rest["numbers"]):
            self._start(run, place, number)
        self.rows[run] += rest["lengths"]
        self.lengths[run], self.returns[run], self.observation[run] = rest["lengths"], rest["returns"], observation

    def close(self) -> None:
        """Nothing is open."""


@functools.lru_cache(maxsize=1024)
def order(seed: int, turn: int, episodes: int) -> np.ndarray:
    """The order in which a run sees all episodes for the `turn`-th time."""
    return generator(seed, "recorded episodes", turn).permutation(episodes)


def _records(demonstrations: Demonstrations, layout: np.dtype) -> np.ndarray:
    """Demonstrations as they are kept in replay; the actions count as certain."""
    records = np.zeros(len(demonstrations), layout)
    for name in FIELDS:
        records[name] = getattr(demonstrations, name)
    records["probability"] = 1.0
    return records
