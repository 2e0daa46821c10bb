"""Where the commands start: before the slow imports, so that Ctrl-C is answered from the first moment."""

import gc
import signal


def train() -> None:
    """`rlloss-train`."""
    _start("train_main")


def evaluate() -> None:
    """`rlloss-evaluate`."""
    _start("evaluate_main")


def _start(command: str) -> None:
    # There is nothing to save yet, and Python would show a traceback of the import it was at.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: looking through it for garbage costs a fifth of the start.
    gc.disable()
    from agents import command_line

    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    getattr(command_line, command)()
