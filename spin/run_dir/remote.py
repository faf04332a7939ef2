"""A run directory at a URL: each machine works in a local folder, and what is finished there goes up before it is announced.

The URL is the truth; the folder is a cache, the same absolute path on every machine. A process is attached to it once (`attach`). From then on `keep`
sends a finished file or folder up, `bring` sees that a local one is what lies at the URL, and `drop` removes one on both sides. Outside of the attached
folder, and where nothing is attached, all three leave things as they are, so that whoever reads and writes need not know.

The engine of it is fsspec, which has credentials and options from its own configuration and environment.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from spin.errors import ConfigError
from spin.run_dir.paths import RunLayout


def run_root(run_dir: str) -> Path:
    """The folder of a run directory: itself, or the local one of a URL, to which this process is attached from now on.

    What is small there has been brought, unless a driver of this machine is at work in it: that knows better.
    """
    if not is_url(run_dir):
        return Path(run_dir)
    remote = Remote(run_dir, cache_of(run_dir))
    attach(remote)
    lock = RunLayout(remote.root).lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return remote.root
        remote.synchronise()
    return remote.root


HEAVY = frozenset({"policy", "trainer", "samples", "pairs", "model"})
"""Folders that are fetched when somebody asks for them, not at once."""


LEDGER, LOCK = "ledger.jsonl", "lock"
"""What a run cannot be without, and what says that somebody is at work: here by a lock of the kernel, at the URL by what stands in it."""


ATTEMPTS = 3
"""How often a transfer is tried."""


LOCK_SECONDS = 60.0
"""How often a driver says that it lives. One that has not for five times as long is gone."""


Result = TypeVar("Result")


def is_url(run_dir: str) -> bool:
    """Whether a run directory is one for fsspec."""
    return "://" in run_dir


def cache_of(url: str) -> Path:
    """The local folder of a URL, in ``$SPIN_SCRATCH`` or ``~/.cache/spin``: its last name, and a digest of the whole."""
    scratch = os.environ.get("SPIN_SCRATCH", "~/.cache/spin")
    name = re.sub(r"[^\w.-]+", "_", url.rstrip("/").rpartition("/")[2]).strip(".") or "run"
    return Path(scratch).expanduser().resolve() / f"{name}-{sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Remote:
    """A URL and its local folder; can be sent to other processes."""

    url: str
    root: Path

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path there. Raises ConfigError when fsspec does not know the protocol, or misses a package for it."""
        from fsspec.core import url_to_fs

        try:
            file_system, path = url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"run_dir={self.url}: {error}; expected a folder, or a URL that fsspec knows here, such as s3://bucket/run with s3fs installed"
            ) from error
        return file_system, path.rstrip("/")

    def there(self, path: Path) -> str:
        """Where a local path lies at the URL."""
        relative = path.relative_to(self.root).as_posix()
        return self._place[1] if relative == "." else f"{self._place[1]}/{relative}"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "root": self.root}  # connections are each process's own

    def names(self) -> list[str]:
        """What lies at the top of the URL."""
        file_system, path = self._place
        return (
            sorted(name.rstrip("/").rpartition("/")[2] for name in file_system.ls(path, detail=False))
            if file_system.isdir(path)
            else []
        )

    def keep(self, path: Path, at_once: bool = False) -> None:
        """Send a file up, or a folder with all that is in it. `at_once`: whoever reads meanwhile sees the old one or the new one."""
        file_system, _ = self._place
        for file in files_in(path):
            target = self.there(file)
            file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            if at_once:
                patiently(lambda file=file, target=target: file_system.put_file(str(file), f"{target}.part"))  # type: ignore[misc]
                patiently(lambda target=target: file_system.mv(f"{target}.part", target))  # type: ignore[misc]
            else:
                patiently(lambda file=file, target=target: file_system.put_file(str(file), target))  # type: ignore[misc]
            self._note(file, file_system.ukey(target))

    def bring(self, path: Path) -> None:
        """Make a local file or folder what lies at the URL; where nothing does, it is not there."""
        file_system, base = self._place
        found = patiently(lambda: file_system.find(self.there(path)))
        local = {self.root / Path(name).relative_to(base) for name in found if not name.endswith(".part")}
        for stale in set(files_in(path)) - local:
            stale.unlink()
        for file in local:
            self._fetch(file)

    def _fetch(self, file: Path) -> None:
        file_system, _ = self._place
        key = file_system.ukey(self.there(file))
        if file.exists() and self._noted(file) == key:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
        patiently(lambda: file_system.get_file(self.there(file), str(temporary)))
        os.replace(temporary, file)
        self._note(file, key)

    def synchronise(self) -> None:
        """Bring all that is small: everything but the folders of HEAVY. Without a ledger there, nothing of a run that was there once stays here."""
        file_system, base = self._place
        if LEDGER not in self.names():
            for path in self.root.iterdir():
                if path.name != LOCK:
                    remove(path)
            return
        for name in patiently(lambda: file_system.find(base)):
            file = self.root / Path(name).relative_to(base)
            if not HEAVY & set(file.relative_to(self.root).parts[:-1]) and file.suffix != ".part":
                self._fetch(file)

    def drop(self, path: Path) -> None:
        """Remove a file or folder at the URL."""
        file_system, _ = self._place
        target = self.there(path)
        if file_system.exists(target):
            patiently(lambda: file_system.rm(target, recursive=True))

    def _mark(self, file: Path) -> Path:
        return self.root / ".remote" / f"{sha256(str(file.relative_to(self.root)).encode()).hexdigest()}.json"

    def _note(self, file: Path, key: str) -> None:
        """Remember which content of the URL a local file is, for all processes of this machine."""
        mark, stat = self._mark(file), file.stat()
        mark.parent.mkdir(parents=True, exist_ok=True)
        temporary = mark.with_name(f"{mark.name}.{os.getpid()}")
        temporary.write_text(json.dumps([key, stat.st_size, stat.st_mtime_ns]))
        os.replace(temporary, mark)

    def _noted(self, file: Path) -> str | None:
        """Which content of the URL a local file is; None when nobody knows, or when it was changed since."""
        try:
            key, size, modified = json.loads(self._mark(file).read_text())
        except (OSError, ValueError):
            return None
        stat = file.stat()
        return key if (stat.st_size, stat.st_mtime_ns) == (size, modified) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the URL against drivers of other machines. Raises ConfigError when one of them lives."""
        file_system, base = self._place
        path, mine = f"{base}/{LOCK}", {"host": socket.gethostname(), "pid": os.getpid()}
        if file_system.exists(path):
            with file_system.open(path) as handle:
                other = json.loads(handle.read() or b"{}")
            if (
                other.get("host") != mine["host"] and time.time() - other.get("time", 0) < 5 * LOCK_SECONDS
            ):  # of this machine the local lock knows
                raise ConfigError(
                    f"run_dir={self.url} is in use by another spin run (pid {other['pid']} on {other['host']}); wait for it, or choose another run_dir"
                )
        done = threading.Event()

        def say() -> None:
            file_system.makedirs(base, exist_ok=True)
            with file_system.open(path, "wb") as handle:
                handle.write(json.dumps({**mine, "time": time.time()}).encode())

        def live() -> None:
            while not done.wait(LOCK_SECONDS):
                try:
                    say()
                except OSError:
                    continue  # the run itself will notice

        say()
        threading.Thread(target=live, daemon=True, name="remote-lock").start()
        try:
            yield
        finally:
            done.set()
            if file_system.exists(path):
                file_system.rm(path)


def files_in(path: Path) -> list[Path]:
    """A file itself, or all files in a folder."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def patiently(transfer: Callable[[], Result]) -> Result:
    """Try several times what may fail for a moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return transfer()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(4.0 ** (attempt - 1))
    raise AssertionError


_ATTACHED: list[Remote] = []
"""The one of this process, if any."""


def attach(remote: Remote | None) -> None:
    """From now on `keep`, `bring` and `drop` of this process mean this one."""
    _ATTACHED[:] = [remote] if remote is not None else []


def attached() -> Remote | None:
    """What this process is attached to."""
    return _ATTACHED[0] if _ATTACHED else None


def _here(path: Path) -> Remote | None:
    remote = attached()
    return (
        remote if remote is not None and path.is_relative_to(remote.root) and not path.name.endswith(".tmp") else None
    )


def keep(path: Path, at_once: bool = False) -> None:
    """Send a finished file or folder up: see `Remote.keep`."""
    if (remote := _here(path)) is not None:
        remote.keep(path, at_once)


def bring(path: Path) -> None:
    """See that a local file or folder is what lies at the URL: see `Remote.bring`."""
    if (remote := _here(path)) is not None:
        remote.bring(path)


def announce(ledger: Path) -> None:
    """Send the ledger up, after what grows beside it."""
    if (metrics := ledger.with_name("metrics.jsonl")).exists():
        keep(metrics)
    keep(ledger, at_once=True)


def share(folder: Path, together: Callable[[], None], first: bool) -> None:
    """A folder into which several processes wrote, each on its machine: make it whole on that of the `first`. `together` waits until all call it."""
    remote = attached()
    if remote is None:
        return
    together()  # before anybody reads what another one may still write
    remote.keep(folder)
    together()
    if first:
        remote.bring(folder)
        remote.drop(folder)


def drop(path: Path) -> None:
    """Remove a file or folder, here and at the URL."""
    if (remote := _here(path)) is not None:
        remote.drop(path)
    remove(path)


def remove(path: Path) -> None:
    """Remove a local file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def names_in(root: Path) -> list[str]:
    """What lies in a run directory; where it is at a URL, there."""
    remote = attached()
    if remote is not None and remote.root == root:
        return remote.names()
    return [path.name for path in root.iterdir()] if root.is_dir() else []
