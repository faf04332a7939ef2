"""What the machine at hand can do: its GPUs by name, or a CPU by a product that is timed. Figures for `spin.preflight.estimate`; nothing is tuned by them.

Not here: the GPUs of a cluster that is joined (`cluster.address`); they are taken to be like those of this machine.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass

from spin.config.run import RunConfig
from spin.config.training import Dtype

GPUS = {
    "H200": (989e12, 4.8e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.86e12),
    "A10": (125e12, 0.6e12),
    "4090": (165e12, 1.0e12),
    "V100": (125e12, 0.9e12),
}
"""By a part of the name, the longer first: dense half-precision FLOP/s and bytes/s of memory, from the vendor's data sheets."""


ASSUMED = ("A100", 80 << 30)
"""Where GPUs are asked for and none is here: a name of GPUS, and bytes of memory."""


FLOAT32_SHARE = 1 / 16
"""Of a GPU's half-precision rate, without TF32."""


CPU_BANDWIDTH = 10e9
"""Bytes/s of memory that one thread reads, about."""


TRIAL_SECONDS = 0.2


@dataclass(frozen=True)
class Device:
    """One GPU, or the CPU as one thread sees it."""

    name: str
    kind: str
    """``gpu`` or ``cpu``."""
    count: int
    memory: int
    """Bytes: of one GPU, or of the whole machine."""
    flops: float
    """Floating-point operations a second of a plain matrix product in the run's precision."""
    bandwidth: float
    """Bytes a second."""
    known: bool = True
    """Whether it was found here, and not assumed."""


def find_device(config: RunConfig, hidden: int, inner: int) -> Device:
    """What the run will compute on. `hidden` and `inner` are the model's, for the shape of the trial product on a CPU."""
    found = gpus()
    half = config.model.dtype is Dtype.bfloat16
    if config.cluster.gpus != 0 and (found or config.cluster.gpus is not None):
        name, memory = found[0] if found else ASSUMED
        flops, bandwidth = next((rates for part, rates in GPUS.items() if part in name), GPUS[ASSUMED[0]])
        count = config.cluster.gpus or len(found)
        return Device(name, "gpu", count, memory, flops * (1 if half else FLOAT32_SHARE), bandwidth, bool(found))
    import psutil

    return Device(
        "CPU",
        "cpu",
        psutil.cpu_count() or 1,
        int(psutil.virtual_memory().total),
        product_rate(hidden, inner, half),
        CPU_BANDWIDTH,
    )


def gpus() -> list[tuple[str, int]]:
    """Name and bytes of memory of each NVIDIA GPU here. Asked of the driver's own tool: torch would open a context on one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.rsplit(",", 1) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(name.strip(), int(mebibytes) << 20) for name, mebibytes in lines if mebibytes.strip().isdigit()]


def product_rate(hidden: int, inner: int, half: bool) -> float:
    """FLOP/s of one thread in products of the model's own shape, in about TRIAL_SECONDS: the best of them, since other work only slows one down."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dtype, rows = torch.bfloat16 if half else torch.float32, 512
        hidden, inner = min(hidden, 2048), min(inner, 2048)  # as fast, and it takes no longer than it may
        left, right = torch.randn(rows, hidden).to(dtype), torch.randn(hidden, inner).to(dtype)
        best, end = float("inf"), time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < end or best == float("inf"):
            start = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * rows * hidden * inner / best
