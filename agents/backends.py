"""Who steps the environments: `env.backend`, one word for the same interface."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium

from agents import environments, evaluation, pools
from agents.environments import Environment


class Backend(NamedTuple):
    """What the loop needs of environments; see `agents.environments` for each."""

    spaces: Callable[[Environment], tuple[gymnasium.Space, gymnasium.Space]]
    episodes: Callable[..., Any]
    evaluate: Callable[..., list[list[float]]]


BACKENDS = {
    "gymnasium": Backend(environments.spaces, environments.Episodes, evaluation.evaluate),
    "envpool": Backend(pools.spaces, pools.PoolEpisodes, pools.evaluate),
}


def backend(environment: Environment) -> Backend:
    """The backend that an environment names; raises ValueError if there is none of that name."""
    if environment.backend not in BACKENDS:
        raise ValueError(f"env.backend must be {' or '.join(BACKENDS)}, got {environment.backend}")
    return BACKENDS[environment.backend]
