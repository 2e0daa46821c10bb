"""Where the commands start: before the slow imports, so that Ctrl-C is answered from the first moment."""

import gc
import importlib
import signal


def train() -> None:
    """`rlloss-train`."""
    _start("train_main")


def evaluate() -> None:
    """`rlloss-evaluate`."""
    _start("evaluate_main")


def landscape() -> None:
    """`rlloss-landscape`."""
    _start("landscape_main", "agents.landscape")


def report() -> None:
    """`rlloss-report`."""
    _start("report_main", "agents.report")


def _start(command: str, module: str = "agents.command_line") -> None:
    # There is nothing to save yet, and Python would show a traceback of the import it was at.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: looking through it for garbage costs up to a fifth of the start.
    gc.disable()
    loaded = importlib.import_module(module)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    getattr(loaded, command)()
