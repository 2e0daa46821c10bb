"""A run as a value: all that determines it, what came of it, and which runs can be trained together."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from agents.agent import Agent, Plan
from agents.backends import backend
from agents.environments import Environment
from agents.evaluation import Evaluation, summary
from agents.machine import NotEnoughMemory, available_memory
from rlloss.checks import in_range

# The plain numbers of a run: the lowest, and the highest that a float64 counts to.
LOWEST = {"seed": 0, "total_steps": 1, "num_envs": 1, "log_every": 1, "checkpoint_every": 0}
HIGHEST = {"total_steps": 2**53}


@dataclass(frozen=True)
class Run:
    """All that determines one run. Runs trained together differ in floats, seeds and directories only.

    `directory` None writes nothing; `config` is what the run was built from, kept for the record.
    """

    agent: Agent
    environment: Environment
    seed: int = 0
    total_steps: int = 50_000
    num_envs: int = 1
    evaluation: Evaluation = field(default_factory=Evaluation)
    log_every: int = 1000
    checkpoint_every: int = 10_000
    directory: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in LOWEST.items():
            in_range(name, getattr(self, name), low, whole=True, **({"high": HIGHEST[name]} if name in HIGHEST else {}))
        self.plan  # noqa: B018  # It refuses what can't be.
        if getattr(self.agent, "imitates", False) and self.environment.backend != "recorded":
            raise ValueError(f"{type(self.agent).__name__} learns from recorded actions: set env.backend=recorded and env.recording to a file of rlloss-evaluate --record")

    @property
    def plan(self) -> Plan:
        """What the agent needs in so many environments, and when it learns."""
        return self.agent.plan(self.num_envs)

    @property
    def memory_bytes(self) -> int:
        """The size of the memory for records, for what replay knows of each, and for actions where the backend keeps those."""
        layout, kept, slots = self.agent.layout, self.total_steps if backend(self.environment).keeps_actions else 0, self.plan.length * self.num_envs
        with torch.device("meta"):  # Where tensors have a size and no memory.
            known = tree_leaves(self.agent.replay.init(slots)) if hasattr(self.agent, "replay") else []
        return slots * layout.itemsize + sum(leaf.nbytes for leaf in known) + kept * layout["action"].itemsize


@dataclass(frozen=True)
class Failure:
    """Why a run can't go on: `term` is the metric that became NaN or infinite, "weights", or "environment".

    `step` is the environment step at which that happened, `reason` says it all in one line, `checkpoint` is the last good one, if
    there is any, and `traceback` is that of the environment's exception.
    """

    reason: str
    term: str
    step: int
    checkpoint: Path | None
    traceback: str = ""


class RunFailed(Exception):
    """A run failed, which has been said; for those who train one run and wait for a number."""


@dataclass(frozen=True)
class Result:
    """What came of a run; `complete` is False where it was stopped before its last step by the signal `stopped_by`, paused, or failed."""

    seed: int
    complete: bool
    stopped_by: int | None
    steps: int
    updates: int
    wall_seconds: float
    compile_seconds: float
    evaluation_returns: list[float]
    phases: dict[str, float]
    learner: Any
    directory: Path | None
    failure: Failure | None = None


def check_together(runs: Sequence[Run]) -> None:
    """Raise ValueError unless the runs can be one population, each in a directory of its own."""
    if not runs:
        raise ValueError("there is no run to train")
    for name in ("evaluation", *(name for name in LOWEST if name != "seed")):
        if len({getattr(run, name) for run in runs}) > 1:
            raise ValueError(f"runs of one population must have the same {name}; train these apart")
    for name in ("id", "backend", "frame_stack"):
        if len({getattr(run.environment, name) for run in runs}) > 1:
            raise ValueError(f"runs of one population must have environments of the same {name}; train these apart")
    directories = [run.directory.resolve() for run in runs if run.directory]
    if len(set(directories)) < len(directories):
        raise ValueError("two runs would share a directory; give each its own")


def refuse_oversized(runs: Sequence[Run]) -> None:
    """Raise NotEnoughMemory if the replay memory of these runs together is more than the machine has available."""
    needed, available = sum(run.memory_bytes for run in runs), available_memory()
    if available is not None and needed > available:
        together = f" for {len(runs)} runs" if len(runs) > 1 else ""
        raise NotEnoughMemory(f"replay needs {in_bytes(needed)} of memory{together}, the machine has {in_bytes(available)} available; lower {'agent.replay.capacity' if hasattr(runs[0].agent, 'replay') else 'agent.rollout or num_envs'}")


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a person should know of a population before it trains, in lines."""
    run = runs[0]
    lines = [f"replay memory: {in_bytes(run.memory_bytes)}{' a run' if len(runs) > 1 else ''}"]
    if (first := run.plan.learning_starts + run.plan.update_every) > run.total_steps:
        lines.append(f"nothing will be learned: the first update would come at step {first:,}, but total_steps is {run.total_steps:,}")
    return lines


def in_bytes(size: int) -> str:
    """A size in the unit a person would choose."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def record(run: Run, result: Result) -> dict[str, Any]:
    """result.json: what a program wants to know of a run."""
    packages = ("rlloss", "torch", "gymnasium", "numpy", "hydra-core")
    return {
        "seed": run.seed,
        "steps": result.steps,
        "updates": result.updates,
        "wall_seconds": result.wall_seconds,
        "evaluation": {"returns": result.evaluation_returns, **{f"return_{name}": number for name, number in summary(result.evaluation_returns).items()}},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
    }
