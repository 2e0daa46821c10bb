"""Whose environments come in pools: EnvPool's and ale-py's."""

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from agents.environments import Environment
from agents.machine import give_way, library_threads, step_aside, thread_ids

# What an id of ale-py's says.
REGISTERED = ("game", "frameskip", "repeat_action_probability", "full_action_space", "max_num_frames_per_episode")

# What would break the order of environments, or leave the last frame of a life untold.
REFUSED = ("batch_size", "num_envs", "seed", "autoreset_mode", "life_loss_info")


class EnvPool:
    """EnvPool's environments; ids and arguments are those of `envpool.make`."""

    partial = True

    def __init__(self, environment: Environment, seeds: Sequence[int]) -> None:
        _check(environment)
        try:
            import envpool
        except ImportError as error:
            raise ValueError("env.backend=envpool needs the extra envpool: pip install 'rlloss[envpool]'") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Its spaces are rounded to float32, which nobody asked about.
                # Its own number of threads is that of the machine's cores, of which this process may have fewer.
                arguments, before = {"num_threads": library_threads()} | environment.arguments, thread_ids()
                self.made: Any = envpool.make(environment.id, env_type="gymnasium", num_envs=len(seeds), seed=list(seeds), **arguments)
                self._ahead = sorted(thread_ids() - before)[: -arguments["num_threads"]]
                self.spaces, self.max_steps = (self.made.observation_space, self.made.action_space), self.made.spec.config.max_episode_steps
                names = [name.split(":")[0] for name in self.made._state_keys]
                if names.count("obs") > 1 or self.made.spec.config.max_num_players > 1:
                    raise ValueError("it shows several observations at once, and one is taken; use env.backend=gymnasium, if Gymnasium has such an environment")
                self._seen = operator.itemgetter(*(names.index(name) for name in ("obs", "reward", "done", "trunc", "elapsed_step")))
                self._action_type = self.made._spec._action_spec[-1][0]
        except Exception as error:  # Constructors raise anything; a person wants one line of it.
            raise ValueError(f"EnvPool can't make {environment.id}: {type(error).__name__}: {' '.join(str(error).split())}") from error

    def settle(self) -> None:
        """Its thread that makes buffers ahead, started before those that step, steps aside: woken at every step, it would take turns with them."""
        step_aside(self._ahead)

    # Its own `step` and `reset` are these calls, in a layer of Python that takes as long as they do.

    def reset(self, places: np.ndarray) -> np.ndarray:
        """The first observations [places, …] of new episodes at some places."""
        self.made._reset(places)
        return self._seen(self.made._recv())[0]

    def step(self, actions: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, terminated and truncated, [places, …] each."""
        self.made._send([places, places, actions.astype(self._action_type, order="C", copy=False)])
        give_way()  # Else `_recv` would first wait in vain, since it spins.
        observation, reward, over, cut, age = self._seen(self.made._recv())
        late = age >= self.max_steps  # Not all of its environments cut their episodes: CliffWalking doesn't.
        if not np.count_nonzero(over | late):
            return observation, reward, over, late
        terminated = over & ~cut
        return observation, reward, terminated, cut | late & ~terminated

    def close(self) -> None:
        """Free the environments."""
        self.made.close()


class Atari:
    """ale-py's own vector environment, whose frames are grey, small and skipped; arguments are those of `AtariVectorEnv`.

    What the id stands for in Gymnasium, such as sticky actions, holds here too; rewards aren't clipped unless asked for.
    """

    partial = False

    def __init__(self, environment: Environment, seeds: Sequence[int]) -> None:
        _check(environment)
        if not environment.id.startswith("ALE/"):
            raise ValueError(f"env.backend=ale is for Atari games, whose ids begin with ALE/, got {environment.id}; use env.backend=gymnasium")
        try:
            from ale_py.vector_env import AtariVectorEnv
        except ImportError as error:
            raise ValueError("env.backend=ale needs the extra atari: pip install 'rlloss[atari]'") from error
        try:
            registered = gymnasium.spec(environment.id).kwargs
            arguments = {name: registered[name] for name in REGISTERED if name in registered} | {"reward_clipping": False, **environment.arguments}
            # It begins the next episode by itself, since it can't leave single ones ended; its own stacks begin with black frames.
            self.made: Any = AtariVectorEnv(num_envs=len(seeds), stack_num=1, autoreset_mode="SameStep", **arguments)
        except Exception as error:  # As above.
            raise ValueError(f"ale-py can't make {environment.id}: {type(error).__name__}: {' '.join(str(error).split())}") from error
        several = self.made.single_observation_space
        self.spaces = gymnasium.spaces.Box(several.low[0], several.high[0], dtype=several.dtype), self.made.single_action_space
        self.seeds, self.first = np.array(seeds), None

    def settle(self) -> None:
        """Nothing to do."""

    def reset(self, places: np.ndarray) -> np.ndarray:
        """The first observations [places, …] of new episodes at some places, at first at all of them."""
        if self.first is None:
            self.first = self.made.reset(seed=self.seeds)[0][:, 0]
        return self.first[places]

    def step(self, actions: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, terminated and truncated, [places, …] each; the places must be all."""
        observation, reward, terminated, truncated, information = self.made.step(actions.astype(np.int32))
        over = terminated | truncated
        self.first = observation[:, 0]
        last = np.where(over.reshape(-1, *[1] * (self.first.ndim - 1)), information["final_obs"][:, 0], self.first) if over.any() else self.first
        return last, reward, terminated, truncated

    def close(self) -> None:
        """Free the environments."""
        self.made.close()


def _check(environment: Environment) -> None:
    """Raise ValueError for arguments that a pool can't be made with."""
    if refused := [name for name in REFUSED if name in environment.arguments]:
        raise ValueError(f"env.arguments.{refused[0]} can't be set with env.backend={environment.backend}; leave it out")
