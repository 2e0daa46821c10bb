"""Where a sweep's populations are trained, as an interface, and what any worker does with one of them."""

import contextlib
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from omegaconf import OmegaConf
from rich.console import Console

from agents import rates, run_directory
from agents.config import build_all
from agents.display import Display, Status
from agents.evaluation import summary
from agents.machine import Stop
from agents.run import Failure, Result
from agents.run_directory import RunDirectoryError
from agents.sweep import Job, Task
from agents.training import train

TELL_SECONDS = 0.5


class Outcome(NamedTuple):
    """What came of one job: its mean evaluation return, or why there is none; neither where it was stopped and can go on.

    `step` is where it failed, or where it has its value if that isn't the last step: it was pruned there, or will go on.
    """

    value: float | None = None
    failure: str | None = None  # in one line
    step: int | None = None


class Said(NamedTuple):
    """A line for a person."""

    task: int
    line: str


class Progress(NamedTuple):
    """How a population stands; of its recent episodes the best and the median return, NaN before the first."""

    task: int
    status: Status
    best: float
    median: float


class Finished(NamedTuple):
    """A population that came to an end: one outcome a job. `rate` is its steps a second, all runs together, without compiling."""

    task: int
    outcomes: tuple[Outcome, ...]
    rate: float | None = None


class Lost(NamedTuple):
    """A population whose worker died; what it had saved is in its directories."""

    task: int
    reason: str


Event = Said | Progress | Finished | Lost


class Backend(Protocol):
    """Where populations are trained: processes of this machine, or workers of a cluster.

    Each worker trains one population at a time by `train_task`, with one torch thread, and sends what that tells.
    """

    workers: int  # populations trained at the same time
    memory: int | None  # bytes that all of them together can have, None where nobody knows

    def train(self, tasks: Sequence[Task], stopped: Stop) -> Iterator[Event]:
        """Train all tasks, and give what is told of them until each is `Finished` or `Lost`; tasks are named by their place.

        Once `stopped()`, no further task is begun, and the workers are asked to save and end, as `agents.training.train` does after
        SIGINT. Leaving the iterator early ends all workers.
        """

    def close(self) -> None:
        """End all workers."""


def train_task(task: Task, place: int, tell: Callable[[Event], None]) -> Finished:
    """Train the `place`-th task here and write all that belongs to its runs; whatever goes wrong is an outcome."""
    display = RemoteDisplay(place, tell)
    try:
        runs = build_all([job.config for job in task.jobs], [job.directory for job in task.jobs])
        for job in task.jobs:
            _write_notes(job)
            if task.step is None:
                run_directory.clear_unstarted(job.directory)
        results = train(runs, resume=task.step is not None, display=display, until=task.until)
    except KeyboardInterrupt:
        return Finished(place, (Outcome(),) * len(task.jobs))
    except Exception as error:
        reason, trace = " ".join(f"{type(error).__name__}: {error}".split()), traceback.format_exc()
        return Finished(place, tuple(failed(job, reason, trace) for job in task.jobs))
    return Finished(place, tuple(outcome(result) for result in results), display.rate)


@contextlib.contextmanager
def told_warnings(place: int, tell: Callable[[Event], None]) -> Iterator[None]:
    """Within it warnings are told, each once, so that they are on the screen of whoever started the sweep."""
    said = set()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: str(message) in said or said.add(str(message)) or tell(Said(place, str(message)))
        yield


def outcome(result: Result) -> Outcome:
    """What came of one run."""
    if result.failure:
        return Outcome(failure=result.failure.reason, step=result.failure.step)
    if not result.evaluation_returns:
        return Outcome()
    return Outcome(summary(result.evaluation_returns)["mean"], step=None if result.complete else result.steps)


def failed(job: Job, reason: str, trace: str = "") -> Outcome:
    """A run that failed with its whole population, as it's noted in its directory, unless another process holds that."""
    with contextlib.suppress(RunDirectoryError, OSError), run_directory.locked(job.directory):
        newest = max(run_directory.checkpoints(job.directory), default=None)
        checkpoint = None if newest is None else run_directory.checkpoint_path(job.directory, newest)
        run_directory.write_failure(job.directory, Failure(reason, "population", newest or 0, checkpoint, trace))
    return Outcome(failure=reason)


def _write_notes(job: Job) -> None:
    """Hydra's own notes of a job, as it writes them itself."""
    folder = job.directory / (job.notes.get("output_subdir") or ".hydra")
    if not job.notes or job.notes["output_subdir"] is None or (folder / "overrides.yaml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("config", job.config), ("hydra", {"hydra": job.notes}), ("overrides", job.notes["overrides"]["task"])):
        OmegaConf.save(OmegaConf.create(values), folder / f"{name}.yaml")


class RemoteDisplay(Display):
    """A display for somebody elsewhere, who is told what it's given."""

    def __init__(self, place: int, tell: Callable[[Event], None]) -> None:
        super().__init__(Console(quiet=True, force_terminal=False))
        self.seconds, self.place, self.tell = TELL_SECONDS, place, tell
        self.rate: float | None = None
        self._started = 0.0

    def say(self, line: str) -> None:
        """Tell a line."""
        self.tell(Said(self.place, line))

    def show(self, status: Status) -> None:
        """Tell how things stand."""
        now = time.monotonic()
        self._started = self._started or now
        self.rate = status.steps_per_second if now - self._started > rates.SECONDS else None
        best, median = (max(self.recent), statistics.median(self.recent)) if self.recent else (float("nan"),) * 2
        self.tell(Progress(self.place, status, best, median))
