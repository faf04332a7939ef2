"""The ledger: one JSON line for each finished unit. A resume reads it to find what is finished.

Only the driver writes it. A line is appended after the file that it names is on the disk and, for
a run at a URL, has been copied there. If a crash left the last line incomplete, it is dropped.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

from spin.errors import ConfigError
from spin.run_dir.store import LOCAL_STORE, RunStore


class LedgerError(ConfigError):
    """A line of the ledger, other than an incomplete last one, cannot be read."""


class Ledger:
    """Finished units by name. If several lines have the same name, the last one is valid."""

    def __init__(self, path: Path, store: RunStore = LOCAL_STORE, read_only: bool = False) -> None:
        """Read the ledger.

        Args:
            path: The file, which need not exist.
            store: Publishes the ledger after each line.
            read_only: Do not remove an incomplete last line: a driver may be writing it just now.

        Raises:
            LedgerError: A line that ends with a newline cannot be read.
        """
        self.path = path
        self._store = store
        self._appending = threading.Lock()
        self._units: dict[str, dict[str, Any]] = {}
        data = path.read_bytes() if path.exists() else b""

        # Only a line that ends with a newline is complete. If such a line cannot be read, the file
        # was damaged: stop, because a run that forgets finished units makes them again.
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

        # A driver was killed while it wrote the last line. Remove the line: the next one must not
        # be appended to it.
        if len(whole) < len(data) and not read_only:
            with path.open("r+b") as handle:
                handle.truncate(len(whole))
                os.fsync(handle.fileno())

    def append(self, unit: str, **facts: Any) -> None:
        """Record that a unit is finished. Return once the line is on the disk and published.

        Several threads may call it.

        Args:
            unit: Name of the unit.
            facts: Values that JSON can hold.

        Raises:
            OSError: The line could not be written or published.
        """
        line = json.dumps({"unit": unit, **facts}).encode() + b"\n"
        with self._appending:
            self._write_line(line)
            # Publish before the unit counts as finished: another machine resumes from the URL.
            self._store.publish_ledger(self.path)
            # Keep the record in the form in which a resume reads it: JSON turns tuples into lists,
            # and keys that are numbers into strings.
            self._units[unit] = json.loads(line)

    def _write_line(self, line: bytes) -> None:
        """Append a line to the file; return once it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, so that one call hands over the whole line and tells how much was taken.
        with self.path.open("ab", buffering=0) as handle:
            before = handle.tell()
            try:
                # A disk that is nearly full takes only a part of the line, without an error.
                if handle.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(handle.fileno())
            except OSError:
                # Remove the part, so that the file ends with a complete line.
                handle.truncate(before)
                raise

    def get(self, unit: str) -> dict[str, Any] | None:
        """Return the facts of a finished unit, or None."""
        return self._units.get(unit)

    def family(self, prefix: str) -> list[dict[str, Any]]:
        """Return the facts of all finished units whose name begins with `prefix`."""
        # A copy: another thread may append meanwhile.
        return [record for unit, record in list(self._units.items()) if unit.startswith(prefix)]

    def __contains__(self, unit: str) -> bool:
        return unit in self._units
