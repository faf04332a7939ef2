"""Handle Ctrl-C and SIGTERM: end a run, or save the trainer's state first."""

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
    _INTERRUPTED.set()
    raise KeyboardInterrupt


def heed_interrupt() -> None:
    """Raise KeyboardInterrupt if a signal came and Python dropped the exception.

    Python drops exceptions that are raised inside a destructor or a callback of a library.
    """
    if _INTERRUPTED.is_set():
        raise KeyboardInterrupt


def unraisable(dropped: Any) -> None:
    """Report an exception that Python drops; `heed_interrupt` raises a dropped interrupt again."""
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)


STOP_SECONDS = 30
"""Seconds that an interrupted run waits for the state to be saved."""


@contextmanager
def saved_on_interrupt(run: RunContext, job: TrainingJob) -> Iterator[threading.Event]:
    """Let the first Ctrl-C or SIGTERM set the event that asks the trainer for its state.

    The second one, or STOP_SECONDS without a state, raises KeyboardInterrupt.
    """
    interrupted = threading.Event()

    def handle(number: int, frame: Any) -> None:
        if interrupted.is_set() or number == signal.SIGALRM or job.training.save_every == (0, 0.0):
            raise KeyboardInterrupt
        interrupted.set()
        signal.alarm(STOP_SECONDS)
        run.reporter.print("interrupted: the trainer's state is being saved (once more: leave it)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield interrupted
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
