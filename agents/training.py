"""The training loop: a list of runs of one structure is trained as one population."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch.utils import _pytree as pytree

from agents import checkpoint, run_directory
from agents.backends import backend
from agents.display import Display, Status
from agents.environments import Ended
from agents.evaluation import summary
from agents.event_log import EventLog
from agents.machine import Stopped, interruptible, raise_malloc_thresholds, settled, threads
from agents.population import Population, unstack
from agents.run import Result, Run, check_together, in_bytes, record, refuse_oversized

PHASES = ("act", "step", "store", "sample", "update", "log")

def train(runs: Sequence[Run], *, compile: bool | None = None, resume: bool = False, display: Display | None = None) -> list[Result]:
    """Train runs of one structure together; each ends as if it had been trained alone.

    Args:
        runs: one or more; only floats, seeds and directories differ.
        compile: compile ahead of time (seconds, once per structure), or run eagerly; None does what the configs say.
        resume: continue every run from the newest checkpoint in its directory.
        display: where progress is shown; None for the terminal, `quiet()` for nowhere.

    Raises:
        ValueError: the runs differ in structure, need too much memory, an environment can't be made, or a directory is in use.
    """
    check_together(runs)
    refuse_oversized(runs)
    raise_malloc_thresholds()
    with contextlib.ExitStack() as stack, threads(len(runs)):
        wanted = all(run.config.get("compile", True) for run in runs) if compile is None else compile
        display = display or Display(Console())
        display.say(f"replay memory: {in_bytes(runs[0].memory_bytes)}{' a run' if len(runs) > 1 else ''}")
        if (first := runs[0].plan.learning_starts + runs[0].plan.update_every) > runs[0].total_steps:
            display.say(f"nothing will be learned: the first update would come at step {first:,}, but total_steps is {runs[0].total_steps:,}")
        training = Training(runs, wanted, display)
        stack.callback(training.close)
        for run in runs:
            if run.directory:
                if not resume:
                    run_directory.claim(run.directory, run.config)
                stack.enter_context(run_directory.locked(run.directory))
        training.restore() if resume else training.begin()
        training.compile()
        stack.enter_context(settled())
        stop = stack.enter_context(interruptible())
        training.loop(stop)
        results = training.finish(stop.number)
        if stop() and results[0].complete:
            raise Stopped(stop.number)  # It came during the last evaluation; the results are written.
        return results


class Stopwatch:
    """Adds up the seconds of each phase of the loop."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.now = 0.0

    def start(self) -> float:
        """Read the clock without adding to any phase."""
        self.now = time.perf_counter()
        return self.now

    def lap(self, phase: str) -> None:
        """Add the time since the clock was read last to a phase."""
        before = self.now
        self.seconds[phase] += self.start() - before

    def shares(self) -> dict[str, float]:
        """Each phase's share of the time of all."""
        spent = max(sum(self.seconds.values()), 1e-9)
        return {phase: seconds / spent for phase, seconds in self.seconds.items()}


class Training:
    """The whole state of a population in training, and the loop that moves it on."""

    def __init__(self, runs: Sequence[Run], compile: bool, display: Display) -> None:
        self.runs, self.settings, self.display = runs, runs[0], display
        seeds = [run.seed for run in runs]
        self.population = Population([run.agent for run in runs], seeds, self.settings.num_envs, compile=compile, say=display.say)
        self.backend = backend(self.settings.environment)
        self.episodes = self.backend.episodes([run.environment for run in runs], seeds, self.population.observation.numpy(), self.population.layout)
        self.compile_seconds = 0.0
        self.step = self.updates = 0
        self.wall_seconds = 0.0
        self.watch = Stopwatch()
        self.logs: list[EventLog | None] = []
        self.evaluation_returns: list[list[float]] = [[] for _ in runs]
        self._resumed = self._logged = (0, 0, 0.0)
        self._diverged: set[int] = set()

    def compile(self) -> None:
        """Make the programs, which takes seconds where they aren't in the cache."""
        started = time.perf_counter()
        self.population.prepare()
        self.compile_seconds = time.perf_counter() - started

    def begin(self) -> None:
        """Start from step 0."""
        self.episodes.begin()
        self.logs = [EventLog(run.directory) if run.directory else None for run in self.runs]
        for run, log in zip(self.runs, self.logs, strict=True):
            if log:
                log.config(run.config)
        self.checkpoint()

    def loop(self, stopped: Callable[[], bool]) -> None:
        """Act, step, store, sample, update, log, until the last step or until stopped."""
        plan, population, episodes, watch = self.settings.plan, self.population, self.episodes, self.watch
        num_envs, total_steps = self.settings.num_envs, self.settings.total_steps
        started = watch.start() - self.wall_seconds
        self._resumed = self._logged = (self.step, self.updates, self.wall_seconds)
        while self.step < total_steps and not stopped():
            progress = self.step / total_steps
            actions, probabilities = population.act(self.step // num_envs, progress)
            watch.lap("act")

            ended = episodes.step(actions, probabilities)
            watch.lap("step")

            population.store(self.step // num_envs, episodes.words)
            episodes.advance()
            self.step += num_envs
            watch.lap("store")

            if self._due(plan.refresh_every):
                population.refresh(self.step // plan.refresh_every, self.step // num_envs, progress)
            for _ in range(self._due(plan.update_every, plan.learning_starts) * plan.updates):
                population.sample(self.updates, self.step // num_envs)
                watch.lap("sample")
                population.update(progress)
                self.updates += 1
                watch.lap("update")

            self.wall_seconds = watch.now - started
            self._log(ended, progress)
            watch.lap("log")
        self.display.show(self._status())

    def _due(self, every: int, after: int = 0) -> int:
        """How many multiples of `every` beyond `after` the last step has passed; 0 if `every` is 0."""
        return max(self.step // every - max(self.step - self.settings.num_envs, after) // every, 0) if every else 0

    def _log(self, ended: Sequence[Ended], progress: float) -> None:
        for episode in ended:
            self.display.episode(episode.episode_return)
            if self.logs[episode.run]:
                self.logs[episode.run].scalars(self.step, {"rollout/episode_return": episode.episode_return, "rollout/episode_length": episode.length})
        if self._due(self.settings.log_every):
            self._log_learning(progress)
        if self.display.due(self.watch.now):
            self.display.show(self._status())
        if self._due(self.settings.evaluation.every) and self.step < self.settings.total_steps:
            self._evaluate()
        if self._due(self.settings.checkpoint_every) and self.step < self.settings.total_steps:
            self.checkpoint()

    def _log_learning(self, progress: float) -> None:
        step, updates, wall_seconds = self._logged
        seconds = max(self.wall_seconds - wall_seconds, 1e-9)
        self._logged = (self.step, self.updates, self.wall_seconds)
        times = {"time/steps_per_second": (self.step - step) / seconds, "time/updates_per_second": (self.updates - updates) / seconds}
        times |= {f"time/{phase}_share": share for phase, share in self.watch.shares().items()}
        metrics = self.population.metrics
        self._announce_divergence(metrics)
        for index, (run, log) in enumerate(zip(self.runs, self.logs, strict=True)):
            if log:
                values = run.agent.report({name: metric[index] for name, metric in metrics.items()}) if metrics else {}
                log.scalars(self.step, values | run.agent.schedules(torch.tensor(progress)) | times)
                log.flush_sometimes()

    def _announce_divergence(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Say it once for each run whose loss is no number any more."""
        for index in torch.nonzero(~metrics["loss/total"].isfinite()).flatten().tolist() if metrics else ():
            if index not in self._diverged:
                self._diverged.add(index)
                self.display.say(f"the loss of the run with seed {self.runs[index].seed} is {float(metrics['loss/total'][index])} at step {self.step:,}: nothing is learned any more")

    def _status(self) -> Status:
        step, _, wall_seconds = self._resumed
        seconds = self.wall_seconds - wall_seconds
        rate = max(self.step - step, 1) / max(seconds, 1e-9)
        left = max(self.settings.total_steps - self.step, 0) / rate if seconds > 1 else float("nan")
        metrics = self.population.metrics
        loss = metrics.get("loss/value", metrics.get("loss/total"))
        return Status(self.step, self.settings.total_steps, rate * len(self.runs), left, float(loss.mean()) if loss is not None else None)

    def _evaluate(self) -> None:
        """Evaluate every run's greedy policy at this step and log it."""
        progress = self.step / self.settings.total_steps

        seeds = [run.seed for run in self.runs]
        environments = [run.environment for run in self.runs]
        played = environments, self.episodes.observation, seeds, self.step, self.settings.evaluation
        with self.population.undisturbed():
            self.evaluation_returns = self.backend.evaluate(lambda: self.population.act_greedily(progress), *played, started=self.population.started)
        for log, returns in zip(self.logs, self.evaluation_returns, strict=True):
            if log:
                log.scalars(self.step, {f"evaluation/return_{name}": number for name, number in summary(returns).items()})

    def checkpoint(self) -> None:
        """Save the whole state of every run that has a directory."""
        for index, (run, log) in enumerate(zip(self.runs, self.logs, strict=True)):
            if log:
                log.flush(to_disk=True)
                tensors, rest = self.episodes.saved(index)
                run_directory.save_checkpoint(run.directory, self.step, self._tensors(index, tensors), self._rest(index, rest))
        for run in self.runs:
            if run.directory:
                run_directory.drop_checkpoints(run.directory, keep=self.step)

    def _tensors(self, index: int, of_episodes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        filled = min(self.step // self.settings.num_envs, self.population.memory.shape[2])
        tensors = self.population.learner_tensors(index)
        tensors["memory"] = self.population.memory[index, :, :filled]
        # Copies: outputs of a program may be one tensor, which the file format refuses.
        tensors |= {f"metrics/{name}": leaf[index].clone() for name, leaf in self.population.metrics.items()}
        tensors |= {f"episodes/{name}": tensor for name, tensor in of_episodes.items()}
        return tensors | {"observation": torch.from_numpy(self.episodes.observation[index])}

    def _rest(self, index: int, of_episodes: Any) -> dict[str, Any]:
        return {
            "identity": checkpoint.identity(self.runs[index]),
            "step": self.step,
            "updates": self.updates,
            "wall_seconds": self.wall_seconds,
            "event_bytes": self.logs[index].size,
            "episodes": of_episodes,
        }

    def restore(self) -> None:
        """Continue from the newest checkpoint that all runs have."""
        self.step = run_directory.newest_checkpoint([run.directory for run in self.runs])
        metrics = []
        for index, run in enumerate(self.runs):
            tensors, rest = run_directory.load_checkpoint(run.directory, self.step)
            if differing := checkpoint.differences(run, rest.get("identity", {})):
                raise run_directory.RunDirectoryError(f"{run.directory} holds another run: it differs in {', '.join(differing[:5])}")
            try:
                self.population.load_learner(index, tensors)
            except ValueError as error:
                raise run_directory.RunDirectoryError(f"{run.directory}: {error}") from error
            self.population.memory[index, :, : tensors["memory"].shape[1]] = tensors["memory"]
            metrics.append({name.removeprefix("metrics/"): leaf for name, leaf in tensors.items() if name.startswith("metrics/")})
            self.updates, self.wall_seconds = rest["updates"], rest["wall_seconds"]
            of_episodes = {name.removeprefix("episodes/"): tensor for name, tensor in tensors.items() if name.startswith("episodes/")}
            self.episodes.resume(index, of_episodes, rest["episodes"], tensors["observation"].numpy())
            self.logs.append(EventLog(run.directory, rest["event_bytes"]))
        self.population.metrics = pytree.tree_map(lambda *leaves: torch.stack(leaves), *metrics)

    def finish(self, stopped_by: int | None) -> list[Result]:
        """Evaluate and close a training that came to its end, save everything, and say what came of it."""
        complete = self.step >= self.settings.total_steps
        # Before the last evaluation: a process killed after it does it again when the run is continued.
        self.checkpoint()
        if complete:
            self._evaluate()
            for log in filter(None, self.logs):
                log.end()
                log.flush()
        results = [self._result(index, complete, stopped_by) for index in range(len(self.runs))]
        for run, result in zip(self.runs, results, strict=True):
            if run.directory and complete:
                run_directory.write_result(run.directory, record(run, result))
        return results

    def _result(self, index: int, complete: bool, stopped_by: int | None) -> Result:
        return Result(
            seed=self.runs[index].seed,
            complete=complete,
            stopped_by=None if complete else stopped_by,
            steps=self.step,
            updates=self.updates,
            wall_seconds=self.wall_seconds,
            compile_seconds=self.compile_seconds,
            evaluation_returns=self.evaluation_returns[index] if complete else [],
            phases=self.watch.shares(),
            learner=unstack(self.population.learner, index),
            directory=self.runs[index].directory,
        )

    def close(self) -> None:
        """Free the environments and the screen."""
        self.display.close()
        self.episodes.close()
