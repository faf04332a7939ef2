"""Saved states inside a training stage: when one is due, how it is written and loaded.

The driver records in its ledger which states exist (`spin.orchestration.train_stage`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from spin.config.training import TrainingConfig
from spin.errors import CheckpointError
from spin.run_dir.files import file_sha256, rename_folder, unfinished
from spin.run_dir.store import LOCAL_STORE, RunStore

HASHING_THREADS = 8
"""Files of a state that are hashed at one time."""

TRAINING_TO_SAVING = 30
"""Least seconds of training for each second that the last state took. The weights, gradients and
moments of a 7B are 84 GB: 42 s at 2 GB/s, 7 % of training if they were saved every ten minutes."""

FILE_OF_RANK = re.compile(r"(?:__(\d+)_\d+\.distcp|random_states_(\d+)\.pkl)")
"""Names of the files that each worker writes; rank 0 writes all others."""


def state_folder(states: Path, step: int) -> Path:
    """Return the folder of the state after `step` optimizer steps."""
    return states / f"step-{step:06d}"


def state_digest(folder: Path) -> str:
    """Return the hex SHA-256 over names and contents of a state's files.

    A folder that does not exist has the digest of an empty one.
    """
    return combine_digests(hash_files(folder, list_files(folder)))


def list_files(folder: Path) -> list[Path]:
    """Return the files in a folder and in those below it; none if it does not exist."""
    return [path for path in folder.rglob("*") if path.is_file()]


def list_own_files(folder: Path, rank: int, world: int) -> list[Path]:
    """Return the files of a state that a worker wrote; each file belongs to one worker.

    Args:
        folder: The state, of which a worker on another machine may see its own files alone.
        rank: Number of the worker.
        world: Number of workers.
    """
    own = []
    for path in list_files(folder):
        writer = 0
        if match := FILE_OF_RANK.fullmatch(path.name):
            writer = int(match[1] or match[2])
        # No worker has such a number: the file is one of an older run.
        if writer >= world:
            writer = 0
        if writer == rank:
            own.append(path)
    return own


def hash_files(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the hex SHA-256 of files by their path in a folder."""
    # Hashing lets other threads run.
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = list(pool.map(file_sha256, files))
    return {str(file.relative_to(folder)): digest for file, digest in zip(files, digests, strict=True)}


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the digest of a state from those of its files, by path."""
    digest = hashlib.sha256()
    for name in sorted(digests, key=Path):
        digest.update(f"{name} {digests[name]}\n".encode())
    return digest.hexdigest()


class Saver:
    """Saves all that the next step depends on: weights, optimizer, random states of all workers."""

    def __init__(
        self,
        accelerator: Accelerator,
        states: Path,
        training: TrainingConfig,
        wanted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        store: RunStore = LOCAL_STORE,
    ) -> None:
        """Remember where and when to save.

        Args:
            accelerator: The workers.
            states: Folder of the states.
            training: `checkpoint_every` says when a state is due.
            wanted: Returns whether a state was requested.
            clock: Returns seconds.
            store: Where finished states go.
        """
        self._accelerator = accelerator
        self._states = states
        self._wanted = wanted
        self._clock = clock
        self._steps, self._seconds = training.save_every
        self._last = clock()
        self._cost = 0.0
        """Seconds that the last state took."""
        self._store = store

    def due(self, step: int) -> bool:
        """Return whether to save after `step`. Collective.

        An interval in minutes becomes longer where states are large, so that saving takes at most
        3 % of the time.

        All workers get the answer of rank 0, because clocks and requests differ between workers.
        """
        interval = max(self._seconds, TRAINING_TO_SAVING * self._cost)
        late = self._seconds > 0 and self._clock() - self._last >= interval
        answer = late or (self._steps > 0 and step % self._steps == 0) or self._wanted()
        if self._accelerator.num_processes == 1:
            return answer
        return bool(broadcast(torch.tensor([int(answer)], device=self._accelerator.device))[0])

    def save(self, step: int) -> str:
        """Write the state and rename it when it is complete. Collective.

        Returns:
            Its digest on rank 0; an empty string elsewhere.
        """
        began = self._clock()
        folder = state_folder(self._states, step)
        temporary = unfinished(folder)
        main = self._accelerator.is_main_process
        # Rank 0 removes what a killed run left before the others write.
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(temporary), safe_serialization=True)
        # Wait until all files are there.
        self._accelerator.wait_for_everyone()

        # Each worker hashes its own files: 84 GB in all with 7B and AdamW.
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        own = list_own_files(temporary, rank, world)
        digests = hash_files(temporary, own)
        if world > 1:
            for part in gather_object([digests]):
                digests |= part
            self._store.gather(temporary, own, self._accelerator.wait_for_everyone, main)
        if main:
            rename_folder(temporary, folder)
            self._store.publish(folder)
        if world > 1:
            self._accelerator.wait_for_everyone()
            # Other machines still have their files under the temporary name.
            shutil.rmtree(temporary, ignore_errors=True)
        digest = combine_digests(digests) if main else ""
        self._last = self._clock()
        self._cost = self._last - began
        return digest

    def load(self, step: int) -> None:
        """Continue from a state, which the driver has compared with its digest.

        Raises:
            CheckpointError: The state does not fit the optimizer.
        """
        folder = state_folder(self._states, step)
        self._store.fetch(folder)
        try:
            self._accelerator.load_state(str(folder))
        except ValueError as error:
            raise CheckpointError(
                f"saved state {folder} does not fit ({error}); expected one of this version of spin; "
                f"delete {self._states} to begin this training stage again"
            ) from error


def usable_states(states: Path, known: dict[str, str], store: RunStore = LOCAL_STORE) -> tuple[list[int], list[int]]:
    """Return which saved states are intact.

    Args:
        states: Folder of the states.
        known: Digest by step.
        store: From where missing files are fetched.

    Returns:
        The steps of intact states, and those of states that are lost or altered; both ascending.
    """
    steps = sorted(int(step) for step in known)
    for step in steps:
        store.fetch(state_folder(states, step))
    good: list[int] = []
    bad: list[int] = []
    for step in steps:
        folder = state_folder(states, step)
        intact = folder.is_dir() and state_digest(folder) == known[str(step)]
        (good if intact else bad).append(step)
    return good, bad


def prune_states(states: Path, keep: Iterable[int], store: RunStore = LOCAL_STORE) -> None:
    """Remove every state older than those of the steps in `keep`.

    Newer ones stay: the trainer may have saved a state of which the driver has not heard yet.
    """
    oldest = min(keep)
    for old in states.glob("step-*"):
        if int(old.name.removeprefix("step-").removesuffix(".tmp")) < oldest:
            store.delete(old)
