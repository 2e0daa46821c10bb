"""A population: runs of one structure whose agents, learners and memories are stacked and learn together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agents.compilation import bind
from agents.spaces import storage
from agents.streams import Uniforms, torch_generator


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves [runs, …] are those of several trees of one structure; numbers become tensors.

    Raises ValueError if structures differ: only floats may differ inside a population.
    """
    structures = [pytree.tree_structure(tree) for tree in trees]
    if any(structure != structures[0] for structure in structures):
        raise ValueError("runs of one population may differ in floats and seeds only; these differ in structure, so train them apart")
    return pytree.tree_map(lambda *leaves: torch.stack([torch.as_tensor(leaf) for leaf in leaves]), *trees)


def unstack(tree: Any, run: int) -> Any:
    """One run's part of a stacked tree, sharing memory with it."""
    return pytree.tree_map(lambda leaf: leaf[run], tree)


class Population:
    """The stacked state of learning, and the programs that act and update all runs at once.

    Tensors are [runs, …]; the programs of a single run see them without that dimension, without vmap.
    """

    def __init__(self, agents: Sequence[Any], seeds: Sequence[int], num_envs: int, *, compile: bool, say: Callable[[str], None]) -> None:
        self.agents, self.runs = list(agents), len(seeds)
        self.structure = agents[0]
        self.hyperparameters = stack(agents)
        self.learner = stack([agent.init(torch_generator(seed, "initial weights")) for agent, seed in zip(agents, seeds, strict=True)])
        shape, dtype = storage(self.structure.observation_space)
        self.memory = self.structure.replay.init(self.runs, shape, dtype)
        self.memory_arrays = [field.numpy() for field in self.memory]
        self.exploration = Uniforms(seeds, "exploration", (num_envs, self.structure.exploration_numbers))
        self.sampling = Uniforms(seeds, "replay", (self.structure.batch_size,), np.float64)
        self.observation = torch.zeros(self.runs, num_envs, *shape, dtype=dtype)
        self.uniforms = torch.zeros(self.runs, num_envs, self.structure.exploration_numbers)
        self.indices = torch.zeros(self.runs, self.structure.batch_size, dtype=torch.int64)
        self.progress, self.explore = torch.zeros(()), torch.zeros(())
        self.metrics: dict[str, Tensor] = {}
        self._bind(compile, say)

    def _bind(self, compile: bool, say: Callable[[str], None]) -> None:
        replay = self.structure.replay

        def act(learner, agent, observation, uniforms, progress, explore):
            return agent.act(learner, observation, uniforms, progress, explore)

        def update(learner, agent, memory, indices, progress):
            return agent.update(learner, replay.gather(memory, indices), progress)

        def refresh(learner, agent):
            return agent.refresh(learner), ()

        def program(function, *arguments, shared=(), compile=compile, **options):
            if self.runs == 1:
                arguments = unstack(arguments, 0)
            else:
                function = torch.func.vmap(function, in_dims=(0,) * len(arguments) + (None,) * len(shared))
            return bind(function, (*arguments, *shared), compile=compile, say=say, **options)

        self._act = program(act, self.learner, self.hyperparameters, self.observation, self.uniforms, shared=(self.progress, self.explore), donate=False, name="act")
        self._update = program(update, self.learner, self.hyperparameters, self.memory, self.indices, shared=(self.progress,), donate=True, name="update")
        self.refresh = program(refresh, self.learner, self.hyperparameters, donate=True, compile=False, name="refresh")
        self._observation, self._uniforms, self._indices = self.observation.numpy(), self.uniforms.numpy(), self.indices.numpy()
        self._progress, self._explore = self.progress.numpy(), self.explore.numpy()

    def act(self, observation: np.ndarray, position: int | None, progress: float) -> np.ndarray:
        """Actions [runs, environments] for observations [runs, environments, …].

        `position` is the place in the exploration streams; None acts greedily.
        """
        self._observation[...] = observation
        self._progress[...] = progress
        self._explore[...] = position is not None
        if position is not None:
            self._uniforms[...] = self.exploration[position]
        return self._act().numpy().reshape(self._observation.shape[:2])

    def sample(self, position: int, added: int) -> None:
        """Choose the rows of the next update, `position` updates after the start, from `added` transitions."""
        self._indices[...] = self.structure.replay.indices(self.sampling[position], added)

    def update(self, progress: float) -> None:
        """One gradient step of every run on the rows chosen by `sample`."""
        self._progress[...] = progress
        self.metrics = self._update()

    def metrics_of(self, run: int) -> dict[str, Tensor]:
        """What one run's last update told; empty before the first."""
        return self.metrics if self.runs == 1 else {name: metric[run] for name, metric in self.metrics.items()}
