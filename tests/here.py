"""A backend of the population launcher that needs no processes of its own: quick, for tests that aren't about those."""

from agents.workers import train_task

HERE = "hydra.launcher.backend=tests.here.Here"


class Here:
    """Trains populations in this process, one after the other."""

    workers, memory = 1, None

    def __init__(self, workers):
        pass

    def train(self, tasks, stopped):
        """See `agents.workers.Backend`."""
        for place, task in enumerate(tasks):
            events = []
            finished = train_task(task, place, events.append)
            yield from [*events, finished]

    def close(self):
        """There is nothing to end."""
