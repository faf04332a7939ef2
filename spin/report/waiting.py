"""Show that work of unknown length goes on: a clock on a terminal, a line a minute in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spin.report.formatting import format_duration
from spin.report.terminal import print_line

LOG_SECONDS = 60.0
"""Seconds between two lines about the same work in a log."""


@contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Show `text` and the time until the context ends; on a terminal it then disappears."""
    if not console.is_terminal:
        started = time.perf_counter()
        with logged(console, lambda: f"{text}: {format_duration(time.perf_counter() - started)}"):
            yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(text, total=None)
    with drawn(progress):
        yield


@contextmanager
def drawn(progress: Progress) -> Iterator[None]:
    """Draw a bar or a clock until the context ends."""
    try:
        with progress:
            yield
    finally:
        # An interrupt inside of `start` would leave the terminal without its cursor.
        progress.console.show_cursor()


@contextmanager
def logged(console: Console, describe: Callable[[], str], seconds: float = LOG_SECONDS) -> Iterator[None]:
    """Print what `describe` returns once a minute until the context ends.

    Args:
        console: The log.
        describe: Called in a thread of its own; returns one line.
        seconds: Time between two lines.
    """
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(seconds):
            print_line(console, describe())

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
