"""Where the time of the training loop goes."""

import time

PHASES = ("act", "step", "store", "sample", "update", "log", "evaluate")


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
        before, self.now = self.now, time.perf_counter()
        self.seconds[phase] += self.now - before

    def shares(self) -> dict[str, float]:
        """Each phase's share of the time of all."""
        spent = max(sum(self.seconds.values()), 1e-9)
        return {phase: seconds / spent for phase, seconds in self.seconds.items()}
