"""A population: runs of one structure whose agents, learners and memories are stacked and learn together."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents import faults, replay
from agents.agent import Agent
from agents.compilation import Program, bind
from agents.spaces import storage
from agents.streams import Uniforms, torch_generator


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves [runs, …] are those of several trees of one structure; numbers become tensors.

    Raises ValueError if structures differ: only floats may differ inside a population.
    """
    structures = [pytree.tree_structure(tree) for tree in trees]
    if any(structure != structures[0] for structure in structures):
        raise ValueError("runs of one population may differ in floats and seeds only; these differ in structure, so train them apart")
    return pytree.tree_map(lambda *leaves: torch.stack([leaf if isinstance(leaf, Tensor) else torch.tensor(float(leaf)) for leaf in leaves]), *trees)


def unstack(tree: Any, run: int) -> Any:
    """One run's part of a stacked tree, sharing memory with it."""
    return pytree.tree_map(lambda leaf: leaf[run], tree)


class Population:
    """The stacked state of learning, and the programs that act and update all runs at once.

    Tensors are [runs, …]. `observation` is what is acted on, `remembered` what policies with memory remember of the episodes so far,
    `faults` notes what stopped being a number, see `agents.faults`.
    `started` says where greedy acting begins an episode, and has to forget. The programs are one run's pure functions under `torch.func.vmap`.
    """

    def __init__(self, agents: Sequence[Agent], seeds: Sequence[int], num_envs: int, *, compile: bool, say: Callable[[str], None]) -> None:
        self.structure, self.runs = agents[0], len(seeds)
        # All hyperparameters in one tensor: each input costs time at every call.
        leaves, self._agent_structure = pytree.tree_flatten(stack(agents))
        self.hyperparameters = torch.stack(leaves, -1)
        shape, dtype = storage(self.structure.observation_space)
        self.layout = self.structure.layout
        plan = self.structure.plan(num_envs)
        self.memory = replay.memory(self.runs, num_envs, plan.length, self.layout)
        slots = num_envs * plan.length
        self.learner = stack([agent.init(torch_generator(seed, "initial weights"), slots) for agent, seed in zip(agents, seeds, strict=True)])
        self.faults = faults.none(self.runs)
        self.exploration = Uniforms(seeds, "exploration", (plan.acting_uniforms,))
        self.refreshing = Uniforms(seeds, "refresh", (plan.refresh_uniforms,))
        self.sampling = Uniforms(seeds, "replay", (plan.update_uniforms,), np.float64)
        self.observation = torch.zeros(self.runs, num_envs, *shape, dtype=dtype)
        self.remembers = getattr(self.structure, "remembers", 0)
        self.remembered = torch.zeros(self.runs, num_envs, self.remembers)
        self.started = np.zeros((self.runs, num_envs), bool)
        self.uniforms = torch.zeros(self.runs, plan.acting_uniforms)
        self.shuffle = torch.zeros(self.runs, plan.refresh_uniforms)
        self.draws = torch.zeros(self.runs, plan.update_uniforms, dtype=torch.float64)
        self.added, self.progress, self.explore = torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.ones(())
        self.metrics = {}
        action = torch.from_numpy(np.zeros((self.runs, num_envs), self.layout["action"]))
        # What acting chose, with which probability, and what it then remembers.
        self.chosen = (action, torch.zeros(self.runs, num_envs), *([self.remembered.clone()] if self.remembers else []))
        self._action, self._probability, *self._then = (leaf.numpy() for leaf in self.chosen)
        self.words, self._uniforms, self._draws, self._remembered = self.memory.numpy(), self.uniforms.numpy(), self.draws.numpy(), self.remembered.numpy()
        self._added, self._progress, self._explore = self.added.numpy(), self.progress.numpy(), self.explore.numpy()
        self._compile, self._say = compile, say

    def prepare(self) -> None:
        """Make all programs now, not at their first use: compiling them takes seconds."""
        self._act, self._update, self._refresh  # noqa: B018

    @functools.cached_property
    def _act(self) -> Program:
        def act(chosen, learner, hyperparameters, observation, uniforms, *rest):
            *remembered, progress, explore = rest
            return self._agent(hyperparameters).act(learner, observation, uniforms, progress, explore, *remembered), ()

        stacked = (self.chosen, self.learner, self.hyperparameters, self.observation, self.uniforms, *([self.remembered] if self.remembers else []))
        return self._program(act, stacked, (self.progress, self.explore), compile=self._compile)

    @functools.cached_property
    def _update(self) -> Program:
        def update(state, hyperparameters, memory, draws, added, progress):
            learner, fault = state
            learner, metrics = self._agent(hyperparameters).update(learner, memory, draws, added, progress)
            return (learner, faults.noted(fault, metrics, added)), metrics

        stacked = ((self.learner, self.faults), self.hyperparameters, self.memory, self.draws)
        return self._program(update, stacked, (self.added, self.progress), compile=self._compile)

    @functools.cached_property
    def _refresh(self) -> Program:
        def refresh(learner, hyperparameters, memory, shuffle, added, progress):
            return self._agent(hyperparameters).refresh(learner, memory, shuffle, added, progress), ()

        stacked = (self.learner, self.hyperparameters, self.memory, self.shuffle)
        # A copy of parameters, which takes no random numbers, isn't worth compiling.
        return self._program(refresh, stacked, (self.added, self.progress), compile=self._compile and self.shuffle.shape[1] > 0)

    def _agent(self, hyperparameters: Tensor) -> Any:
        """One run's agent from its hyperparameters in one tensor."""
        return pytree.tree_unflatten(list(hyperparameters.unbind(-1)), self._agent_structure)

    def _program(self, function: Callable, stacked: tuple, shared: tuple, *, compile: bool) -> Program:
        return bind(function, stacked, shared, donate=True, compile=compile, name=function.__name__, say=self._say)

    def act(self, position: int, progress: float) -> tuple[np.ndarray, np.ndarray]:
        """Actions [runs, environments, …] for what `observation` holds, exploring with the streams' numbers there, and their probabilities; both until the next call."""
        self._progress[...] = progress
        self._uniforms[...] = self.exploration[position]
        self._act.run()
        return self._action, self._probability

    def act_greedily(self, progress: float) -> np.ndarray:
        """Actions [runs, environments, …] for what `observation` holds, without exploring, until the next call; forgets first where episodes have `started`."""
        self._progress[...] = progress
        self._explore[...] = 0
        self._remembered[self.started], self.started[...] = 0, False
        self._act.run()
        self._go_on()
        self._explore[...] = 1
        return self._action

    def _go_on(self) -> None:
        """Remember what acting left."""
        for remembered in self._then:
            self._remembered[...] = remembered

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within it greedy episodes may be acted in; then `observation` and `remembered` are what they were."""
        kept = self.observation.clone(), self.remembered.clone()
        yield
        self.observation[...], self.remembered[...] = kept

    def store(self, time: int, records: np.ndarray) -> None:
        """Keep the records [runs, environments, words] of one step, the `time`-th, with what was remembered before it, and go on."""
        if self.remembers:
            seen = records.view(self.layout)[..., 0]
            seen["remembered"] = self._remembered
            self._go_on()
            self._remembered[seen["terminated"] + seen["truncated"] > 0] = 0
        self.structure.write(self.words, time, records, self.learner)

    def sample(self, position: int, added: int) -> None:
        """Hand the next update, `position` updates after the start, its random numbers and the number of records `added` for each environment."""
        self._draws[...] = self.sampling[position]
        self._added[...] = added

    def update(self, progress: float) -> None:
        """One gradient step of every run."""
        self._progress[...] = progress
        self._outputs = self._update.run()

    def faulty(self) -> dict[int, faults.Fault]:
        """The first NaN or infinity in what updates told, for each run that had one."""
        return faults.read(self.faults, self.metrics)

    def refresh(self, position: int, added: int, progress: float) -> None:
        """Let every agent renew what it renews before updates, for the `position`-th time, after `added` records for each environment."""
        self.shuffle.numpy()[...] = self.refreshing[position]
        self._added[...], self._progress[...] = added, progress
        self._refresh.run()

    @property
    def metrics(self) -> dict[str, Tensor]:
        """What the last update told, [runs, …] each; empty before the first."""
        if self._outputs is None:
            return self._restored
        return self._update.result(self._outputs)

    @metrics.setter
    def metrics(self, metrics: dict[str, Tensor]) -> None:
        self._outputs, self._restored = None, metrics

    def learner_tensors(self, run: int) -> dict[str, Tensor]:
        """One run's learner by name, and what it remembers, sharing memory with it."""
        leaves = pytree.tree_flatten_with_path(unstack(self.learner, run))[0]
        remembered = {"remembered": self.remembered[run]} if self.remembers else {}
        return {f"learner{pytree.keystr(path)}": leaf for path, leaf in leaves} | remembered

    def load_learner(self, run: int, tensors: Mapping[str, Tensor]) -> None:
        """Write over one run's learner; raises ValueError if the tensors are of another structure."""
        for name, leaf in self.learner_tensors(run).items():
            if name not in tensors or tensors[name].shape != leaf.shape:
                raise ValueError(f"the checkpoint has no {name} of shape {tuple(leaf.shape)}: it is of another structure")
            leaf.copy_(tensors[name])
