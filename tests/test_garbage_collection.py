"""Imports and the end of a process are not walked through by the collector."""

import gc
import subprocess
import sys

import pytest

from spin.garbage_collection import THRESHOLDS, uncollected_imports

COLLECTIONS = """
import gc
from spin.garbage_collection import collect_rarely
collect_rarely()
print(*gc.get_threshold())
def count(phase, info):
    if phase == "start":
        print("objects", len(gc.get_objects()))
gc.callbacks.append(count)
"""


def test_a_command_collects_rarely_and_not_at_its_end() -> None:
    def collected(program: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    plain = COLLECTIONS.replace("collect_rarely()\n", "")
    _, *ends = collected(plain)
    assert len(ends) > 0
    walked = max(int(line.split()[1]) for line in ends)

    first, *ends = collected(COLLECTIONS)
    assert first == " ".join(map(str, THRESHOLDS))
    # The objects of the imported modules are frozen: only those that the end makes are seen.
    assert all(int(line.split()[1]) < walked / 10 for line in ends)


def test_nothing_is_collected_in_the_block_and_its_objects_are_frozen_after_it() -> None:
    frozen = gc.get_freeze_count()
    try:
        with uncollected_imports():
            assert not gc.isenabled()
            made: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(made)
    finally:
        gc.unfreeze()


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    gc.disable()
    try:
        with pytest.raises(ImportError), uncollected_imports():
            raise ImportError
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
