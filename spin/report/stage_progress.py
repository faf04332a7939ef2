"""Show the progress of one stage: a bar on the terminal, and a small file for `spin status`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.progress import Progress

from spin.report.formatting import format_duration

LABEL_WIDTH = 26
"""Columns of a stage's label."""


class StageProgress:
    """The progress of one stage: a bar on the terminal, and a small file for `spin status`."""

    def __init__(self, progress: Progress, total: int, label: str, unit: str, now: Path, note: str) -> None:
        """Start at 0. `total`: 0 if it is not known yet. `now`: the file for `spin status`."""
        self._progress = progress
        self._task = progress.add_task(label, total=total or None, note=note)
        self._note = note
        self._label = label
        self._unit = unit
        self._done = 0
        self._total = total
        self._start = time.perf_counter()
        self._now = now
        self._write(0.0)

    def advance(self, count: int, note: str = "", total: int | None = None) -> None:
        """Count more units as done. `total`: the number of all units, once it is known."""
        self._done += count
        self._total = total or self._total
        rate = self._done / max(1e-9, time.perf_counter() - self._start)
        self._note = note
        text = f"{rate:,.1f} {self._unit}/s  {note}"
        self._progress.update(self._task, advance=count, total=self._total or None, note=text)
        # At most once a second: the file is for a person.
        if time.perf_counter() - self._written > 1.0:
            self._write(rate)

    def describe(self) -> str:
        """Return one line about the work so far."""
        seconds = time.perf_counter() - self._start
        text = f"{self._label:<{LABEL_WIDTH}} {self._done:,}"
        if self._total:
            text += f" of {self._total:,}"
        text += f" {self._unit} in {format_duration(seconds)}"
        if self._done and self._total:
            text += f", {format_duration((self._total - self._done) * seconds / self._done)} left"
        if self._note:
            text += f", {self._note}"
        return text

    def _write(self, rate: float) -> None:
        """Replace the file. It is not flushed to the disk: after a power cut it is useless."""
        self._written = time.perf_counter()
        left = None
        if self._total and rate:
            left = (self._total - self._done) / rate
        values = {
            "label": self._label,
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "rate": rate,
            "left": left,
            "time": time.time(),
        }
        temporary = self._now.with_suffix(".tmp")
        temporary.write_text(json.dumps(values))
        temporary.replace(self._now)
