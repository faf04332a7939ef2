"""Lock a run directory, and its URL if it has one: a second launch on it is refused."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from spin.errors import ConfigError
from spin.run_dir.files import delete_path
from spin.run_dir.paths import RunLayout
from spin.run_dir.remote import Remote
from spin.run_dir.store import RunStore

LOCK_SECONDS = 60.0
"""Seconds between two updates of the lock at the URL."""

LOCK_EXPIRES_SECONDS = 5 * LOCK_SECONDS
"""Age in seconds at which a lock of another machine is ignored: its driver was killed."""


@contextmanager
def locked(layout: RunLayout, store: RunStore) -> Iterator[None]:
    """Hold the lock of the run directory, and that of its URL.

    The lock is the kernel's, so it is released when the process ends in any way. Raises ConfigError
    when another process holds it, or when the folder cannot be written.
    """
    # The lock file; it stays when the lock is released.
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        handle = layout.lock.open("a+")
    except OSError as error:
        raise ConfigError(f"run_dir={layout.root} cannot be written ({error.strerror}); choose another") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise ConfigError(
                f"run_dir={layout.root} is in use by another spin run (pid {handle.read()}); "
                "wait for it, or choose another run_dir"
            ) from error
        # Another process may have deleted the folder of a refused launch since the file was opened.
        if os.fstat(handle.fileno()).st_nlink == 0:
            raise ConfigError(f"run_dir={layout.root} was deleted just now by another command; start again")
        # The process id, for the message above and for `spin status`.
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        # A URL has a lock of its own, for drivers on other machines.
        if store.remote is None or store.root != layout.root:
            yield
            return
        try:
            with hold_remote_lock(store.remote):
                store.remote.fetch_small_files()
                yield
        except ConfigError:
            # A refused launch leaves no local folder. Everything in it is at the URL too.
            if layout.launching.exists() or not layout.ledger.exists():
                delete_path(layout.root)
            raise


@contextmanager
def hold_remote_lock(remote: Remote) -> Iterator[None]:
    """Keep other machines from working on the run at the URL.

    The lock is a file with the time of its last update. fsspec has no atomic lock for all kinds
    of URLs, so two machines that start at the same moment may both get it.

    Raises:
        ConfigError: Another machine holds the lock and has updated it lately.
    """
    file_system, base = remote.location
    path = f"{base}/{RunLayout(remote.root).lock.name}"
    host = socket.gethostname()

    # Refuse when another machine is at work.
    if file_system.exists(path):
        holder = json.loads(file_system.cat_file(path) or b"{}")
        age = time.time() - holder.get("time", 0)
        # Against a second driver of this machine, the lock of the local folder protects. A lock
        # file of this machine was therefore left by a driver that was killed.
        if holder.get("host") != host and age < LOCK_EXPIRES_SECONDS:
            raise ConfigError(
                f"run_dir={remote.url} is in use by another spin run (pid {holder['pid']} on {holder['host']}); "
                "wait for it, or choose another run_dir"
            )

    def write() -> None:
        file_system.makedirs(base, exist_ok=True)
        holder = {"host": host, "pid": os.getpid(), "time": time.time()}
        with file_system.open(path, "wb") as handle:
            handle.write(json.dumps(holder).encode())

    # Update the time in a thread for as long as the run lasts.
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(LOCK_SECONDS):
            # A failed update does no harm: the lock expires only after five. If the URL cannot
            # be reached for longer, the transfers of the run fail and end it.
            with suppress(OSError):
                write()

    write()
    # A daemon thread: it must not keep a process alive that has ended with an error.
    threading.Thread(target=keep_alive, daemon=True, name="remote-lock").start()
    try:
        yield
    finally:
        done.set()
        if file_system.exists(path):
            file_system.rm(path)
