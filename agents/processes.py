"""Worker processes of this machine: one torch thread each, as many populations at a time as there are cores."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from agents.machine import Stop, Stopped, available_memory, cores
from agents.sweep import Task

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 60.0  # before a worker that was asked to end is killed


class Worker(NamedTuple):
    """A process and the parent's end of the pipe to it."""

    process: Any
    pipe: Connection


class Processes:
    """Trains populations in processes of this machine, which live until they are closed or this process ends, however it ends."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers, self.memory = workers or cores(), available_memory()
        self._idle: list[Worker] = []

    def train(self, tasks: Sequence[Task], stopped: Stop) -> Iterator[Any]:
        """See `agents.workers.Backend`."""
        from agents.workers import Finished, Lost

        waiting, busy, told = deque(enumerate(tasks)), {}, False
        try:
            while busy or (waiting and not stopped()):
                while waiting and len(busy) < self.workers and not stopped():
                    place, task = waiting.popleft()
                    worker = self._ready()
                    worker.pipe.send((place, task))
                    busy[worker.pipe] = worker, place
                if stopped() and not told:
                    told = True
                    for worker, _ in busy.values():
                        os.kill(worker.process.pid, signal.SIGINT)
                for pipe in wait(list(busy), POLL_SECONDS):
                    worker, place = busy[pipe]
                    try:
                        event = pipe.recv()
                    except (EOFError, OSError):
                        del busy[pipe]
                        yield Lost(place, _death(worker))
                        continue
                    if isinstance(event, Finished):
                        del busy[pipe]
                        self._idle.append(worker)
                    yield event
        finally:
            for worker, _ in busy.values():
                _end(worker, signal.SIGKILL)

    def _ready(self) -> Worker:
        """A worker that waits for a population: one that has trained before and still lives, or a new one."""
        while self._idle:
            if (worker := self._idle.pop()).process.is_alive():
                return worker
            _end(worker, signal.SIGKILL)
        return _started(max(1, cores() // self.workers))

    def close(self) -> None:
        """End all workers."""
        while self._idle:
            _end(self._idle.pop(), signal.SIGTERM)


def _started(threads: int) -> Worker:
    context = multiprocessing.get_context("spawn")  # A forked process can't use torch's threads.
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(its, threads), daemon=False, name="rlloss worker")
    process.start()
    its.close()
    return Worker(process, mine)


def _end(worker: Worker, number: int) -> None:
    worker.pipe.close()
    if worker.process.is_alive():
        os.kill(worker.process.pid, number)
    worker.process.join()
    worker.process.close()


def _death(worker: Worker) -> str:
    """Why a worker is no more."""
    worker.pipe.close()
    worker.process.join()
    code = worker.process.exitcode
    worker.process.close()
    if code == -signal.SIGKILL:
        return "its worker process was killed, as the system does where memory runs out"
    return f"its worker process was ended by {signal.Signals(-code).name}" if code < 0 else f"its worker process ended with code {code}"


def _work(pipe: Connection, threads: int) -> None:
    """A worker's life: train what comes through the pipe, until that is closed. After a signal it trains nothing more, and says so.

    `threads` is how many its libraries may have.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # The others have the rest of the cores.
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on.
    asked = training = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        if training:  # Else it's seen before the next training begins.
            raise Stopped(number)

    signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from agents.workers import Finished, Outcome, told_warnings, train_task

    def tell(event: Any) -> None:
        with contextlib.suppress(OSError):  # Nobody listens any more; the runs are saved all the same.
            pipe.send(event)

    torch.set_num_threads(1)
    while True:
        try:
            place, task = pipe.recv()
        except (EOFError, OSError):
            return
        finished = Finished(place, (Outcome(),) * len(task.jobs))
        try:
            training = True
            with told_warnings(place, tell):
                finished = finished if asked else train_task(task, place, tell)
        except KeyboardInterrupt:
            pass  # It came between two instructions; what was trained is in its directories.
        training = False
        tell(finished)


def _end_with_parent() -> None:
    """Save and end when the parent is no more."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
