"""Transfer files between the local folder of a run and a URL that fsspec can open.

The run itself is at the URL; the folder is a cache of it at the same absolute path on every
machine. Credentials and options come from fsspec's own configuration and environment, or a password
from the URL itself: see `spin.run_dir.credentials`.

`fetch` records the version of each local file, because two tools of fsspec do not fit:
`generic.rsync` compares sizes only, but a trainer state that is written again has the size of the
old one. `filecache` fetches again what this machine has just published, does not notice a local
file that was altered, and its list of files is not safe against two processes of one machine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from spin.errors import ConfigError
from spin.run_dir.credentials import add_password, hide_passwords
from spin.run_dir.files import delete_path
from spin.run_dir.paths import RunLayout

LARGE_FOLDERS = frozenset({"policy", "policy_best", "trainer", "samples", "pairs", "model"})
"""Folders whose files are fetched one by one when they are needed."""

PARTIAL = ".part"
"""End of the name of a file that is still being transferred."""

ATTEMPTS = 3
"""Number of times a transfer is tried."""

Result = TypeVar("Result")


def is_url(run_dir: str) -> bool:
    """Return True when a run directory is given as a URL."""
    return "://" in run_dir


def cache_folder(url: str) -> Path:
    """Return the local folder of a URL, inside ``$SPIN_SCRATCH`` or ``~/.cache/spin``."""
    url = url.rstrip("/")
    scratch = Path(os.environ.get("SPIN_SCRATCH", "~/.cache/spin")).expanduser().resolve()
    last_part = url.rpartition("/")[2]
    # Without characters that a shell would need quotes for, and no hidden folder.
    name = re.sub(r"[^\w.-]+", "_", last_part).strip(".") or "run"
    # The digest distinguishes URLs that end in the same name.
    return scratch / f"{name}-{sha256(url.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Remote:
    """A URL and its local folder. Can be pickled: each process opens its own connections."""

    url: str
    """Without a password, so that it can be shown."""
    root: Path

    @cached_property
    def location(self) -> tuple[Any, str]:
        """Return fsspec's file system and the path in it.

        Raises:
            ConfigError: fsspec cannot open such a URL here.
        """
        # Imported here, because a local run does not need it.
        from fsspec.core import url_to_fs

        # No cache of listings: other machines write to the URL too.
        try:
            file_system, path = url_to_fs(add_password(self.url), use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"run_dir={self.url}: {hide_passwords(str(error))}; expected a folder, or a URL that fsspec knows "
                "here, such as s3://bucket/run with s3fs installed"
            ) from error
        return file_system, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        # Without `location`: open connections cannot be pickled. Another process does not know the
        # password yet.
        return {"url": add_password(self.url), "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(url=hide_passwords(state["url"]), root=state["root"])

    def _target(self, path: Path) -> str:
        """Return the path at the URL for a local path."""
        base = self.location[1]
        relative = path.relative_to(self.root).as_posix()
        return base if relative == "." else f"{base}/{relative}"

    def _local(self, target: str) -> Path:
        """Return the local path for a path at the URL."""
        return self.root / Path(target).relative_to(self.location[1])

    def list_names(self) -> list[str]:
        """Return the names of the files and folders at the top of the URL."""
        file_system, base = self.location
        if not file_system.isdir(base):
            return []
        paths = file_system.ls(base, detail=False)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def publish(self, path: Path, atomically: bool = False) -> None:
        """Copy a local file, or all files of a folder, to the URL.

        Args:
            path: A file or folder below `root`.
            atomically: Rename at the URL, so that a reader sees the old file or the new one.
        """
        file_system, _ = self.location
        for file in list_files(path):
            target = self._target(file)
            # A disk needs the folder; an object store has no folders and ignores this call.
            file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            if atomically:
                retry(partial(file_system.put_file, str(file), target + PARTIAL))
                retry(partial(file_system.mv, target + PARTIAL, target))
            else:
                retry(partial(file_system.put_file, str(file), target))
            # This machine need not fetch the file that it has just published.
            self._note_version(file, file_system.ukey(target))

    def fetch(self, path: Path) -> None:
        """Make a local file or folder equal to the one at the URL; delete it if there is none."""
        file_system, _ = self.location
        targets = retry(partial(file_system.find, self._target(path)))
        files = {self._local(target) for target in targets if not target.endswith(PARTIAL)}
        # Delete what is not at the URL, such as the weights of a policy that was replaced.
        for stale in set(list_files(path)) - files:
            stale.unlink()
        for file in files:
            self._fetch_file(file)

    def _fetch_file(self, file: Path) -> None:
        """Fetch one file, unless the local file is the same version."""
        file_system, _ = self.location
        # fsspec's key of a version: an ETag, or a hash of what else the kind of URL knows.
        version = file_system.ukey(self._target(file))
        if self._is_version(file, version):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        # Other processes of this machine may fetch the same file at the same time: each writes and
        # renames its own copy.
        temporary = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
        retry(partial(file_system.get_file, self._target(file), str(temporary)))
        os.replace(temporary, file)
        self._note_version(file, version)

    def fetch_small_files(self) -> None:
        """Fetch all files outside LARGE_FOLDERS.

        If there is no run at the URL, delete the files in the local folder: they belong to an older
        run that was deleted at the URL.
        """
        file_system, base = self.location
        layout = RunLayout(self.root)
        # The caller holds the lock file, so it stays.
        if layout.ledger.name not in self.list_names():
            for path in self.root.iterdir():
                if path.name != layout.lock.name:
                    delete_path(path)
            return
        for target in retry(partial(file_system.find, base)):
            file = self._local(target)
            folders = file.relative_to(self.root).parts[:-1]
            if LARGE_FOLDERS.isdisjoint(folders) and not target.endswith(PARTIAL):
                self._fetch_file(file)

    def has_weights(self, policy: Path) -> bool:
        """Return True when the folder of a policy holds weights at the URL."""
        # The list of names is enough: weights are too large to be fetched for this question.
        file_system, _ = self.location
        targets = retry(partial(file_system.find, self._target(policy)))
        return any(target.endswith(".safetensors") for target in targets)

    def delete(self, path: Path) -> None:
        """Delete a file or folder at the URL, if it is there."""
        file_system, _ = self.location
        target = self._target(path)
        if file_system.exists(target):
            retry(partial(file_system.rm, target, recursive=True))

    def copy_folder(self, source: Path, target: Path) -> None:
        """Replace a folder at the URL by a copy of another one there, made by its server."""
        file_system, _ = self.location
        self.delete(target)
        for path in retry(partial(file_system.find, self._target(source))):
            copy = self._target(target / self._local(path).relative_to(source))
            # A disk needs the folder; an object store has no folders and ignores this call.
            file_system.makedirs(copy.rpartition("/")[0], exist_ok=True)
            self._copy_file(path, copy)

    def _copy_file(self, source: str, target: str) -> None:
        """Copy a file of the URL to another path of it."""
        file_system, _ = self.location
        try:
            retry(partial(file_system.cp_file, source, target))
        except NotImplementedError:
            # The server has no such command, as with FTP: copy through this machine.
            with TemporaryDirectory(dir=self.root) as folder:
                passed = Path(folder) / "file"
                retry(partial(file_system.get_file, source, str(passed)))
                retry(partial(file_system.put_file, str(passed), target))

    def _note(self, file: Path) -> Path:
        """Return the path of the note about a local file, which all local processes read.

        The note holds the version of the file at the URL, and the size and time of the local file.
        """
        # A digest as name: a path has slashes, and may be longer than a name can be.
        name = sha256(str(file.relative_to(self.root)).encode()).hexdigest()
        return self.root / ".remote" / name

    def _note_version(self, file: Path, version: str) -> None:
        """Write the note that a local file equals this version of the file at the URL."""
        note = self._note(file)
        note.parent.mkdir(parents=True, exist_ok=True)
        # Another process may write the same note: each renames its own copy.
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_text(f"{version} {file_state(file)}")
        os.replace(temporary, note)

    def _is_version(self, file: Path, version: str) -> bool:
        """Return True when the local file is this version and has not changed since the note."""
        try:
            return self._note(file).read_text() == f"{version} {file_state(file)}"
        except FileNotFoundError:
            return False


def list_files(path: Path) -> list[Path]:
    """Return a file itself, or all files in a folder and its subfolders."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def file_state(file: Path) -> str:
    """Return the size and the modification time of a file; they change when it is altered."""
    # Not a digest: it would read all weights before each use.
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def retry(transfer: Callable[[], Result]) -> Result:
    """Return the result of a transfer; try it up to ATTEMPTS times when the connection fails."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return transfer()
        # A missing file stays missing; any other OSError may be a fault of the connection.
        except FileNotFoundError:
            raise
        except OSError:
            # Wait 1 s, then 4 s.
            time.sleep(4.0**attempt)
    return transfer()
