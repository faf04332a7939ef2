"""Handle Ctrl-C and SIGTERM: end a run, but save the state of a running training stage first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spin.orchestration.context import RunContext
from spin.training.job import TrainingJob

_INTERRUPTED = threading.Event()


def interrupt(number: int, frame: Any) -> None:
    """Handle Ctrl-C and SIGTERM."""
    # Remember the signal, because Python may drop the exception: see `heed_interrupt`.
    _INTERRUPTED.set()
    raise KeyboardInterrupt


def heed_interrupt() -> None:
    """Raise KeyboardInterrupt if a signal came, but Python dropped its exception.

    Python drops an exception if the signal comes while a destructor or a callback of a library
    runs.
    """
    if _INTERRUPTED.is_set():
        raise KeyboardInterrupt


def unraisable(dropped: Any) -> None:
    """Print an exception that Python drops, as Python itself does, but not an interrupt."""
    # `heed_interrupt` raises the interrupt again; a traceback would only confuse the user.
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


STOP_SECONDS = 30
"""Longest time in seconds that an interrupted run waits until the state is saved."""


@contextmanager
def saved_on_interrupt(run: RunContext, job: TrainingJob) -> Iterator[threading.Event]:
    """Save the trainer's state when the first Ctrl-C or SIGTERM comes.

    The first signal sets the event; the caller then asks the trainer to save. A second signal
    raises KeyboardInterrupt at once, and so does the end of STOP_SECONDS.
    """
    interrupted = threading.Event()

    def handle(number: int, frame: Any) -> None:
        # SIGALRM comes when the time is over. A job that saves no states has nothing to wait for.
        if interrupted.is_set() or number == signal.SIGALRM or job.training.save_every == (0, 0.0):
            raise KeyboardInterrupt
        interrupted.set()
        signal.alarm(STOP_SECONDS)
        run.reporter.print("interrupted: saving the trainer's state; interrupt again to stop without it")

    # Only for this stage: in all others a signal ends the run at once.
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield interrupted
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
