"""Ctrl-C and SIGTERM: both raise KeyboardInterrupt in the main thread, in every command."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

INTERRUPTED = "spin: interrupted; the same command continues the run"
"""The line with which an interrupted run ends."""


class ToldInterrupt(KeyboardInterrupt):
    """An interrupt has ended the work, and the user has been told so."""


_INTERRUPTED = threading.Event()

_SIGNALS: list[int] = []
"""Read end and write end of the pipe that receives the number of each signal at once."""


def handle_interrupts() -> None:
    """Let Ctrl-C and SIGTERM end the process with one line; called at the start of each command.

    Ray replaces the handler of SIGTERM when it starts, so `spin.cluster` calls this again.
    """
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = print_unraisable
    if not _SIGNALS:
        _SIGNALS.extend(os.pipe())
        for end in _SIGNALS:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(_SIGNALS[1], warn_on_full_buffer=False)
        # A forked process has signals of its own.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, and remember that it was raised."""
    # Python may drop the exception: see `raise_if_interrupted`.
    _INTERRUPTED.set()
    cancel_abort()
    # A library whose import is interrupted may continue with a warning about a part that failed.
    warnings.simplefilter("ignore")
    raise KeyboardInterrupt


def cancel_abort() -> None:
    """Cancel the alarm with which Ray's C++ core ends a process 3 s after a SIGTERM.

    While Ray starts, the core handles SIGTERM: it writes its stack, sets the alarm, and raises the
    signal again for the handler that was there before.
    """
    signal.alarm(0)


def was_interrupted() -> bool:
    """Return whether a signal came, for threads that must not start anything then.

    The handler runs in the main thread, and not before a call of a library has returned. This
    function knows earlier.
    """
    with suppress(BlockingIOError):
        if _SIGNALS and {signal.SIGINT, signal.SIGTERM} & set(os.read(_SIGNALS[0], 100)):
            _INTERRUPTED.set()
    return _INTERRUPTED.is_set()


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal came, but Python dropped its exception.

    Python drops an exception if the signal comes while a destructor or a callback of a library
    runs.
    """
    if was_interrupted():
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
