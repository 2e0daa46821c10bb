"""Greedy evaluation: whole episodes from seeds of their own, never those of training."""

from collections.abc import Callable, Iterable, Sequence
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
        in_range("every", self.every, 0)
        in_range("episodes", self.episodes, 1)
        in_range("max_steps", self.max_steps, 1)


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
    runs, width = observation.shape[:2]
    failed = {} if raised is None else raised
    made: dict[tuple[int, int], Any] = {}
    returns = [[0.0] * evaluation.episodes for _ in range(runs)]
    episode_seeds = [EpisodeSeeds(seed, "evaluation", step) for seed in seeds]
    steps = np.zeros((runs, width), np.int64)
    current = np.tile(np.arange(width), (runs, 1))

    def start(run: int, place: int) -> None:
        seed = episode_seeds[run][int(current[run, place])]
        observation[run, place], _ = made[run, place].reset(seed=seed)
        steps[run, place] = 0
        if started is not None:
            started[run, place] = True

    def begin(run: int, place: int) -> None:
        made[run, place] = environments[run].make()
        start(run, place)

    def advance(run: int, place: int) -> None:
        action = actions[run * width + place]
        observation[run, place], reward, terminated, truncated, _ = made[run, place].step(action)
        returns[run][current[run, place]] += float(reward)
        steps[run, place] += 1
        truncated = truncated or (steps[run, place] >= evaluation.max_steps and not terminated)
        if tell:
            tell[run](int(current[run, place]), before[run, place], action, float(reward), terminated, truncated, observation[run, place].copy())
        if terminated or truncated:
            current[run, place] += width
            if current[run, place] < evaluation.episodes:
                start(run, place)
            else:
                active.remove((run, place))

    def for_all(do: Callable[[int, int], None], places: Iterable[tuple[int, int]]) -> None:
        """Do it for these environments; a run whose environment raises is left from then on."""
        for run, place in sorted(places):
            try:
                if run not in failed:
                    do(run, place)
            except Exception as error:  # Somebody else's code raises anything.
                if raised is None:
                    raise
                failed[run] = error
                active.difference_update([(run, other) for other in range(width)])

    active = {(run, place) for run in range(runs) for place in range(min(width, evaluation.episodes)) if run not in failed}
    for_all(begin, active)
    take = taking(next(iter(made.values())).action_space) if made else None
    while active:
        actions = act()
        actions = take(actions.reshape(runs * width, *actions.shape[2:]))
        before = observation.copy() if tell else observation
        for_all(advance, active)
    for_all(lambda run, place: made[run, place].close(), made)
    return returns


def summary(returns: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, minimum and maximum of returns."""
    return {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "min": float(np.min(returns)), "max": float(np.max(returns))}
