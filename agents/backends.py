"""Who steps the environments: `env.backend`, one word for the same interface."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium

from agents import environments, evaluation, pools, recorded
from agents.environments import Environment
from agents.pool_kinds import Atari, EnvPool


class Backend(NamedTuple):
    """What the loop needs of environments; see `agents.environments` for each."""

    spaces: Callable[[Environment], tuple[gymnasium.Space, gymnasium.Space]]
    episodes: Callable[..., Any]
    evaluate: Callable[..., list[list[float]]]
    keeps_actions: bool  # all since the start, from which a run goes on exactly


def _pooled(kind: type[pools.Pool]) -> Backend:
    return Backend(*(functools.partial(function, kind) for function in (pools.spaces, pools.PoolEpisodes, pools.evaluate)), keeps_actions=True)


BACKENDS = {
    "gymnasium": Backend(environments.spaces, environments.Episodes, evaluation.evaluate, keeps_actions=False),
    "envpool": _pooled(EnvPool),
    "ale": _pooled(Atari),
    "recorded": Backend(recorded.spaces, recorded.RecordedEpisodes, evaluation.evaluate, keeps_actions=False),
}


def backend(environment: Environment) -> Backend:
    """The backend that an environment names; raises ValueError if there is none of that name."""
    if environment.backend not in BACKENDS:
        raise ValueError(f"env.backend must be {' or '.join(BACKENDS)}, got {environment.backend}")
    return BACKENDS[environment.backend]
