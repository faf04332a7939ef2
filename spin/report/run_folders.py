"""Find the runs that the user names, for the commands that read several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from spin.errors import ConfigError
from spin.run_dir.paths import RunLayout
from spin.run_dir.store import RunStore, open_store


def open_runs(run_dirs: Sequence[str]) -> list[RunStore]:
    """Open run directories: each folder, or the runs in it by name.

    Raises:
        ConfigError: No folder is given.
    """
    found: dict[RunStore, None] = {}
    for path in run_dirs:
        store = open_store(path)
        # A folder without a ledger is no run, but may hold the runs of a sweep or of a comparison.
        # If it holds none either, the reader of the run refuses it.
        ledgers: list[Path] = []
        if not RunLayout(store.root).ledger.exists():
            ledgers = sorted(store.root.glob("*/ledger.jsonl"))
            ledgers += sorted(store.root.glob("*/seed-*/ledger.jsonl"))
        for ledger in ledgers:
            found[RunStore(ledger.parent)] = None
        if not ledgers:
            found[store] = None
    if not found:
        raise ConfigError("run_dir=[]: expected a run directory, or several")
    return list(found)


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the directory of a single run, or the deepest folder that holds all runs."""
    if len(folders) == 1:
        return folders[0]
    common = os.path.commonpath([folder.resolve() for folder in folders])
    return Path(os.path.relpath(common))


def name_runs(stores: Sequence[RunStore]) -> list[str]:
    """Return distinct names: the last part of each path, or the path below the common folder."""
    paths = []
    for store in stores:
        path = store.root.resolve()
        # Not the name of the local copy of a URL.
        if store.remote is not None:
            path = Path("/") / store.remote.url.partition("://")[2]
        paths.append(path)
    # In a comparison the folder of a run is METHOD/seed-N.
    short = ["/".join(path.parts[-2:]) if path.name.startswith("seed-") else path.name for path in paths]
    if len(set(short)) == len(short):
        return short
    common = os.path.commonpath(paths)
    return [str(path.relative_to(common)) for path in paths]
