"""A private folder for the files of a run's own Ray: session, sockets, logs and temporary files.

Only the user may enter it: who can write to Ray's session could run code in its processes. It is
deleted with the run; what killed runs left is deleted at the next start.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PREFIX = "spin-ray-"

LONGEST_BASE = 16
"""Most characters of the folder above: Ray makes Unix sockets some 90 characters below it, and the
path of one may have 107."""


@contextmanager
def ray_folder(kept_logs: Path) -> Iterator[Path]:
    """Provide the folder inside the context; temporary files of all processes go there too.

    Args:
        kept_logs: Where Ray's logs are moved if the context ends with an error.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > LONGEST_BASE:
        base = Path("/tmp")
    _delete_left_over(base)
    # Mode 0700. The number tells a later run whether the owner is alive.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
    temporary = folder / "tmp"
    temporary.mkdir()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    try:
        # A folder inside: Ray lets everybody write to the one that it is given.
        yield folder / "ray"
    except Exception:
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


def _delete_left_over(base: Path) -> None:
    """Delete what killed processes of this user left, and this process before a restart."""
    for folder in base.glob(f"{PREFIX}*-*"):
        with suppress(OSError, ValueError):
            owner = int(folder.name.removeprefix(PREFIX).split("-")[0])
            alive = psutil.pid_exists(owner) and owner != os.getpid()
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink() and not alive:
                shutil.rmtree(folder, ignore_errors=True)
