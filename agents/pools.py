"""EnvPool's environments: all of a run are stepped by one call. The same results as `agents.environments` gives.

A pool takes a seed for each environment once, not for each episode. So where an episode of Gymnasium's is
(seed, actions), a pool is its seeds and all actions since the run began, and a continued run repeats them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from agents.environments import Ended, Environment, check_repeated
from agents.evaluation import Evaluation
from agents.streams import EpisodeSeeds


class Pool:
    """EnvPool's environments of one run; an episode that ended stays ended until `restart`."""

    def __init__(self, environment: Environment, seeds: Sequence[int]) -> None:
        """Make as many environments as there are seeds; raises ValueError in one line where that fails."""
        if environment.frame_stack > 1:
            raise ValueError("env.frame_stack is for env.backend=gymnasium; EnvPool's own is +env.arguments.stack_num")
        if environment.wrappers:
            raise ValueError("env.wrappers can't be put around EnvPool's environments; leave them out, or use env.backend=gymnasium")
        try:
            import envpool
        except ImportError as error:
            raise ValueError("env.backend=envpool needs the extra envpool: pip install 'rlloss[envpool]'") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Its spaces are rounded to float32, which nobody asked about.
                self.made: Any = envpool.make(environment.id, env_type="gymnasium", num_envs=len(seeds), seed=list(seeds), **environment.arguments)
                self.spaces = self.made.observation_space, self.made.action_space
        except Exception as error:  # Constructors raise anything; a person wants one line of it.
            raise ValueError(f"EnvPool can't make {environment.id}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def reset(self) -> np.ndarray:
        """The first observations [environments, …]."""
        return self.made.reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations (the true last ones where an episode ended), rewards, terminated and truncated, [environments, …] each."""
        return self.made.step(actions)[:4]

    def restart(self, places: np.ndarray) -> np.ndarray:
        """The first observations [places, …] of new episodes at some places."""
        return self.made.reset(places.astype(np.int32))[0]

    def close(self) -> None:
        """Free the environments."""
        self.made.close()


def spaces(environment: Environment) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The spaces of one observation and of one action."""
    pool = Pool(environment, [0])
    pool.close()
    return pool.spaces


class PoolEpisodes:
    """What `agents.environments.Episodes` is, for pools: one a run."""

    def __init__(self, environments: Sequence[Environment], seeds: Sequence[int], observation: np.ndarray, layout: np.dtype) -> None:
        shape = observation.shape[:2]
        self.pools = [Pool(environment, [EpisodeSeeds(seed, "episodes", number)[0] for number in range(shape[1])]) for environment, seed in zip(environments, seeds, strict=True)]
        self.observation, self.records = observation, np.zeros(shape, layout)
        self.words = self.records.view(np.int32).reshape(*shape, -1)
        self.returns, self.lengths, self.over = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool)
        self.actions: list[np.ndarray] = []

    def begin(self) -> None:
        """Start the first episode everywhere."""
        for run, pool in enumerate(self.pools):
            self.observation[run] = pool.reset()

    def step(self, actions: np.ndarray, probabilities: np.ndarray) -> list[Ended]:
        """Take actions [runs, environments], counted from 0, chosen with these probabilities; returns the episodes that ended."""
        records = self.records
        records["action"] = actions.reshape(records.shape)
        records["probability"] = probabilities.reshape(records.shape)
        records["observation"] = self.observation
        self.actions.append(records["action"].copy())
        for run, pool in enumerate(self.pools):
            records["next_observation"][run], records["reward"][run], terminated, truncated = pool.step(self.actions[-1][run])
            records["terminated"][run], records["truncated"][run], self.over[run] = terminated, truncated, terminated | truncated
        self.returns += records["reward"]
        self.lengths += 1
        return [Ended(run, place, self.returns[run, place].item(), self.lengths[run, place].item()) for run, place in np.argwhere(self.over).tolist()]

    def advance(self) -> None:
        """Move on to the successors, and to the first observation of a new episode where one ended."""
        self.observation[...] = self.records["next_observation"]
        if not self.over.any():
            return
        for run, pool in enumerate(self.pools):
            places = np.flatnonzero(self.over[run])
            if len(places):
                self.observation[run, places] = pool.restart(places)
        self.returns[self.over], self.lengths[self.over] = 0.0, 0
        self.over[...] = False

    def saved(self, run: int) -> tuple[dict[str, torch.Tensor], Any]:
        """What brings one run's environments back: tensors, and the rest as JSON has it."""
        actions = np.stack(self.actions)[:, run] if self.actions else np.zeros((0, self.records.shape[1]), np.int32)
        return {"actions": torch.from_numpy(actions.copy())}, {"returns": self.returns[run].tolist(), "lengths": self.lengths[run].tolist()}

    def resume(self, run: int, tensors: dict[str, torch.Tensor], rest: Any, observation: np.ndarray) -> None:
        """Bring one run's environments back to where they were by repeating all of its actions; raises UnrepeatableError if they don't repeat themselves."""
        pool, actions = self.pools[run], tensors["actions"].numpy()
        current, returns = pool.reset(), np.zeros(actions.shape[1])
        for action in actions:
            current, reward, terminated, truncated = pool.step(action)
            returns += reward.astype(np.float32)
            if len(places := np.flatnonzero(terminated | truncated)):
                current[places], returns[places] = pool.restart(places), 0.0
        check_repeated(returns.tolist() == rest["returns"] and np.array_equal(current, observation))
        if len(self.actions) != len(actions):
            self.actions = [np.zeros(self.records.shape, np.int32) for _ in actions]
        for kept, action in zip(self.actions, actions, strict=True):
            kept[run] = action
        self.observation[run], self.returns[run], self.lengths[run] = current, returns, rest["lengths"]

    def close(self) -> None:
        """Free all environments."""
        for pool in self.pools:
            pool.close()


def evaluate(act: Callable[[], np.ndarray], environments: Sequence[Environment], observation: np.ndarray, seeds: Sequence[int], step: int, evaluation: Evaluation) -> list[list[float]]:
    """The returns of greedy episodes of every run; see `agents.evaluation.evaluate`. Every episode has a new environment with a seed of its own."""
    runs, width = observation.shape[:2]
    returns = [[] for _ in range(runs)]
    for first in range(0, evaluation.episodes, width):
        streams = [EpisodeSeeds(seed, "evaluation", step) for seed in seeds]
        pools = [Pool(environment, [stream[first + place] for place in range(width)]) for environment, stream in zip(environments, streams, strict=True)]
        for run, pool in enumerate(pools):
            observation[run] = pool.reset()
        gained, running = np.zeros((runs, width)), np.ones((runs, width), bool)
        running[:, evaluation.episodes - first :] = False
        for _ in range(evaluation.max_steps):
            actions = act().reshape(runs, width).astype(np.int32)
            for run, pool in enumerate(pools):
                observation[run], reward, terminated, truncated = pool.step(actions[run])
                gained[run] += reward * running[run]
                running[run] &= ~(terminated | truncated)
            if not running.any():
                break
        for run, pool in enumerate(pools):
            returns[run] += gained[run, : evaluation.episodes - first].tolist()
            pool.close()
    return returns
