"""The console of the driver: a bar while a stage runs, and one line when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spin.report.metrics_log import MetricsLog
from spin.report.stage_progress import StageProgress
from spin.report.terminal import open_console, print_line


class Reporter:
    """The log and the console of the driver. Without a terminal there are no bars."""

    def __init__(self, metrics: Path, now: Path, console: Console | None = None) -> None:
        """Log to the file `metrics`; `now` is the file of the running stage's progress."""
        self.metrics_log = MetricsLog(metrics)
        self._now = now
        self.console = console or open_console()

    def print(self, text: str) -> None:
        """Print one line without markup; on a terminal it wraps at words."""
        print_line(self.console, text)

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[StageProgress]:
        """Show a bar while the stage runs."""
        # The bar disappears at the end of the stage; the caller then prints one line.
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            try:
                yield StageProgress(progress, total, label, unit, self._now)
            finally:
                self._now.unlink(missing_ok=True)
