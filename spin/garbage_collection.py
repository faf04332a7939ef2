"""Keep Python's garbage collector from walking through imported modules, which hold no garbage.

The imports of torch, transformers and vLLM make several hundred thousand objects. The collector
walks through all of them again and again while they are imported, and once more when the process
ends: 2 s of CPU time in the driver and 1.5 s in an engine, as measured.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (50_000, 20, 10)
"""Objects, and numbers of collections, after which the three generations are collected.

Python's own values are 700, 10 and 10. The driver holds no tensors, so its garbage is small.
"""


def collect_rarely() -> None:
    """Let the process of a command collect rarely while it runs, and not at its end."""
    gc.set_threshold(*THRESHOLDS)
    # The memory of a process that ends is freed as a whole.
    atexit.register(gc.freeze)


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Collect nothing while modules are imported, and ignore their objects in later collections.

    For the start of a process: garbage that exists at the end of the block is never freed.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
