"""Environments that a library steps itself, many by one call. The same results as `agents.environments` gives, but that
EnvPool takes an episode that ends in its last possible step for cut only.

A pool takes a seed for each environment once, not for each episode. So where an episode of Gymnasium's is
(seed, actions), a pool is its seeds and all actions since the run began, and a continued run repeats them.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from agents.actions import taking
from agents.environments import Ended, Environment, check_repeated
from agents.evaluation import Evaluation
from agents.frames import Frames
from agents.streams import EpisodeSeeds


class Pool(Protocol):
    """Environments of one kind, each with a seed; an episode that ended stays ended until `reset`."""

    # Whether some environments can be stepped while others stand still, so that runs can share a pool.
    partial: bool
    spaces: tuple[gymnasium.Space, gymnasium.Space]

    def __init__(self, environment: Environment, seeds: Sequence[int]) -> None:
        """Make as many environments as there are seeds; raises ValueError in one line where that fails."""

    def settle(self) -> None:
        """Get ready for many steps, called once before them."""

    def reset(self, places: np.ndarray) -> np.ndarray:
        """The first observations [places, …] of new episodes at some places, int32."""

    def step(self, actions: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations (the true last ones where an episode ended), rewards, terminated and truncated, [places, …] each, for actions int32 [places]."""

    def close(self) -> None:
        """Free the environments."""


def spaces(kind: type[Pool], environment: Environment) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The spaces of one observation, which may be stacked frames, and of one action."""
    if environment.wrappers:
        raise ValueError(f"env.wrappers can't be put around environments of env.backend={environment.backend}; leave them out, or use env.backend=gymnasium")
    pool = kind(environment, [0])
    pool.close()
    observation, action = pool.spaces
    return observation if environment.frame_stack == 1 else Frames(observation, environment.frame_stack), action


class Pools:
    """The environments of all runs, and what they show: `observation` [runs × environments, …], frames stacked if wanted."""

    def __init__(self, kind: type[Pool], environments: Sequence[Environment], seeds: Sequence[Sequence[int]], observation: np.ndarray) -> None:
        """Environments of each run, with seeds [runs, environments], that write into `observation` [runs, environments, …]."""
        width = len(seeds[0])
        self.observation, self.stacked = observation.reshape(-1, *observation.shape[2:]), environments[0].frame_stack > 1
        # Runs may differ in floats, which may be arguments of their environments.
        different = [environment for index, environment in enumerate(environments) if environment not in environments[:index]] if kind.partial else environments
        groups = [[run for run, other in enumerate(environments) if other == one] for one in different] if kind.partial else [[run] for run in range(len(seeds))]
        self.pools = [kind(one, [seed for run in runs for seed in seeds[run]]) for one, runs in zip(different, groups, strict=True)]
        self.places = [np.concatenate([np.arange(run * width, (run + 1) * width) for run in runs]) for runs in groups]
        self.take = taking(self.pools[0].spaces[1])
        self.width, self.raised, self.going = width, {}, None
        # A slice where it can be: it needs no copies.
        several = len(self.pools) > 1
        self._all = [(pool, np.arange(len(places), dtype=np.int32), places if several else slice(None)) for pool, places in zip(self.pools, self.places, strict=True)]

    def restart(self, chosen: np.ndarray | None = None) -> None:
        """Start new episodes in the chosen environments, bool [runs × environments], None for all."""
        for pool, inside, places in self._of(chosen):
            try:
                first = pool.reset(inside)
            except Exception as error:  # Somebody else's code raises anything.
                self._raise(places, error)
                continue
            self.observation[places] = first[:, None] if self.stacked else first

    def freeze(self, run: int) -> None:
        """Never step or restart this run's environments any more."""
        self.going = np.ones(len(self.observation), bool) if self.going is None else self.going
        self.going[run * self.width : (run + 1) * self.width] = False

    def _raise(self, places: np.ndarray | slice, error: Exception) -> None:
        """Where a pool raised, freeze the runs with environments in it, which nobody can tell apart, and keep the exception."""
        for run in np.unique(np.arange(len(self.observation))[places] // self.width).tolist():
            self.raised[run] = error
            self.freeze(run)

    def step(self, actions: np.ndarray, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step the chosen environments, bool [runs × environments], None for all: rewards, terminated and truncated, 0 for the others."""
        count = len(self.observation)
        outcome = np.zeros(count, np.float32), np.zeros(count, bool), np.zeros(count, bool)
        for pool, inside, places in self._of(chosen):
            try:
                frame, *told = pool.step(self.take(actions[places]), inside)
            except Exception as error:  # As above.
                self._raise(places, error)
                continue
            self.observation[places] = np.concatenate([self.observation[places, 1:], frame[:, None]], 1) if self.stacked else frame
            if len(inside) == count:
                return tuple(told)
            for whole, part in zip(outcome, told, strict=True):
                whole[places] = part
        return outcome

    def _of(self, chosen: np.ndarray | None) -> Sequence[tuple[Pool, np.ndarray, np.ndarray | slice]]:
        """Each pool with chosen environments that aren't frozen: their places in the pool, and among all."""
        if self.going is not None:
            chosen = self.going if chosen is None else self.going & chosen
        if chosen is None:
            return self._all
        inside = [np.flatnonzero(chosen[places]).astype(np.int32) for places in self.places]
        return [(pool, some, places[some]) for pool, places, some in zip(self.pools, self.places, inside, strict=True) if len(some)]

    def close(self) -> None:
        """Free all environments."""
        for pool in self.pools:
            with contextlib.suppress(Exception):  # One that raised may not be able to; all results are there.
                pool.close()


class PoolEpisodes:
    """What `agents.environments.Episodes` is, for pools."""

    def __init__(self, kind: type[Pool], environments: Sequence[Environment], seeds: Sequence[int], observation: np.ndarray, layout: np.dtype) -> None:
        shape = observation.shape[:2]
        self.pools = Pools(kind, environments, [[EpisodeSeeds(seed, "episodes", number)[0] for number in range(shape[1])] for seed in seeds], observation)
        for pool in self.pools.pools:
            pool.settle()
        self.observation, self.records = observation, np.zeros(shape, layout)
        self.words = self.records.view(np.int32).reshape(*shape, -1)
        self.returns, self.begun, self.over = np.zeros(shape).reshape(-1), np.zeros(self.records.size, np.int64), None
        self.actions, self.taken = np.zeros((1024, *shape, *layout["action"].shape), layout["action"].base), 0
        self.raised, self.freeze = self.pools.raised, self.pools.freeze
        # Views made once: making one costs as much as a small copy.
        self._action, self._probability, self._before = (self.records[name] for name in ("action", "probability", "observation"))
        self._reward, self._terminated, self._truncated = (self.records.reshape(-1)[name] for name in ("reward", "terminated", "truncated"))
        whole = "next_observation" in layout.names  # Else records hold the newest of stacked frames alone.
        self._current, self._next = (observation, self.records["next_observation"]) if whole else (observation[:, :, -1], None)

    def begin(self) -> None:
        """Start the first episode everywhere."""
        self.pools.restart()

    def step(self, actions: np.ndarray, probabilities: np.ndarray) -> list[Ended]:
        """Take actions [runs, environments, …], as they are stored, chosen with these probabilities; returns the episodes that ended."""
        if self.taken == len(self.actions):
            self.actions = np.concatenate([self.actions, np.zeros_like(self.actions)])
        self.actions[self.taken] = self._action[...] = actions
        self._probability[...], self._before[...] = probabilities, self._current
        reward, terminated, truncated = self.pools.step(self._each(self.actions[self.taken]))
        self.taken += 1
        self._reward[...], self._terminated[...], self._truncated[...] = reward, terminated, truncated
        if self._next is not None:
            self._next[...] = self.observation
        self.returns += reward
        over = terminated | truncated
        self.over = over if np.count_nonzero(over) else None
        return [] if self.over is None else [self._ended(place) for place in np.flatnonzero(over).tolist()]

    def _ended(self, place: int) -> Ended:
        return Ended(*divmod(place, self.records.shape[1]), self.returns[place].item(), self.taken - self.begun[place].item())

    def advance(self) -> None:
        """Move on to the first observation of a new episode where one ended."""
        if self.over is not None:
            self.pools.restart(self.over)
            self.returns[self.over], self.begun[self.over] = 0.0, self.taken

    def saved(self, run: int) -> tuple[dict[str, torch.Tensor], Any]:
        """What brings one run's environments back: tensors, and the rest as JSON has it."""
        actions, mine = self.actions[: self.taken, run], self._of(run)
        return {"actions": torch.from_numpy(actions.copy())}, {"returns": self.returns[mine].tolist(), "lengths": (self.taken - self.begun[mine]).tolist()}

    def resume(self, run: int, tensors: dict[str, torch.Tensor], rest: Any, observation: np.ndarray) -> None:
        """Bring one run's environments back to where they were by repeating all of its actions; raises UnrepeatableError if they don't repeat themselves."""
        actions = tensors["actions"].numpy()
        if self.taken != len(actions):
            self.taken, self.actions = len(actions), np.zeros((max(len(actions), 1), *self.actions.shape[1:]), self.actions.dtype)
        mine, returns = np.zeros(self.records.size, bool), np.zeros(self.records.size)
        mine[self._of(run)] = True
        self.pools.restart(mine)
        for kept, action in zip(self.actions[: self.taken], actions, strict=True):
            kept[run] = action
            reward, terminated, truncated = self.pools.step(self._each(kept), mine)
            returns += reward
            if (over := terminated | truncated).any():
                returns[over] = 0.0
                self.pools.restart(over)
        if run in self.raised:
            return
        check_repeated(returns[mine].tolist() == rest["returns"] and np.array_equal(self.observation[run], observation))
        self.returns[mine], self.begun[mine] = returns[mine], self.taken - np.array(rest["lengths"])

    def _of(self, run: int) -> slice:
        """The places of one run's environments among all."""
        width = self.records.shape[1]
        return slice(run * width, (run + 1) * width)

    @staticmethod
    def _each(actions: np.ndarray) -> np.ndarray:
        """Actions [runs · environments, …] of [runs, environments, …]."""
        return actions.reshape(-1, *actions.shape[2:])

    def close(self) -> None:
        """Free all environments."""
        self.pools.close()


def evaluate(
    kind: type[Pool],
    act: Callable[[], np.ndarray],
    environments: Sequence[Environment],
    observation: np.ndarray,
    seeds: Sequence[int],
    step: int,
    evaluation: Evaluation,
    started: np.ndarray | None = None,
    raised: dict[int, Exception] | None = None,
) -> list[list[float]]:
    """The returns of greedy episodes of every run; see `agents.evaluation.evaluate`. Every episode has a new environment with a seed of its own."""
    runs, width = observation.shape[:2]
    returns = [[] for _ in range(runs)]
    streams = [EpisodeSeeds(seed, "evaluation", step) for seed in seeds]
    for first in range(0, evaluation.episodes, width):
        pools = Pools(kind, environments, [[stream[first + place] for place in range(width)] for stream in streams], observation)
        for run in raised or ():
            pools.freeze(run)
        pools.restart()
        if started is not None:
            started[...] = True
        gained, running = np.zeros(runs * width), np.tile(np.arange(first, first + width) < evaluation.episodes, runs)
        for _ in range(evaluation.max_steps):
            actions = act()
            reward, terminated, truncated = pools.step(actions.reshape(-1, *actions.shape[2:]))
            if pools.raised and raised is None:
                raise next(iter(pools.raised.values()))
            gained += reward * running
            running &= ~(terminated | truncated) & (True if pools.going is None else pools.going)
            if not running.any():
                break
        pools.close()
        if raised is not None:
            raised |= pools.raised
        for run, each in enumerate(gained.reshape(runs, width)):
            returns[run] += each[: evaluation.episodes - first].tolist()
    return returns
