"""The store of a run directory: its local folder and, if the run is at a URL, the transfers.

A writer publishes a file when it is complete, and only after that the ledger line that names it.
A reader fetches a file before it opens it, because another machine may have written it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin.run_dir.credentials import hide_passwords
from spin.run_dir.files import delete_path
from spin.run_dir.paths import RunLayout
from spin.run_dir.remote import Remote, cache_folder, is_url


@dataclass(frozen=True)
class RunStore:
    """A run directory, as its readers and writers use it. Can be sent to other processes.

    Without `remote`, nothing is transferred. Paths outside `root`, such as the folder of a user's
    model, are never transferred.
    """

    root: Path
    """The local folder."""
    remote: Remote | None = None
    """The URL; None if the run is only in the local folder."""

    def _remote_of(self, path: Path) -> Remote | None:
        """Return the remote that holds a path, or None if the path is local only."""
        return self.remote if path.is_relative_to(self.root) else None

    def publish(self, path: Path) -> None:
        """Copy a complete file or folder to the URL."""
        if remote := self._remote_of(path):
            remote.publish(path)

    def fetch(self, path: Path) -> None:
        """Make a local file or folder equal to the one at the URL; delete it if there is none."""
        if remote := self._remote_of(path):
            remote.fetch(path)

    def has_weights(self, policy: Path) -> bool:
        """Return True when the folder of a policy holds weights, at the URL if there is one."""
        if remote := self._remote_of(policy):
            return remote.has_weights(policy)
        return any(policy.glob("*.safetensors"))

    def delete(self, path: Path) -> None:
        """Delete a file or folder, at the URL too."""
        # First at the URL: if a crash follows, a later fetch deletes the local file as well.
        if remote := self._remote_of(path):
            remote.delete(path)
        delete_path(path)

    def copy_folder(self, source: Path, target: Path) -> None:
        """Replace a folder at the URL by a copy of another one; without a URL, do nothing."""
        if remote := self._remote_of(target):
            remote.copy_folder(source, target)

    def gather(self, folder: Path, own: Sequence[Path], barrier: Callable[[], None], is_first: bool) -> None:
        """Collect on one machine the files that processes of several machines wrote into a folder.

        Args:
            folder: The same path in all processes, which all call this.
            own: The files that this process wrote; those of other processes of this machine are
                not sent again.
            barrier: Returns after all processes have called it.
            is_first: True in the process that gets all files.
        """
        # A local run has all processes on one machine, or a folder that all machines share.
        if self.remote is None:
            return
        for file in own:
            self.remote.publish(file)
        # Wait until all files are at the URL.
        barrier()
        if is_first:
            self.remote.fetch(folder)
            # The folder is a temporary one: it is published under its final name later.
            self.remote.delete(folder)

    def publish_ledger(self, path: Path) -> None:
        """Publish the ledger, after the metrics file beside it."""
        if remote := self._remote_of(path):
            # The ledger is last: a machine that reads it may rely on all other files.
            metrics = path.with_name(RunLayout(self.root).metrics.name)
            if metrics.exists():
                remote.publish(metrics)
            # A reader must not find a part of it: that would look like a run with fewer units.
            remote.publish(path, atomically=True)

    def list_names(self) -> list[str]:
        """Return the names of the files and folders at the top of the run directory.

        They are read at the URL, if there is one.
        """
        if self.remote is not None:
            return self.remote.list_names()
        if not self.root.is_dir():
            return []
        return [path.name for path in self.root.iterdir()]


LOCAL_STORE = RunStore(Path())
"""A store that transfers nothing, for files that do not belong to a run at a URL."""


def open_store(run_dir: str) -> RunStore:
    """Return the store of a run directory, given as a folder or as a URL.

    The small files of a URL are fetched to its local folder. If a driver of this machine is at work
    there, nothing is fetched: the folder is then newer than the URL.
    """
    if not is_url(run_dir):
        return RunStore(Path(run_dir))

    # The driver holds the lock of the local folder. Its process may end at any moment, so keep the
    # lock during the fetch.
    url = hide_passwords(run_dir)
    remote = Remote(url, cache_folder(url))
    store = RunStore(remote.root, remote)
    lock = RunLayout(remote.root).lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return store
        try:
            remote.fetch_small_files()
        finally:
            # Leave no folder behind if there is no run at the URL, or none that can be reached.
            if not RunLayout(remote.root).ledger.exists():
                delete_path(remote.root)
    return store
