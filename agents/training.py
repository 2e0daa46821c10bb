"""The training loop: a list of runs of one structure is trained as one population."""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from torch.utils import _pytree as pytree

from agents import checkpoint, faults, run_directory
from agents.backends import backend
from agents.display import Display, Status
from agents.environments import Ended
from agents.evaluation import summary
from agents.event_log import EventLog
from agents.machine import Stopped, interruptible, raise_malloc_thresholds, settled, threads
from agents.population import Population, unstack
from agents.run import Failure, Result, Run, check_together, record, refuse_oversized, remarks
from agents.stopwatch import Stopwatch


def train(runs: Sequence[Run], *, compile: bool | None = None, resume: bool = False, display: Display | None = None, until: int | None = None) -> list[Result]:
    """Train runs of one structure together; each ends as if it had been trained alone. One that fails says so in its result, and the others go on.

    Args:
        runs: one or more; only floats, seeds and directories differ.
        compile: compile ahead of time (seconds, once per structure), or run eagerly; None does what the configs say.
        resume: continue every run from the newest checkpoint in its directory.
        display: where progress is shown; None for the terminal, `quiet()` for nowhere.
        until: pause at this step, with what an evaluation then gave; `resume` goes on as if there had been no pause.

    Raises:
        ValueError: the runs differ in structure, need too much memory, an environment can't be made, or a directory is in use.
    """
    check_together(runs)
    refuse_oversized(runs)
    raise_malloc_thresholds()
    with contextlib.ExitStack() as stack, threads(len(runs)):
        wanted = all(run.config.get("compile", True) for run in runs) if compile is None else compile
        display = display or Display(Console())
        for line in remarks(runs):
            display.say(line)
        training = Training(runs, wanted, display)
        stack.callback(training.close)
        for run in runs:
            if run.directory:
                if not resume:
                    run_directory.claim(run.directory, run.config)
                stack.enter_context(run_directory.locked(run.directory))
        training.restore() if resume else training.begin()
        training.note("training goes on" if resume else "training begins")
        training.compile()
        stack.enter_context(settled())
        stop = stack.enter_context(interruptible())
        training.loop(stop, until)
        results = training.finish(stop.number, until)
        if stop() and any(result.complete for result in results):
            raise Stopped(stop.number)  # It came during the last evaluation; the results are written.
        return results


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
        self.failed: dict[int, Result] = {}
        self._resumed = self._logged = (0, 0, 0.0)
        self._saved: int | None = None
        self._common: set[int] = set()  # the newest checkpoint that all runs have, once one has failed
        self._stopped: Callable[[], bool] = lambda: False

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

    def loop(self, stopped: Callable[[], bool], until: int | None) -> None:
        """Act, step, store, sample, update, log, until the last step or that of a pause, until stopped, or until all runs have failed."""
        plan, population, episodes, watch = self.settings.plan, self.population, self.episodes, self.watch
        num_envs, total_steps = self.settings.num_envs, self.settings.total_steps
        often = math.gcd(self.settings.log_every, self.settings.evaluation.every, self.settings.checkpoint_every)  # No multiple of theirs is missed by it.
        started = watch.start() - self.wall_seconds
        self._resumed = self._logged = (self.step, self.updates, self.wall_seconds)
        self._stopped = stopped
        while self.step < min(total_steps, until or total_steps) and not stopped() and len(self.failed) < len(self.runs):
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
            if ended or episodes.raised or self._due(often):
                self._log(ended, progress)
            if self.display.due(watch.now):
                self.display.show(self._status())
            watch.lap("log")
        self.display.show(self._status())

    def _due(self, every: int, after: int = 0) -> int:
        """How many multiples of `every` beyond `after` the last step has passed; 0 if `every` is 0."""
        before = max(self.step - self.settings.num_envs, after)
        return self.step // every - before // every if every and self.step > before else 0

    def _log(self, ended: Sequence[Ended], progress: float) -> None:
        if self.episodes.raised or self._due(self.settings.log_every):
            self._look()
        for episode in ended:
            if episode.run in self.failed:
                continue
            self.display.episode(episode.episode_return)
            if self.logs[episode.run]:
                self.logs[episode.run].scalars(self.step, {"rollout/episode_return": episode.episode_return, "rollout/episode_length": episode.length})
        if self._due(self.settings.log_every):
            self._log_learning(progress)
        if self._due(self.settings.evaluation.every) and self.step < self.settings.total_steps:
            self.watch.lap("log")
            self._evaluate()
            self.watch.lap("evaluate")
        if self._due(self.settings.checkpoint_every) and self.step < self.settings.total_steps:
            self.checkpoint()

    def _log_learning(self, progress: float) -> None:
        step, updates, wall_seconds = self._logged
        seconds = max(self.wall_seconds - wall_seconds, 1e-9)
        self._logged = (self.step, self.updates, self.wall_seconds)
        times = {"time/steps_per_second": (self.step - step) / seconds, "time/updates_per_second": (self.updates - updates) / seconds}
        times |= {f"time/{phase}_share": share for phase, share in self.watch.shares().items()}
        metrics = self.population.metrics
        for index, (run, log) in enumerate(zip(self.runs, self.logs, strict=True)):
            if log:
                values = run.agent.report({name: metric[index] for name, metric in metrics.items()}) if metrics else {}
                log.scalars(self.step, values | run.agent.schedules(torch.tensor(progress)) | times)
                log.flush_sometimes()

    def _look(self) -> None:
        """Fail the runs with numbers that are none any more, or whose environments raised."""
        for index, fault in self.population.faulty().items():
            step = fault.added * self.settings.num_envs
            self._fail(index, f"{fault.term} became {fault.value} at step {step:,}", fault.term, step)
        for index, error in self.episodes.raised.items():
            self._fail_by(error, index, "")
        self.episodes.raised.clear()

    def _fail_by(self, error: Exception, index: int, where: str) -> None:
        """Fail a run by what its environment raised."""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        self._fail(index, f"the environment raised {said}{where} at step {self.step:,}", "environment", self.step, "".join(traceback.format_exception(error)))

    def _fail(self, index: int, reason: str, term: str, step: int, raised: str = "") -> None:
        """Freeze a run, unless it is frozen already: it is computed on, since it is part of all tensors, but nobody looks any more."""
        if index in self.failed:
            return
        run, log = self.runs[index], self.logs[index]
        saved = run_directory.checkpoint_path(run.directory, self._saved) if log and self._saved is not None else None
        failure = Failure(reason, term, step, saved, raised)
        self.failed[index] = self._result(index, False, None, failure)
        self._common = self._common or ({self._saved} if saved else set())
        self.episodes.freeze(index)
        if len(self.runs) > 1:
            name = run_directory.shown(run.directory) if log else f"the run with seed {run.seed}"
            self.display.say(f"{name} failed, the others go on: {reason}")
        if log:
            log.end(failed=True)
            log.flush()
            run_directory.write_failure(run.directory, failure)
            self.logs[index] = None

    def _status(self) -> Status:
        step, _, wall_seconds = self._resumed
        seconds = self.wall_seconds - wall_seconds
        rate = max(self.step - step, 1) / max(seconds, 1e-9)
        left = max(self.settings.total_steps - self.step, 0) / rate if seconds > 1 else float("nan")
        metrics = self.population.metrics
        going = [index for index in range(len(self.runs)) if index not in self.failed]
        loss = metrics.get("loss/value", metrics.get("loss/total"))
        return Status(self.step, self.settings.total_steps, rate * len(going), left, float(loss[going].mean()) if loss is not None and going else None)

    def _evaluate(self, *, log_it: bool = True) -> None:
        """Evaluate every run's greedy policy at this step, and log it."""
        self._look()
        seeds = [run.seed for run in self.runs]
        environments = [run.environment for run in self.runs]
        played = environments, self.episodes.observation, seeds, self.step, self.settings.evaluation
        raised = dict.fromkeys(self.failed)
        with self.population.undisturbed():
            found = self.backend.evaluate(self._greedily(), *played, started=self.population.started, raised=raised)
        for index, error in raised.items():
            if index not in self.failed:
                self._fail_by(error, index, " in evaluation")
        for index, (log, returns) in enumerate(zip(self.logs, found, strict=True)):
            if index not in self.failed:
                self.evaluation_returns[index] = returns
            if log and log_it:
                log.scalars(self.step, {f"evaluation/return_{name}": number for name, number in summary(returns).items()})

    def _greedily(self) -> Callable[[], np.ndarray]:
        """Acts without exploring; says it once when somebody asks to stop meanwhile, since an evaluation can take long."""
        progress, said = self.step / self.settings.total_steps, self._stopped()

        def act() -> np.ndarray:
            nonlocal said
            if self._stopped() and not said:
                said = True
                kept = "" if self._saved is None else f", and the checkpoint of step {self._saved:,} is kept"
                self.display.say(f"stopping: the evaluation at step {self.step:,} is finished first, then all is saved; asked once more it ends at once{kept}")
            return self.population.act_greedily(progress)

        return act

    def checkpoint(self) -> None:
        """Save the whole state of every run that has a directory and goes on; one whose weights are no numbers any more fails instead."""
        self._look()
        for index in range(len(self.runs)):
            if not all(leaf.isfinite().all() for leaf in self.population.learner_tensors(index).values()):
                self._fail(index, f"weights were found to be NaN or infinite at step {self.step:,}", faults.WEIGHTS, self.step)
        checkpoint.save(self)
        self._saved = self.step
        checkpoint.drop_others(self, {self.step, *self._common})

    def restore(self) -> None:
        """Continue from the newest checkpoint that all runs have, also those that failed after it."""
        self.step = self._saved = run_directory.newest_checkpoint([run.directory for run in self.runs])
        metrics = [checkpoint.load(self, index) for index in range(len(self.runs))]
        self.population.metrics = pytree.tree_map(lambda *leaves: torch.stack(leaves), *metrics)
        self._look()

    def finish(self, stopped_by: int | None, until: int | None) -> list[Result]:
        """Evaluate and close a training that came to its end, save everything, and say what came of it; one that pauses is evaluated aside."""
        complete = self.step >= self.settings.total_steps
        paused = not complete and until is not None and self.step >= until
        # Before the last evaluation: a process killed after it does it again when the run is continued.
        self.checkpoint()
        if complete:
            self._evaluate()
            for log in filter(None, self.logs):
                log.end()
                log.flush()
        elif paused:
            self._evaluate(log_it=False)
        results = [self.failed.get(index) or self._result(index, complete, stopped_by, evaluated=complete or paused) for index in range(len(self.runs))]
        for run, result in zip(self.runs, results, strict=True):
            if run.directory and result.complete:
                run_directory.write_result(run.directory, record(run, result))
        self.note("complete" if complete else "paused" if paused else "stopped")
        if complete:
            checkpoint.drop_others(self, {self.step})
        return results

    def note(self, words: str) -> None:
        """Write words and the step into the log of every run that has a directory and goes on."""
        for index, run in enumerate(self.runs):
            if run.directory and index not in self.failed:
                run_directory.note(run.directory, f"{words} at step {self.step:,}")

    def _result(self, index: int, complete: bool, stopped_by: int | None, failure: Failure | None = None, *, evaluated: bool = True) -> Result:
        return Result(
            seed=self.runs[index].seed,
            complete=complete,
            stopped_by=None if complete else stopped_by,
            steps=self.step,
            updates=self.updates,
            wall_seconds=self.wall_seconds,
            compile_seconds=self.compile_seconds,
            evaluation_returns=self.evaluation_returns[index] if evaluated else [],
            phases=self.watch.shares(),
            learner=unstack(self.population.learner, index),
            directory=self.runs[index].directory,
            failure=failure,
        )

    def close(self) -> None:
        """Free the environments and the screen."""
        self.display.close()
        self.episodes.close()
