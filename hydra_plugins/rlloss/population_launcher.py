"""`hydra/launcher=population`: the jobs of a sweep, those of one structure as one compiled population."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

BACKENDS = {"processes": "agents.processes.Processes", "ray": "agents.ray_workers.RayWorkers"}


@dataclass
class PopulationLauncherConf:
    """What can be set on the command line as hydra.launcher.…"""

    _target_: str = "hydra_plugins.rlloss.population_launcher.PopulationLauncher"
    workers: int | None = None  # populations trained at the same time, by default as many as cores
    size: int | None = None  # the most runs in one population, by default what is fastest
    dry_run: bool = False  # say what would be trained, and nothing else
    rungs: list[int] = field(default_factory=list)  # steps at which the worse settings are pruned
    keep: float = 0.5  # the share of the settings that goes on from each rung
    backend: str = "processes"  # who trains populations: one of BACKENDS, or the dotted name of an agents.workers.Backend


ConfigStore.instance().store(group="hydra/launcher", name="population", node=PopulationLauncherConf, provider="rlloss")


class PopulationLauncher(Launcher):
    """Trains all the jobs that it is handed, and returns what came of each."""

    says_failures = notes_sweep = True  # Other launchers leave that to the sweeper.

    def __init__(self, workers: int | None, size: int | None, dry_run: bool, rungs: Sequence[int], keep: float, backend: str) -> None:
        self.workers, self.size, self.dry_run, self.rungs, self.keep, self.backend = workers, size, dry_run, tuple(rungs), keep, backend

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has, and look for mistakes in the launcher's own settings; Hydra calls this before `launch`, and before anything is written."""
        from agents.config import ConfigError
        from agents.halving import Halving

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        try:
            self.halving = Halving(self.rungs, self.keep)
        except ValueError as error:
            raise ConfigError(f"hydra.launcher.{error}") from error
        for name in ("workers", "size"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ConfigError(f"hydra.launcher.{name} must be at least 1, got {number}")
        if self.backend not in BACKENDS and "." not in self.backend:
            raise ConfigError(f"hydra.launcher.backend must be {', '.join(BACKENDS)} or the dotted name of a class, got {self.backend}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train the jobs of these words."""
        from agents.command_line import again
        from agents.config import locate
        from agents.hydra_jobs import hydra_jobs, note_sweep
        from agents.launch import Sweep

        setup_globals()
        jobs = hydra_jobs(self.hydra_context.config_loader, self.config, job_overrides, initial_job_idx)
        made = locate(BACKENDS.get(self.backend, self.backend), "hydra.launcher.backend")
        with env_override(self.config.hydra.job.env_set), contextlib.closing(made(self.workers)) as backend:
            directory = Path(self.config.hydra.sweep.dir)
            sweep = Sweep([each.job for each in jobs], directory, size=self.size, backend=backend, command=again("rlloss-train", directory), halving=self.halving)
            if self.dry_run:
                outcomes = sweep.listed()
            else:
                with sweep.alone():
                    note_sweep(self.config)  # Nothing was refused.
                    outcomes = self._trained(sweep, jobs)
        return [_returned(each, outcome) for each, outcome in zip(jobs, outcomes, strict=True)]

    def _trained(self, sweep: Any, jobs: Sequence[Any]) -> Sequence[Any]:
        callbacks = self.hydra_context.callbacks if self.config.hydra.callbacks else None
        for each in jobs if callbacks else ():
            callbacks.on_job_start(config=each.whole, task_function=self.task_function)
        outcomes = sweep.train()
        for each, outcome in zip(jobs, outcomes, strict=True) if callbacks else ():
            callbacks.on_job_end(config=each.whole, job_return=_returned(each, outcome))
        return outcomes


def _returned(each: Any, outcome: Any) -> JobReturn:
    """What Hydra's sweepers get of a job: its mean evaluation return, or an exception."""
    from agents.halving import Pruned
    from agents.run import RunFailed

    returned = JobReturn(overrides=list(each.job.words), working_dir=os.getcwd(), task_name=JobRuntime.instance().get("name"))
    failed = outcome.failure is not None
    returned.return_value = RunFailed(f"{each.job.directory}: {outcome.failure}") if failed else outcome.value if outcome.step is None else Pruned(outcome.value, outcome.step)
    returned.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    return returned
