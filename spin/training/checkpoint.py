"""States inside a training stage: when one is due, how it is written and found again.

Not here: the promoted policy (`model.py`), and which states the run still knows (the driver's ledger, `iteration.py`).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from spin.config.training import TrainingConfig
from spin.run_dir.files import file_sha256, rename_folder, unfinished
from spin.run_dir.store import LOCAL_STORE, RunStore


def state_folder(states: Path, step: int) -> Path:
    """Where the state after `step` optimizer steps lies."""
    return states / f"step-{step:06d}"


def state_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of a state's files; of nothing, where the folder is gone."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


class Saver:
    """Saves everything that the next step depends on: weights, optimizer, schedule, random states of all workers."""

    def __init__(
        self,
        accelerator: Accelerator,
        states: Path,
        training: TrainingConfig,
        wanted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        store: RunStore = LOCAL_STORE,
    ) -> None:
        """`wanted`: whether somebody waits for a state."""
        self._accelerator, self._states, self._wanted, self._clock = accelerator, states, wanted, clock
        self._steps, self._seconds = training.save_every
        self._last = clock()
        self._store = store

    def due(self, step: int) -> bool:
        """Whether to save after `step`. All workers get the answer of the first: only its clock counts, and who asks it."""
        late = self._seconds > 0 and self._clock() - self._last >= self._seconds
        answer = late or (self._steps > 0 and step % self._steps == 0) or self._wanted()
        if self._accelerator.num_processes == 1:
            return answer
        return bool(broadcast(torch.tensor([int(answer)], device=self._accelerator.device))[0])

    def save(self, step: int) -> str:
        """Write the state, finished by rename. Returns its digest, the same on every worker's side of the call only for the first."""
        folder = state_folder(self._states, step)
        temporary, main = unfinished(folder), self._accelerator.is_main_process
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(temporary), safe_serialization=True)
        if self._accelerator.num_processes > 1:
            self._store.gather(temporary, self._accelerator.wait_for_everyone, main)
        self._accelerator.wait_for_everyone()
        digest = state_digest(temporary) if main else ""
        if main:
            rename_folder(temporary, folder)
            self._store.publish(folder)
        self._last = self._clock()
        return digest

    def load(self, step: int) -> None:
        """Go on from a state; the driver has checked it against its digest."""
        self._store.fetch(state_folder(self._states, step))
        self._accelerator.load_state(str(state_folder(self._states, step)))


def usable_states(states: Path, known: dict[str, str], store: RunStore = LOCAL_STORE) -> tuple[list[int], list[int]]:
    """The steps of the states that are as they were finished, and those that are lost or altered; `known`: step to digest. Each ascending."""
    steps = sorted(int(step) for step in known)
    for step in steps:
        store.fetch(state_folder(states, step))
    good = [
        step
        for step in steps
        if state_folder(states, step).is_dir() and state_digest(state_folder(states, step)) == known[str(step)]
    ]
    return good, [step for step in steps if step not in good]


def prune_states(states: Path, keep: Iterable[int], store: RunStore = LOCAL_STORE) -> None:
    """Remove every state older than those of the steps in `keep`. A newer one is the trainer's, who may be ahead of what the driver has heard."""
    oldest = min(keep)
    for old in states.glob("step-*"):
        if int(old.name.removeprefix("step-").removesuffix(".tmp")) < oldest:
            store.delete(old)
