"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt in the main thread, in every command."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from typing import Any

_INTERRUPTED = threading.Event()


def handle_interrupts() -> None:
    """Let Ctrl-C and SIGTERM end the process with one line; called at the start of each command.

    Ray replaces the handler of SIGTERM when it starts, so `spin.cluster` calls this again.
    """
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = print_unraisable


def interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, and remember that it was raised."""
    # Python may drop the exception: see `raise_if_interrupted`.
    _INTERRUPTED.set()
    # A library whose import is interrupted may continue with a warning about a part that failed.
    warnings.simplefilter("ignore")
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Return whether a signal came, for threads that must not start anything then."""
    return _INTERRUPTED.is_set()


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal came, but Python dropped its exception.

    Python drops an exception if the signal comes while a destructor or a callback of a library
    runs.
    """
    if _INTERRUPTED.is_set():
        raise KeyboardInterrupt


def print_unraisable(dropped: Any) -> None:
    """Print an exception that Python drops, as Python itself does, but not an interrupt."""
    # While Ray starts, SIGTERM raises SystemExit by a handler of Ray, here or in a process that
    # was just forked.
    if issubclass(dropped.exc_type, SystemExit):
        _INTERRUPTED.set()
        return
    # `raise_if_interrupted` raises the interrupt again; a traceback would only confuse the user.
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
