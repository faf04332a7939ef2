"""Work of the training workers that goes on while the engines generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


class TrainerWork:
    """Runs one piece of work at a time in a thread of its own.

    Call `wait` before any other use of the training workers: two threads must not use them at once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trainer-work")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, after the one before."""
        self.wait()
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until the work is done, and raise its error if it has one."""
        running = self._running
        self._running = None
        if running is not None:
            running.result()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Let no work outlive the context, which contains the one of the workers.

        After an error the workers are gone, so that work in progress ends with an error of its own.
        """
        try:
            yield
        finally:
            self._thread.shutdown()
