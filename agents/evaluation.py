"""Greedy evaluation: whole episodes from seeds of their own, never those of training."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agents.actions import taking
from agents.environments import Environment
from agents.streams import EpisodeSeeds
from rlloss.checks import in_range


@dataclass(frozen=True)
class Evaluation:
    """When and how long to evaluate: `episodes` episodes every `every` steps (0: only at the end).

    An episode longer than `max_steps` is cut there, so that a policy that never ends can't hang a run.
    """

    every: int = 10_000
    episodes: int = 20
    max_steps: int = 27_000

    def __post_init__(self) -> None:
        for name, low in {"every": 0, "episodes": 1, "max_steps": 1}.items():
            in_range(name, getattr(self, name), low, whole=True)


class Tell(Protocol):
    """Is told every transition of an evaluation."""

    def __call__(self, episode: int, observation: np.ndarray, action: Any, reward: float, terminated: bool, truncated: bool, next_observation: np.ndarray) -> None:
        """One transition of the `episode`-th episode, with the action that the environment took; `truncated` where it was cut by `max_steps` too."""


def evaluate(
    act: Callable[[], np.ndarray],
    environments: Sequence[Environment],
    observation: np.ndarray,
    seeds: Sequence[int],
    step: int,
    evaluation: Evaluation,
    tell: Sequence[Tell] = (),
    started: np.ndarray | None = None,
    raised: dict[int, Exception] | None = None,
) -> list[list[float]]:
    """The returns of `evaluation.episodes` greedy episodes of every run.

    Args:
        act: () → actions [runs, environments, …], as they are stored, for what `observation` holds.
        environments: one a run; as many are made of each as training has.
        observation: the array [runs, environments, …] that `act` reads; it is written over.
        seeds: each run's seed; episodes depend on it and on `step` alone.
        step: the environment step of training at which this happens.
        evaluation: how many episodes, how long.
        tell: who is told the transitions, one a run; nobody if it's empty.
        started: bool [runs, environments], set where an episode starts, for an `act` that remembers; None for one that doesn't.
        raised: runs that are left out, by number; those whose environments raise join them, with what was raised. None lets it pass.
    """
    failed = {} if raised is None else raised
    runs, width = observation.shape[:2]
    episodes = GreedyEpisodes(environments, observation, seeds, step, evaluation, started)
    active = {(run, place) for run in range(runs) for place in range(min(width, evaluation.episodes)) if run not in failed}

    def for_all(do: Callable[[int, int], bool]) -> None:
        """Do it for the active environments, which stay so where it says; a run whose environment raises is left from then on."""
        for run, place in sorted(active):
            try:
                if run not in failed and not do(run, place):
                    active.remove((run, place))
            except Exception as error:  # Somebody else's code raises anything.
                if raised is None:
                    raise
                failed[run] = error
                active.difference_update([(run, other) for other in range(width)])

    for_all(episodes.begin)
    take = taking(next(iter(episodes.made.values())).action_space) if episodes.made else None
    while active:
        actions = act()
        actions = take(actions.reshape(runs * width, *actions.shape[2:]))
        before = observation.copy() if tell else None
        for_all(functools.partial(episodes.advance, actions, before, tell))
    episodes.close()
    return episodes.returns


class GreedyEpisodes:
    """The environments of an evaluation, by run and place, and how far their episodes are; see `evaluate`."""

    def __init__(self, environments: Sequence[Environment], observation: np.ndarray, seeds: Sequence[int], step: int, evaluation: Evaluation, started: np.ndarray | None) -> None:
        runs, self.width = observation.shape[:2]
        self.environments, self.observation, self.evaluation, self.started = environments, observation, evaluation, started
        self.made: dict[tuple[int, int], Any] = {}
        self.returns = [[0.0] * evaluation.episodes for _ in range(runs)]
        self.seeds = [EpisodeSeeds(seed, "evaluation", step) for seed in seeds]
        self.steps, self.current = np.zeros((runs, self.width), np.int64), np.tile(np.arange(self.width), (runs, 1))

    def begin(self, run: int, place: int) -> bool:
        """Make an environment and start its first episode; whether it has one."""
        self.made[run, place] = self.environments[run].make()
        return self._start(run, place)

    def _start(self, run: int, place: int) -> bool:
        if self.current[run, place] >= self.evaluation.episodes:
            return False
        self.observation[run, place], _ = self.made[run, place].reset(seed=self.seeds[run][int(self.current[run, place])])
        self.steps[run, place] = 0
        if self.started is not None:
            self.started[run, place] = True
        return True

    def advance(self, actions: Any, before: np.ndarray | None, tell: Sequence[Tell], run: int, place: int) -> bool:
        """Take the action [runs · environments, …] of one environment, tell of it, and go to the next episode where one ended; whether there is one."""
        action, episode = actions[run * self.width + place], int(self.current[run, place])
        self.observation[run, place], reward, terminated, truncated, _ = self.made[run, place].step(action)
        self.returns[run][episode] += float(reward)
        self.steps[run, place] += 1
        truncated = truncated or (self.steps[run, place] >= self.evaluation.max_steps and not terminated)
        if tell:
            tell[run](episode, before[run, place], action, float(reward), terminated, truncated, self.observation[run, place].copy())
        if not (terminated or truncated):
            return True
        self.current[run, place] += self.width
        return self._start(run, place)

    def close(self) -> None:
        """Free all environments."""
        for environment in self.made.values():
            with contextlib.suppress(Exception):  # One that raised may not be able to; all results are there.
                environment.close()


def summary(returns: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, minimum and maximum of returns."""
    return {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "min": float(np.min(returns)), "max": float(np.max(returns))}
