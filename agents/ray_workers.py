"""Workers of a Ray cluster: each population is a task of one processor, wherever the cluster has one free.

Where a worker sees the sweep's directory, it writes there, and a population whose worker died goes on from its checkpoints. Where it
doesn't, it trains in a folder of its own, and the run directories come back whole when its population ends; what a worker that dies has
trained by then is trained again.
"""

import contextlib
import io
import signal
import tarfile
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.config import ConfigError
from agents.machine import Stop, Stopped
from agents.run_directory import LOCK
from agents.sweep import Task
from agents.workers import Event, Finished, Lost, told_warnings, train_task

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise ConfigError("hydra.launcher.backend=ray needs Ray; install it with pip install 'rlloss[ray]'") from error

POLL_SECONDS = 0.2


class RayWorkers:
    """Trains populations in a Ray cluster: that of RAY_ADDRESS, or one on this machine, which is started if there is none."""

    def __init__(self, workers: int | None = None) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(log_to_driver=False, logging_level="ERROR")
        resources = ray.cluster_resources()
        self.workers = workers or max(int(resources.get("CPU", 0)), 1)
        self.memory = int(resources["memory"]) if "memory" in resources else None
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()

    def train(self, tasks: Sequence[Task], stopped: Stop) -> Iterator[Event]:
        """See `agents.workers.Backend`."""
        if not tasks:
            return
        waiting, busy, told = deque(enumerate(tasks)), {}, False
        with _sign(tasks) as sign:
            try:
                while busy or (waiting and not stopped()):
                    while waiting and len(busy) < self.workers and not stopped():
                        place, task = waiting.popleft()
                        busy[_train.remote(task, place, self._desk, sign)] = place
                    if stopped() and not told:
                        told = True
                        ray.get(self._desk.stop.remote())
                    ended, _ = ray.wait(list(busy), timeout=POLL_SECONDS)
                    yield from ray.get(self._desk.take.remote())
                    for reference in ended:
                        yield _outcome(reference, busy.pop(reference))
            finally:
                for reference in busy:
                    ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        ray.kill(self._desk)
        if self._started:
            ray.shutdown()


def _outcome(reference: Any, place: int) -> Event:
    try:
        return ray.get(reference)
    except RayError as error:
        return Lost(place, f"its worker died ({type(error).__name__})")


@contextlib.contextmanager
def _sign(tasks: Sequence[Task]) -> Iterator[Path]:
    """A file by which workers know that they see the sweep's directories."""
    directory = tasks[0].jobs[0].directory.parent
    directory.mkdir(parents=True, exist_ok=True)
    sign = directory / f".sign-{uuid.uuid4().hex}"
    sign.touch()
    try:
        yield sign
    finally:
        sign.unlink()


class Desk:
    """Lives where the sweep was started: takes what workers tell, and reads and writes run directories for those that don't see them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stopped = False

    def tell(self, event: Event) -> bool:
        """Take note of an event; whether the worker is to save and end."""
        self.events.append(event)
        return self.stopped

    def take(self) -> list[Event]:
        """What was told since the last time."""
        taken, self.events = self.events, []
        return taken

    def stop(self) -> None:
        """Ask all workers to save and end, as soon as they tell something."""
        self.stopped = True

    read = staticmethod(lambda directories: packed(directories))
    write = staticmethod(lambda content, directories: unpack(content, directories))


@ray.remote(num_cpus=1, max_retries=0)
def _train(task: Task, place: int, desk: Any, sign: Path) -> Finished:
    """Train a task in this worker, which has one thread."""
    import torch

    torch.set_num_threads(1)
    asked = False

    def tell(event: Event) -> None:
        nonlocal asked
        if ray.get(desk.tell.remote(event)) and not asked:
            asked = True
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        with told_warnings(place, tell):
            return train_task(task, place, tell) if sign.exists() else _train_apart(task, place, tell, desk)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(number: int, frame: Any) -> None:
    raise Stopped(number)


def _train_apart(task: Task, place: int, tell: Callable[[Event], None], desk: Any) -> Finished:
    """Train a task in a folder of this worker's, and bring its run directories to where they belong."""
    belong = [job.directory for job in task.jobs]
    with tempfile.TemporaryDirectory(prefix="rlloss-") as folder:
        here = [Path(folder) / str(number) for number in range(len(belong))]
        if task.step is not None:
            unpack(ray.get(desk.read.remote(belong)), here)
        jobs = tuple(replace(job, directory=directory) for job, directory in zip(task.jobs, here, strict=True))
        finished = train_task(task._replace(jobs=jobs), place, tell)
        ray.get(desk.write.remote(packed(here), belong))
    return finished


def packed(directories: Sequence[Path]) -> bytes:
    """All files of some directories, but for their locks."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, directory in enumerate(directories):
            if directory.exists():
                archive.add(directory, str(number), filter=lambda entry: None if Path(entry.name).name == LOCK else entry)
    return content.getvalue()


def unpack(content: bytes, directories: Sequence[Path]) -> None:
    """Put what was packed into these directories, in place of what is there."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in archive.getmembers():
            number, _, name = entry.name.partition("/")
            entry.name = name or "."
            archive.extract(entry, directories[int(number)], filter="data")
