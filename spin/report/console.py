"""The console of the driver: a bar while a stage runs, and one line when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spin.report.metrics_log import MetricsLog
from spin.report.stage_progress import LABEL_WIDTH, StageProgress
from spin.report.terminal import open_console, print_line
from spin.report.waiting import drawn, logged, waiting


class Reporter:
    """The log and the console of the driver. Without a terminal, a line a minute replaces bars."""

    def __init__(self, metrics: Path, now: Path, console: Console | None = None) -> None:
        """Log to the file `metrics`; `now` is the file of the running stage's progress."""
        self.metrics_log = MetricsLog(metrics)
        self._now = now
        self.console = console or open_console()

    def print(self, text: str) -> None:
        """Print one line without markup; on a terminal it wraps at words."""
        print_line(self.console, text)

    def print_stage(self, label: str, text: str) -> None:
        """Print the line about a stage that is done; its further lines begin below `text`."""
        print_line(self.console, f"{label:<{LABEL_WIDTH}} {text}", LABEL_WIDTH + 1)

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """Show that work without a known length goes on, until the context ends."""
        return waiting(self.console, text)

    @contextmanager
    def stage(self, label: str, total: int, unit: str, note: str = "") -> Iterator[StageProgress]:
        """Show a bar while the stage runs; in a log, print one line a minute.

        Args:
            label: Name of the stage.
            total: Number of units of work; 0 if it is not known yet.
            unit: Name of the units.
            note: Remark until the first unit is done.
        """
        # The bar disappears at the end of the stage; the caller then prints one line.
        columns = (
            TextColumn(f"{{task.description:<{LABEL_WIDTH}}}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        live = self.console.is_terminal
        progress = Progress(*columns, console=self.console, transient=True, disable=not live)
        stage = StageProgress(progress, total, label, unit, self._now, note)
        try:
            with drawn(progress) if live else logged(self.console, stage.describe):
                yield stage
        finally:
            self._now.unlink(missing_ok=True)
