"""Training a sweep: what is left of it, in populations, each by a worker, and what came of every job."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from rich.console import Console

from agents import rates, recipes, sweep
from agents.composition import container
from agents.config import ConfigError, build_all, config_directory, refuse_deletions
from agents.halving import Halving, by_setting, worst
from agents.hydra_jobs import hydra_jobs
from agents.machine import NotEnoughMemory, Stop, Stopped, interruptible
from agents.run import Run, in_bytes, refuse_oversized
from agents.run_directory import RunDirectoryError, refuse_unwritable, shown, write_pruned
from agents.sweep import Job, Standing, Task
from agents.sweep_display import SweepDisplay
from agents.workers import Backend, Finished, Lost, Outcome, failed

WORKER_BYTES = 400 * 2**20  # a worker without any run
RUN_BYTES = 4 * 2**20  # a run beside its memory: learner, environments, log
ATTEMPTS = 2  # of a population whose worker died
LOCK = "sweep.lock"


def check(loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError, RunDirectoryError or NotEnoughMemory, in one line, if one of these jobs, given by their words, can't be trained."""
    for words in jobs:
        refuse_deletions([word for word in words if not word.startswith(("hydra.", "hydra/"))])
    made = [each.job for each in hydra_jobs(loader, master, jobs, 0)]
    try:
        runs = build_all([job.config for job in made], [job.directory for job in made], sweep.differing([job.words for job in made]))
    except ConfigError:
        choices = dict.fromkeys(tuple(word for word in job.words if "." not in word and not word.startswith("seed=")) for job in made)
        said = (recipes.misfit(config_directory(), words, lambda words: container(loader.load_sweep_config(master, words))) for words in choices)
        if wrong := next(filter(None, said), None):
            raise ConfigError(wrong) from None
        raise
    for run in runs:
        refuse_oversized([run])
    sweep.refuse_shared(made)


class Sweep:
    """All jobs of a sweep, each built once, so that no mistake is found after the first was trained.

    Raises ConfigError or RunDirectoryError in one line.
    """

    def __init__(self, jobs: Sequence[Job], directory: Path, *, size: int | None, backend: Backend, command: str, halving: Halving | None = None) -> None:
        """`size` is the most runs in a population, None for what is fastest; `command` is what continues the sweep, for a person."""
        self.jobs, self.directory, self.size, self.backend, self.command, self.halving = jobs, directory, size, backend, command, halving or Halving()
        self.runs: list[Run] = build_all([job.config for job in jobs], [job.directory for job in jobs])
        sweep.refuse_shared(jobs)
        refuse_unwritable(directory, "hydra.sweep.dir")
        if late := [rung for rung in self.halving.rungs if rung >= min(run.total_steps for run in self.runs)]:
            raise ConfigError(f"hydra.launcher.rungs must lie before total_steps, got {late[0]}")
        self.standings: list[Standing] = [sweep.standing(job) for job in jobs]
        self.tasks = self.planned(range(len(jobs)))

    def planned(self, places: Sequence[int], until: int | None = None) -> list[Task]:
        """What is left to train of some jobs, until a step if that isn't the last, in populations of the size that is fastest."""
        left = [place for place in places if self.standings[place].value is None]
        groups = sweep.groups([self.runs[place] for place in left], [self.standings[place] for place in left])
        firsts = [self.runs[left[alike[0]]] for alike, _ in groups]
        steps = [max((until or run.total_steps) - (step or 0), 1) for run, (_, step) in zip(firsts, groups, strict=True)]
        known = [rates.read(run.config).best for run in firsts]
        most = min(self.size or len(left), self._most([run.memory_bytes for run in firsts]))
        size = (self.size and most) or rates.best_size([len(alike) for alike, _ in groups], steps, known, self.backend.workers, most)
        tasks = [Task(tuple(self.jobs[left[place]] for place in part), step, until) for alike, step in groups for part in sweep.split(alike, rates.shares(len(alike), size))]
        return sorted(tasks, key=sweep.work, reverse=True)

    def _most(self, bytes_of_runs: Sequence[int]) -> int:
        """How many runs a population can have so that all that train at the same time fit in memory."""
        if self.backend.memory is None or not bytes_of_runs:
            return sys.maxsize
        most = (self.backend.memory // self.backend.workers - WORKER_BYTES) // (max(bytes_of_runs) + RUN_BYTES)
        if most < 1:
            raise NotEnoughMemory(
                f"{sweep.counted(self.backend.workers, 'population')} at a time don't fit in memory, even of one run each: one needs {in_bytes(max(bytes_of_runs) + RUN_BYTES + WORKER_BYTES)},"
                f" there are {in_bytes(self.backend.memory)} for all; lower hydra.launcher.workers or the size of replay"
            )
        return most

    def seconds(self, tasks: Sequence[Task]) -> float | None:
        """How long tasks will take, from what was measured of their structures before; None where nothing was."""
        known = [rates.read(task.jobs[0].config).last for task in tasks]
        if not all(known):
            return None
        return rates.makespan([sweep.work(task) / rates.rate(len(task.jobs), each) for task, each in zip(tasks, known, strict=True)], self.backend.workers)

    def plan(self) -> str:
        """What will be done, in one line."""
        complete = sum(standing.value is not None for standing in self.standings)
        rungs = f"; the worse settings are pruned at step {', '.join(f'{rung:,}' for rung in self.halving.rungs)}" if self.halving.rungs else ""
        return sweep.in_words(self.tasks, complete, self.backend.workers, self.seconds(self.tasks)) + rungs

    def listed(self) -> list[Outcome]:
        """Print the plan and every population with its runs' directories; train nothing."""
        print(self.plan())
        complete = [f"  {shown(job.directory)}" for job, standing in zip(self.jobs, self.standings, strict=True) if standing.value is not None]
        lines = ["complete:", *complete] if complete else []
        for name, task in zip(sweep.names(self.tasks), self.tasks, strict=True):
            lines += [f"{name}: {sweep.counted(len(task.jobs), 'run')}{f' from step {task.step:,}' if task.step else ''}"]
            lines += [f"  {shown(job.directory)}" for job in task.jobs]
        print("\n".join(lines))
        return [Outcome(standing.value) for standing in self.standings]

    def alone(self) -> AbstractContextManager:
        """Within it no other process trains in the sweep's directory; raises RunDirectoryError if one does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self.directory / LOCK).acquire(blocking=False)
        except Timeout as error:
            raise RunDirectoryError(f"another process is training in {self.directory}") from error

    def train(self) -> list[Outcome]:
        """Train what is left, and say how it goes; what came of every job.

        Raises Stopped if a signal asked to end: everything is saved then.
        """
        found = {job.directory: Outcome(standing.value, step=standing.pruned) for job, standing in zip(self.jobs, self.standings, strict=True)}
        display = SweepDisplay(Console())
        display.say(self.plan())
        try:
            with interruptible() as stopped:
                found |= self._stages(display, stopped)
        except KeyboardInterrupt:  # A second one: what isn't saved is made again.
            display.close()
            print(f"stopped; continue with: {self.command}")
            raise
        finally:
            display.close()
        if failed := [(job, found[job.directory]) for job in self.jobs if found[job.directory].failure is not None]:
            display.failures(failed)
        if stopped():
            print(f"everything is saved; continue with: {self.command}")
            raise Stopped(stopped.number)
        return [found[job.directory] for job in self.jobs]

    def _stages(self, display: SweepDisplay, stopped: Stop) -> dict[Path, Outcome]:
        """By directory: what came of training to each rung, where the worse settings are pruned, and of what is left to its end."""
        found: dict[Path, Outcome] = {}
        everything = by_setting([job.config for job in self.jobs])
        alive = [places for places in everything if any(self.standings[place].pruned is None for place in places)]
        for number, rung in enumerate(self.halving.rungs):
            left = self.halving.left(len(everything), number)
            if len(alive) <= left:
                continue  # It was decided before.
            found |= self._outcomes(display, stopped, self._going(alive, found), rung)
            if stopped():
                return found
            self._look([place for places in alive for place in places])
            values = {place: found.get(self.jobs[place].directory, Outcome(self.standings[place].value)).value for places in alive for place in places}
            pruned = worst(alive, values, left)
            found |= self._pruned([place for places in pruned for place in places if values[place] is not None], values, rung)
            alive = [places for places in alive if list(places) not in pruned]
            display.say(f"step {rung:,}: {len(alive)} of {len(everything)} settings go on")
        return found | self._outcomes(display, stopped, self._going(alive, found), None)

    def _going(self, alive: Sequence[Sequence[int]], found: Mapping[Path, Outcome]) -> list[int]:
        """The places of those settings' runs, but for those that failed."""
        return sorted(place for places in alive for place in places if not (outcome := found.get(self.jobs[place].directory)) or outcome.failure is None)

    def _pruned(self, places: Sequence[int], values: Mapping[int, float | None], rung: int) -> dict[Path, Outcome]:
        """Give up these runs, which have these values."""
        for place in places:
            write_pruned(self.jobs[place].directory, rung, values[place])
        self._look(places)
        return {self.jobs[place].directory: Outcome(values[place], step=rung) for place in places}

    def _look(self, places: Sequence[int]) -> None:
        """See how these jobs stand now."""
        for place in places:
            self.standings[place] = sweep.standing(self.jobs[place])

    def _outcomes(self, display: SweepDisplay, stopped: Stop, places: Sequence[int], until: int | None) -> dict[Path, Outcome]:
        """By directory. A population whose worker died is trained again, from its checkpoints."""
        found: dict[Path, Outcome] = {}
        tasks = self.planned(places, until)
        for _ in range(ATTEMPTS):
            display.begin(tasks)
            lost: list[Job] = []
            for event in self.backend.train(tasks, stopped):
                display.show(event)
                if isinstance(event, Finished):
                    if event.rate:
                        rates.keep(tasks[event.task].jobs[0].config, len(tasks[event.task].jobs), event.rate)
                    found |= {job.directory: outcome for job, outcome in zip(tasks[event.task].jobs, event.outcomes, strict=True)}
                elif isinstance(event, Lost):
                    lost += tasks[event.task].jobs
                    found |= {job.directory: failed(job, event.reason) for job in tasks[event.task].jobs}
            if not lost or stopped():
                break
            display.say(f"{sweep.counted(len(lost), 'run')} lost with a worker, going on from the last checkpoints")
            places = [place for place, job in enumerate(self.jobs) if job in lost]
            self._look(places)
            tasks = self.planned(places, until)
        return found
