"""The store of a run directory: its local folder, and the URL that it is a cache of, if any.

A writer publishes a file once it is complete, and only then the ledger line that names it. A
reader fetches a file that may have been written on another machine before it opens it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spin.run_dir.files import delete_path
from spin.run_dir.paths import RunLayout
from spin.run_dir.remote import Remote, cache_folder, is_url


@dataclass(frozen=True)
class RunStore:
    """A run directory as readers and writers are given it. Can be sent to other processes.

    Without `remote`, nothing is transferred. Paths outside `root`, such as a model folder of the
    user, are left alone.
    """

    root: Path
    remote: Remote | None = None

    def _remote_of(self, path: Path) -> Remote | None:
        """Return the remote that holds a path, or None if the path is local only."""
        return self.remote if path.is_relative_to(self.root) else None

    def publish(self, path: Path) -> None:
        """Copy a complete file or folder to the URL."""
        if remote := self._remote_of(path):
            remote.publish(path)

    def fetch(self, path: Path) -> None:
        """Make a file or folder equal to the one at the URL; delete it if there is none."""
        if remote := self._remote_of(path):
            remote.fetch(path)

    def has_weights(self, policy: Path) -> bool:
        """Return True when the folder of a policy holds weights, at the URL if there is one."""
        if remote := self._remote_of(policy):
            return remote.has_weights(policy)
        return any(policy.glob("*.safetensors"))

    def delete(self, path: Path) -> None:
        """Delete a file or folder, at the URL too."""
        if remote := self._remote_of(path):
            remote.delete(path)
        delete_path(path)

    def gather(self, folder: Path, barrier: Callable[[], None], is_first: bool) -> None:
        """Collect on one machine the files that processes of several machines wrote into a folder.

        Args:
            folder: The same path in all processes, which all call this.
            barrier: Returns once all processes have called it.
            is_first: Whether this process is the one that gets all files.
        """
        if self.remote is None:
            return
        barrier()  # all processes have written their files
        self.remote.publish(folder)
        barrier()
        if is_first:
            self.remote.fetch(folder)
            self.remote.delete(folder)

    def publish_ledger(self, path: Path) -> None:
        """Publish the ledger, after the metrics file beside it."""
        if remote := self._remote_of(path):
            metrics = path.with_name(RunLayout(self.root).metrics.name)
            if metrics.exists():
                remote.publish(metrics)
            remote.publish(path, atomically=True)

    def list_names(self) -> list[str]:
        """Return the names at the top of the run directory, at the URL if it has one."""
        if self.remote is not None:
            return self.remote.list_names()
        if not self.root.is_dir():
            return []
        return [path.name for path in self.root.iterdir()]


LOCAL_STORE = RunStore(Path())
"""A store that transfers nothing, for files that belong to no run at a URL."""


def open_store(run_dir: str) -> RunStore:
    """Return the store of a run directory, given as a folder or as a URL.

    The small files of a URL are fetched, unless a driver of this machine works in its local
    folder: that folder is newer than the URL.
    """
    if not is_url(run_dir):
        return RunStore(Path(run_dir))
    remote = Remote(run_dir, cache_folder(run_dir))
    store = RunStore(remote.root, remote)
    lock = RunLayout(remote.root).lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return store
        remote.fetch_small_files()
    return store
