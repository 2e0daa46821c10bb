"""Gymnasium environments as values, and the running episodes of a population."""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from agents.actions import taking
from agents.frames import Stacked
from agents.spaces import COMPOSITE, Packed, storage
from agents.streams import EpisodeSeeds
from rlloss.checks import in_range

EXTRAS = {
    "LunarLander": "box2d", "BipedalWalker": "box2d", "CarRacing": "box2d", "ALE/": "atari", "MinAtar/": "minatar",
    "HalfCheetah": "mujoco", "Hopper": "mujoco", "Walker2d": "mujoco", "Ant": "mujoco", "Humanoid": "mujoco",
    "Swimmer": "mujoco", "Reacher": "mujoco", "Pusher": "mujoco", "Inverted": "mujoco",
}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A Gymnasium environment that can be made any number of times.

    `id` may name a package to import first ("their_package:TheirEnv-v0"), `arguments` go to the
    constructor, `wrappers` are applied in their order. An observation is the last `frame_stack` frames; 1 for the frame
    itself. `backend` says who steps it, see `agents.backends`; if that's "recorded", `recording` names what it shows, see `agents.recorded`.
    """

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Mapping[str, Callable[[gymnasium.Env], gymnasium.Env]] = field(default_factory=dict)
    backend: str = "gymnasium"
    frame_stack: int = 1
    recording: str = ""

    def __post_init__(self) -> None:
        in_range("frame_stack", self.frame_stack, 1)
        if self.recording and self.backend != "recorded":
            raise ValueError(f"recording is shown by env.backend=recorded alone, this is env.backend={self.backend}; set that, or leave the recording out")

    def make(self) -> gymnasium.Env:
        """A new environment, whose observations are arrays: those of a Tuple or Dict space come packed, see `agents.spaces`.

        Raises ValueError in one line, with what to install, where that fails.
        """
        _register(self.id)
        try:
            environment = gymnasium.make(self.id, disable_env_checker=True, **self.arguments)
        except Exception as error:  # Constructors raise anything; a person wants one line of it.
            raise ValueError(_why(self.id, error)) from error
        for name, wrap in self.wrappers.items():
            try:
                environment = wrap(environment)
            except Exception as error:
                missing = isinstance(error, gymnasium.error.DependencyNotInstalled) and _extra(self.id)
                raise ValueError(_why(self.id, error) if missing else f"wrapper {name} can't be put around {self.id}: {error}") from error
        if self.frame_stack > 1:
            return Stacked(environment, self.frame_stack)
        return Packed(environment) if isinstance(environment.observation_space, COMPOSITE) else environment


def spaces(environment: Environment) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The spaces of one observation and of one action; raises ValueError if the first observation isn't of its space's shape."""
    made = environment.make()
    try:
        observation, _ = made.reset(seed=0)
    except Exception as error:
        raise ValueError(f"environment {environment.id} can't be reset: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        made.close()
    if np.shape(observation) != (shape := storage(made.observation_space)[0]):
        raise ValueError(f"environment {environment.id} gives observations of shape {np.shape(observation)}, but its observation space says {shape}")
    return made.observation_space, made.action_space


def _register(name: str) -> None:
    """Let Gymnasium know the environments of packages that it doesn't look for itself, if they are installed."""
    with contextlib.suppress(ImportError):
        if name.startswith("ALE/"):
            ale = importlib.import_module("ale_py")
            ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)  # No banner for every environment.
        if name.startswith("MinAtar/") and "MinAtar/Breakout-v1" not in gymnasium.registry:
            importlib.import_module("minatar.gym").register_envs()


def _extra(name: str) -> str | None:
    """The extra that an environment needs."""
    return next((extra for prefix, extra in EXTRAS.items() if name.startswith(prefix)), None)


def _why(name: str, error: Exception) -> str:
    reason, extra = " ".join(str(error).split()), _extra(name)
    if extra and isinstance(error, (gymnasium.error.DependencyNotInstalled, gymnasium.error.NamespaceNotFound, ImportError)):
        return f"environment {name} needs the extra {extra}: pip install 'rlloss[{extra}]'"
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        return f"there is no environment {name}: {reason}"
    return f"environment {name} can't be made: {type(error).__name__}: {reason}"


class UnrepeatableError(ValueError):
    """An environment whose state is not a function of its seed and the actions taken."""


def check_repeated(same: bool) -> None:
    """Raise UnrepeatableError unless environments came out the same."""
    if not same:
        raise UnrepeatableError("the environment does not repeat itself from a seed and the same actions, so this run can't be continued exactly")


class Ended(NamedTuple):
    """An episode that ended: its run, its environment's place in the run, and the undiscounted return."""

    run: int
    place: int
    episode_return: float
    length: int


@dataclass
class Episode:
    """A running episode. (seed, actions) is all that an environment's state is made of."""

    index: int
    seed: int
    actions: list[Any]
    episode_return: float = 0.0


class Episodes:
    """The environments of all runs, stepped together; every episode starts from a seed of its own.

    `observation` [runs, environments, …] is what to act on. `step` fills `records` [runs, environments]
    with transitions, true last observations included (`words` are the same bits); `advance` then moves on to the successors, or to
    a new episode where one ended. Of stacked frames records hold the newest alone. A run whose environment raises is in
    `raised` with the exception, and frozen.
    """

    def __init__(self, environments: Sequence[Environment], seeds: Sequence[int], observation: np.ndarray, layout: np.dtype) -> None:
        self.num_envs = observation.shape[1]
        self.seeds = [EpisodeSeeds(seed, "episodes", number) for seed in seeds for number in range(self.num_envs)]
        self.environments = [environment.make() for environment in environments for _ in range(self.num_envs)]
        self.take, self._type = taking(self.environments[0].action_space), self.environments[0].action_space.dtype
        self.observation, self.records = observation, np.zeros(observation.shape[:2], layout)
        self.words = self.records.view(np.int32).reshape(*self.records.shape, -1)
        self.running: list[Episode] = [None] * len(self.environments)
        self.places, self.done = list(range(len(self.environments))), []  # those that are stepped, and of them those whose episodes ended
        self.raised: dict[int, Exception] = {}
        # Views made once: making one costs as much as a small copy.
        flat = self.records.reshape(-1)
        self._observation, self._action, self._probability = (self.records[name] for name in ("observation", "action", "probability"))
        stacked = "next_observation" not in layout.names
        self._current = observation[:, :, -1] if stacked else observation
        self._next_observation = observation if stacked else self.records["next_observation"]
        self._reward, self._terminated, self._truncated = (flat[name] for name in ("reward", "terminated", "truncated"))
        successors = observation.reshape(len(flat), *observation.shape[2:]) if stacked else flat["next_observation"]
        self._successors = [successors[place : place + 1] for place in range(len(flat))]

    def begin(self) -> None:
        """Start the first episode everywhere."""
        for place in self.places:
            self._start(place, 0)

    def freeze(self, run: int) -> None:
        """Never step or reset this run's environments any more; what its records hold is meaningless from now on."""
        self.places, self.done = ([place for place in places if place // self.num_envs != run] for places in (self.places, self.done))

    def _raise(self, place: int, error: Exception) -> None:
        run = place // self.num_envs
        self.raised[run] = error
        self.freeze(run)

    def step(self, actions: np.ndarray, probabilities: np.ndarray) -> list[Ended]:
        """Take actions [runs, environments, …], as they are stored, chosen with these probabilities; returns the episodes that ended."""
        self._action[...] = actions
        self._probability[...] = probabilities
        self._observation[...] = self._current
        ended = []
        # Environments get NumPy's integers, which a Discrete space checks faster than Python's.
        actions = actions.reshape(-1, *self._action.shape[2:])
        stored, chosen = actions.tolist(), self.take(actions).astype(self._type, copy=False)
        for place in self.places:
            try:
                observation, reward, terminated, truncated, _ = self.environments[place].step(chosen[place])
                self._successors[place][0] = observation
                self._reward[place] = reward
                self._terminated[place] = terminated
                self._truncated[place] = truncated
            except Exception as error:  # Somebody else's code raises anything.
                self._raise(place, error)
                continue
            episode = self.running[place]
            episode.actions.append(stored[place])
            episode.episode_return += float(reward)
            if terminated or truncated:
                self.done.append(place)
                ended.append(Ended(*divmod(place, self.num_envs), episode.episode_return, len(episode.actions)))
        return ended

    def advance(self) -> None:
        """Move on to the successors, and to the first observation of a new episode where one ended."""
        self.observation[...] = self._next_observation
        for place in self.done:
            self._start(place, self.running[place].index + 1)
        self.done.clear()

    def _start(self, place: int, index: int) -> None:
        run, number = divmod(place, self.num_envs)
        seed = self.seeds[place][index]
        self.running[place] = Episode(index, seed, [])
        try:
            self.observation[run, number], _ = self.environments[place].reset(seed=seed)
        except Exception as error:
            self._raise(place, error)

    def saved(self, run: int) -> tuple[dict[str, torch.Tensor], Any]:
        """What brings one run's environments back: tensors, and the rest as JSON has it."""
        return {}, [dataclasses.asdict(episode) for episode in self.running[run * self.num_envs : (run + 1) * self.num_envs]]

    def resume(self, run: int, tensors: Mapping[str, torch.Tensor], rest: Any, observation: np.ndarray) -> None:
        """Bring one run's environments back to where they were by repeating each episode's actions.

        Raises UnrepeatableError if an environment does not repeat itself, judged by its rewards and last observation.
        """
        same_rewards = True
        for number, episode in enumerate(Episode(**each) for each in rest):
            place = run * self.num_envs + number
            try:
                self.observation[run, number], episode_return = self._repeat(self.environments[place], episode)
            except Exception as error:
                self._raise(place, error)
                return
            self.running[place] = episode
            same_rewards &= episode_return == episode.episode_return
        check_repeated(same_rewards and np.array_equal(self.observation[run], observation))

    def _repeat(self, environment: gymnasium.Env, episode: Episode) -> tuple[np.ndarray, float]:
        """The last observation and the return so far of an episode whose actions are taken anew."""
        current, _ = environment.reset(seed=episode.seed)
        episode_return = 0.0
        for action in self.take(np.array(episode.actions, self._action.dtype).reshape(-1, *self._action.shape[2:])):
            current, reward, *_ = environment.step(action)
            episode_return += float(reward)
        return current, episode_return

    def close(self) -> None:
        """Close all environments."""
        for environment in self.environments:
            with contextlib.suppress(Exception):  # One that raised may not be able to; all results are there.
                environment.close()
