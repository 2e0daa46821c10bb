"""A population: runs of one structure whose agents, learners and memories are stacked and learn together."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.compilation import Program, bind
from agents.replay import decode, record
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

    Tensors are [runs, …]. The programs are one run's pure functions under `torch.func.vmap`.
    """

    def __init__(self, agents: Sequence[Any], seeds: Sequence[int], num_envs: int, *, compile: bool, say: Callable[[str], None]) -> None:
        self.agents, self.runs = list(agents), len(seeds)
        self.structure = agents[0]
        self.hyperparameters = stack(agents)
        self.learner = stack([agent.init(torch_generator(seed, "initial weights")) for agent, seed in zip(agents, seeds, strict=True)])
        shape, dtype = storage(self.structure.observation_space)
        self.layout = record(shape, dtype)
        self.memory = self.structure.replay.init(self.runs, self.layout)
        self.records = self.memory.numpy().view(self.layout)[..., 0]
        self.exploration = Uniforms(seeds, "exploration", (num_envs, self.structure.exploration_numbers))
        self.sampling = Uniforms(seeds, "replay", (self.structure.batch_size,), np.float64)
        self.observation = torch.zeros(self.runs, num_envs, *shape, dtype=dtype)
        self.uniforms = torch.zeros(self.runs, num_envs, self.structure.exploration_numbers)
        self.indices = torch.zeros(self.runs, self.structure.batch_size, dtype=torch.int64)
        self.progress, self.explore = torch.zeros(()), torch.ones(())
        self.metrics = {}
        self._observation, self._uniforms, self._indices = self.observation.numpy(), self.uniforms.numpy(), self.indices.numpy()
        self._progress, self._explore = self.progress.numpy(), self.explore.numpy()
        self._compile, self._say = compile, say

    def prepare(self) -> None:
        """Make all programs now, not at their first use: compiling them takes seconds."""
        self._act, self._update, self._refresh  # noqa: B018

    @functools.cached_property
    def _act(self) -> Program:
        def act(learner, agent, observation, uniforms, progress, explore):
            return agent.act(learner, observation, uniforms, progress, explore)

        stacked = (self.learner, self.hyperparameters, self.observation, self.uniforms)
        return self._program(act, stacked, (self.progress, self.explore), donate=False, compile=self._compile)

    @functools.cached_property
    def _update(self) -> Program:
        def update(learner, agent, memory, indices, progress):
            return agent.update(learner, decode(memory[indices], self.layout), progress)

        stacked = (self.learner, self.hyperparameters, self.memory, self.indices)
        return self._program(update, stacked, (self.progress,), donate=True, compile=self._compile)

    @functools.cached_property
    def _refresh(self) -> Program:
        def refresh(learner, agent):
            return agent.refresh(learner), ()

        return self._program(refresh, (self.learner, self.hyperparameters), (), donate=True, compile=False)

    def _program(self, function: Callable, stacked: tuple, shared: tuple, *, donate: bool, compile: bool) -> Program:
        return bind(function, stacked, shared, donate=donate, compile=compile, name=function.__name__, say=self._say)

    def act(self, position: int, progress: float) -> np.ndarray:
        """Actions [runs, environments] for what `observation` holds, exploring with the streams' numbers there."""
        self._progress[...] = progress
        self._uniforms[...] = self.exploration[position]
        return self._act.run()[0].numpy()

    def act_greedily(self, progress: float) -> np.ndarray:
        """Actions [runs, environments] for what `observation` holds, without exploring."""
        self._progress[...] = progress
        self._explore[...] = 0
        actions = self._act.run()[0].numpy()
        self._explore[...] = 1
        return actions

    def sample(self, position: int, added: int) -> None:
        """Choose the rows of the next update, `position` updates after the start, from `added` transitions."""
        self.structure.replay.draw(self.sampling[position], added, self._indices)

    def update(self, progress: float) -> None:
        """One gradient step of every run on the rows chosen by `sample`."""
        self._progress[...] = progress
        self._outputs = self._update.run()

    def refresh(self) -> None:
        """Let every agent renew what it renews between updates, such as a target network."""
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
        """One run's learner by name, sharing memory with it."""
        leaves = pytree.tree_flatten_with_path(unstack(self.learner, run))[0]
        return {f"learner{pytree.keystr(path)}": leaf for path, leaf in leaves}

    def load_learner(self, run: int, tensors: Mapping[str, Tensor]) -> None:
        """Write over one run's learner; raises ValueError if the tensors are of another structure."""
        for name, leaf in self.learner_tensors(run).items():
            if name not in tensors or tensors[name].shape != leaf.shape:
                raise ValueError(f"the checkpoint has no {name} of shape {tuple(leaf.shape)}: it is of another structure")
            leaf.copy_(tensors[name])
