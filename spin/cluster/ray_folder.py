"""A private folder for the files of a run's own Ray: session, sockets, logs and temporary files.

Only the user may enter it: who can write to Ray's session could run code in its processes. It is
deleted with the run; what killed runs left is deleted by the next command of the same user.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PREFIX = "spin-ray-"

LONGEST_BASE = 16
"""Most characters of the folder above: Ray makes Unix sockets some 90 characters below it, and the
path of one may have 107."""

SHORT_BASE = Path("/tmp")
"""The folder above where that of TMPDIR has too long a path."""


@contextmanager
def ray_folder(kept_logs: Path) -> Iterator[Path]:
    """Provide the folder inside the context; temporary files of all processes go there too.

    Args:
        kept_logs: Where Ray's logs are moved if the context ends with an error.
    """
    delete_abandoned()
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > LONGEST_BASE:
        base = SHORT_BASE
    folder, lock = _make_locked(base)
    temporary = folder / "tmp"
    temporary.mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    try:
        # A folder inside: Ray lets everybody write to the one that it is given.
        yield folder / "ray"
    except Exception:  # raised again below, whatever it is
        logs = folder / "ray" / "session_latest" / "logs"
        if logs.is_dir():
            shutil.rmtree(kept_logs, ignore_errors=True)
            shutil.copytree(logs, kept_logs, ignore_dangling_symlinks=True)
        raise
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@cache
def process_folder() -> Path:
    """Return the folder for temporary files of this process, which goes with the process.

    torch.compile of its actors works there too: otherwise torch makes a folder in TMPDIR when it is
    imported, and leaves it there.
    """
    # The lock is held until the process ends.
    folder, _ = _make_locked(Path(tempfile.gettempdir()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def delete_abandoned() -> None:
    """Delete the folders that killed processes of this user left, not those of living ones."""
    for base in {Path(tempfile.gettempdir()), SHORT_BASE}:
        for folder in base.glob(f"{PREFIX}*"):
            _delete_unlocked(folder)


def _make_locked(base: Path) -> tuple[Path, int]:
    """Make a folder of mode 0700; return it with the file descriptor that holds its lock.

    The lock ends with the process, or with its restart. A process id in the name would not do:
    processes of another container that shares the folder have other ids.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        # Another process has deleted it before it was locked.
        os.close(lock)


def _delete_unlocked(folder: Path) -> None:
    """Delete a folder that a killed process of this user left."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        # Its process is alive.
        return
    finally:
        os.close(lock)
