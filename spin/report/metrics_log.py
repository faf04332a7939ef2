"""Read and write metrics.jsonl: one row for each logged step, kind of shards, or benchmark."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spin.errors import ConfigError
from spin.run_dir.files import write_text


class MetricsLog:
    """The file metrics.jsonl of a run."""

    def __init__(self, path: Path) -> None:
        """Append to the file `path`, which need not exist yet."""
        self._path = path
        self._appending = threading.Lock()
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        """Functions that are called with every row that is appended."""

    def keep_finished(self, finished: Callable[[dict[str, Any]], bool]) -> None:
        """Delete the rows for which `finished` is false: their units will run again."""
        if not self._path.exists():
            return
        # A last line that a crash left incomplete is deleted too.
        kept = []
        for line, row in self._parse():
            if finished(row):
                kept.append(line)
        write_text(self._path, "".join(kept))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that have been logged so far, without a line that is not complete."""
        if not self._path.exists():
            return []
        return [row for _, row in self._parse()]

    def _parse(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each complete line with its row.

        Raises:
            ConfigError: A complete line is damaged.
        """
        lines = self._path.read_text(errors="replace").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            # Only the last line can be incomplete: a driver was killed while it wrote the line, or
            # is writing it.
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or "unit" not in row:
                raise ConfigError(f"{self._path}:{number} is no row of metrics ({line[:60]!r}); delete the line")
            yield line, row

    def append(self, unit: str, **values: Any) -> None:
        """Append one row; several threads may do so.

        Args:
            unit: The ledger unit that it belongs to.
            values: Values of the row.
        """
        with self._appending:
            row = {"unit": unit, "time": round(time.time(), 3), **values}
            with self._path.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            for sink in self.sinks:
                sink(row)
