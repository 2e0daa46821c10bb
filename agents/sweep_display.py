"""What a person sees while a sweep trains: a row for each population on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agents.display import Status, number_or_dash
from agents.run_directory import shown
from agents.sweep import Job, Task, counted, in_time, names, work
from agents.workers import Event, Finished, Lost, Outcome, Progress, Said

PLAIN_SECONDS = 5.0
SCREEN_SECONDS = 0.25
ENDED_ROWS = 10  # of populations that have ended, so that a long sweep fits the screen


@dataclass(frozen=True)
class Row:
    """How one population stands."""

    name: str
    runs: int
    steps: int  # environment steps of all its runs together that were to be made
    status: Status | None = None
    best: float = math.nan
    median: float = math.nan
    ended: str = ""


class SweepDisplay:
    """Shows a sweep's populations; `say` prints a line without disturbing them."""

    def __init__(self, console: Console) -> None:
        self.console, self.rows, self._said = console, {}, set()
        self._live: Live | None = None
        self._next, self._began = 0.0, time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, tasks: Sequence[Task]) -> None:
        """Show these populations from now on."""
        self.rows = {place: Row(name, len(task.jobs), work(task)) for place, (name, task) in enumerate(zip(names(tasks), tasks, strict=True))}
        if self.console.is_terminal and self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()

    def show(self, event: Event) -> None:
        """Take note of what a worker told, and show it."""
        row = self.rows[event.task]
        match event:
            case Said(line=line):
                if line not in self._said:  # Populations have much the same to say.
                    self._said.add(line)
                    self.say(line)
            case Progress(status=status, best=best, median=median):
                self.rows[event.task] = replace(row, status=status, best=best, median=median)
                if self._live is None and self._due(max(PLAIN_SECONDS, 0.1 * (time.monotonic() - self._began))):  # A long sweep needs no more lines than a short one.
                    self.say("\n".join([_summary(list(self.rows.values())), *(f"  {_line(row)}" for row in self.rows.values() if row.status and not row.ended)]))
            case Finished(outcomes=outcomes):
                self.rows[event.task] = replace(row, ended=_ended(outcomes))
                if self._live is None:
                    self.say(_line(self.rows[event.task]))
            case Lost(reason=reason):
                self.rows[event.task] = replace(row, ended="lost")
                self.say(f"{row.name}: {reason}")
        if self._live and (self._due(SCREEN_SECONDS) or isinstance(event, Finished | Lost)):
            self._live.update(_screen(list(self.rows.values())), refresh=True)

    def _due(self, seconds: float) -> bool:
        if (now := time.monotonic()) < self._next:
            return False
        self._next = now + seconds
        return True

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._live.stop()
            self._live = None

    def failures(self, failed: Sequence[tuple[Job, Outcome]]) -> None:
        """Print a table of the jobs that failed, and why."""
        if self.console.is_terminal:
            table = Table("run", "step", "what went wrong", title=counted(len(failed), "run") + " failed", title_justify="left")
            for job, outcome in failed:
                table.add_row(Text(shown(job.directory)), Text(_step(outcome)), Text(outcome.failure))
            self.console.print(table)
            return
        self.say(f"{counted(len(failed), 'run')} failed:")
        for job, outcome in failed:
            self.say(f"  {shown(job.directory)}  step {_step(outcome)}  {outcome.failure}")


def _step(outcome: Outcome) -> str:
    return "–" if outcome.step is None else f"{outcome.step:,}"


def _ended(outcomes: Sequence[Outcome]) -> str:
    failed = sum(outcome.failure is not None for outcome in outcomes)
    stopped = sum(outcome.failure is None and outcome.value is None for outcome in outcomes)
    return ", ".join(filter(None, [f"{failed} failed" if failed else "", "stopped" if stopped else ""])) or ("complete" if any(outcome.step is None for outcome in outcomes) else "paused")


def _line(row: Row) -> str:
    """A population in a plain line."""
    if row.status is None:
        return f"{row.name}: {row.ended}"
    how = row.ended or f"{row.status.steps_per_second:,.0f} steps/s  {_left(row)} left"
    return f"{row.name}: step {row.status.step:,} of {row.status.total_steps:,}  {how}  best return {number_or_dash(row.best)}  median {number_or_dash(row.median)}"


def _left(row: Row) -> str:
    return "–" if row.status is None or math.isnan(row.status.seconds_left) else in_time(row.status.seconds_left)


def _screen(rows: Sequence[Row]) -> Group:
    """All populations as a table: those that train, and the last ones that ended."""
    table = Table("population", "runs", "", "steps/s", "left", "best return", "median", box=None, pad_edge=False, header_style="dim")
    ended = [row for row in rows if row.ended]
    for row in [*ended[-ENDED_ROWS:], *(row for row in rows if row.status and not row.ended)]:
        status = row.status or Status(0, 1, math.nan, math.nan, None)
        bar = ProgressBar(total=status.total_steps, completed=status.step, width=20)
        table.add_row(Text(row.name), str(row.runs), bar, number_or_dash(status.steps_per_second, ",.0f"), row.ended or _left(row), number_or_dash(row.best), number_or_dash(row.median))
    return Group(table, Text(_summary(rows), style="dim"))


def _summary(rows: Sequence[Row]) -> str:
    """How the whole sweep stands."""
    ended, waiting = sum(bool(row.ended) for row in rows), sum(row.status is None and not row.ended for row in rows)
    seconds = _seconds_left(rows)
    left = f", about {in_time(seconds)} left" if seconds else ""
    return f"{ended} of {counted(len(rows), 'population')} ended, {waiting} waiting{left}"


def _seconds_left(rows: Sequence[Row]) -> float | None:
    """The time that is left at the rates that there are now; None before the first."""
    active = [row.status for row in rows if row.status and not row.ended and not math.isnan(row.status.seconds_left)]
    rate = sum(status.steps_per_second for status in active)
    left = sum(row.runs * (row.status.total_steps - row.status.step) if row.status else row.steps for row in rows if not row.ended)
    return left / rate if rate else None
