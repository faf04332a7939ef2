"""The ledger: one JSON line for each finished unit. A resume goes by it alone.

Only the driver writes it. A line is appended once the file that it names is on disk and, for a
run at a URL, published. A last line that a crash left incomplete is dropped.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from spin.errors import ConfigError
from spin.run_dir.store import LOCAL_STORE, RunStore


class LedgerError(ConfigError):
    """A line of the ledger, other than an incomplete last one, cannot be read."""


class Ledger:
    """Finished units by name. Of several lines with one name the last counts."""

    def __init__(self, path: Path, store: RunStore = LOCAL_STORE, read_only: bool = False) -> None:
        """Read the ledger.

        Args:
            path: The file, which need not exist.
            store: Publishes the ledger after each line.
            read_only: Leave an incomplete last line in the file.

        Raises:
            LedgerError: Another line cannot be read.
        """
        self.path = path
        self._store = store
        self._units: dict[str, dict[str, Any]] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                self._units[record["unit"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(
                    f"{path}:{number} is no ledger line ({line[:60]!r}); "
                    "restore the file from a copy, or choose another run_dir"
                ) from error
        if len(whole) < len(data) and not read_only:  # a driver was killed while it wrote the line
            with path.open("r+b") as handle:
                handle.truncate(len(whole))
                os.fsync(handle.fileno())

    def append(self, unit: str, **facts: Any) -> None:
        """Record that a unit is finished. Return once the line is on disk and published."""
        record = {"unit": unit, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as handle:
            before = handle.tell()
            line = json.dumps(record).encode() + b"\n"
            try:
                if handle.write(line) != len(line):  # a nearly full disk takes a part of the line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(handle.fileno())
            except OSError:
                handle.truncate(before)
                raise
        self._store.publish_ledger(self.path)
        self._units[unit] = json.loads(line)  # as a resume will read it

    def get(self, unit: str) -> dict[str, Any] | None:
        """Return the facts of a finished unit, or None."""
        return self._units.get(unit)

    def family(self, prefix: str) -> list[dict[str, Any]]:
        """Return the facts of all finished units whose name begins with `prefix`."""
        return [record for unit, record in self._units.items() if unit.startswith(prefix)]

    def __contains__(self, unit: str) -> bool:
        return unit in self._units
