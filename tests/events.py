"""Reads event files without the code that wrote them."""

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader


def events(directory):
    """All events of the one event file in a run directory."""
    (path,) = directory.glob("events.out.tfevents.*")
    return list(LegacyEventFileLoader(str(path)).Load())


def scalars(directory, times=False):
    """(step, tag, value) of all scalars in their order; those that depend on the clock only if asked for."""
    values = [(event.step, value.tag, value.simple_value) for event in events(directory) for value in event.summary.value if value.HasField("simple_value")]
    return [value for value in values if times or not value[1].startswith("time/")]
