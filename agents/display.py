"""What a person sees while a population trains: a bar on a terminal, plain lines elsewhere."""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

RECENT_EPISODES = 100
PLAIN_SECONDS = 5.0
BAR_SECONDS = 0.2


class Status(NamedTuple):
    """What there is to show at a step."""

    step: int
    total_steps: int
    steps_per_second: float
    seconds_left: float  # NaN before there is a rate
    loss: float | None  # None before the first update


class Display:
    """Shows progress; `say` prints a line without disturbing the bar."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.seconds = BAR_SECONDS if console.is_terminal else PLAIN_SECONDS
        self._next = 0.0
        self._bar: Progress | None = None

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def episode(self, episode_return: float) -> None:
        """Take note of an episode that ended, for the recent return."""
        self.recent.append(episode_return)

    @property
    def recent_return(self) -> float:
        """The mean return of the last episodes; NaN before the first."""
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def due(self, now: float) -> bool:
        """Whether it is time, by a clock in seconds, to show how things stand."""
        if now < self._next:
            return False
        self._next = now + self.seconds
        return True

    def show(self, status: Status) -> None:
        """Show how things stand."""
        words = f"{status.steps_per_second:,.0f} steps/s  recent return {number_or_dash(self.recent_return)}  loss {'–' if status.loss is None else format(status.loss, '.4g')}"
        if not self.console.is_terminal:
            self.say(f"step {status.step:,} of {status.total_steps:,}  {words}  {number_or_dash(status.seconds_left, '.0f')} s left")
            return
        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task("", total=status.total_steps)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=status.step, description=words)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def number_or_dash(number: float, form: str = ".1f") -> str:
    """A number, or a dash before there is one."""
    return "–" if math.isnan(number) else format(number, form)


def quiet() -> Display:
    """A display that shows nothing."""
    return Display(Console(quiet=True, force_terminal=False))
