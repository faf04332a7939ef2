"""Save the state of a running training stage when Ctrl-C or SIGTERM comes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spin.orchestration.context import RunContext
from spin.training.job import TrainingJob

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
