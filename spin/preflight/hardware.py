"""Find the device that a run computes on, and the rate that it reaches; only estimates use them.

The GPUs of a cluster that is joined (`cluster.address`) are assumed to be those of this machine.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from spin.config.run import RunConfig
from spin.config.training import Dtype

GPU_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}
"""Dense half-precision FLOP/s by a part of the GPU's name, from the vendor's data sheets."""

ASSUMED_GPU = ("A100", 80 << 30)
"""Name and bytes of memory of a GPU that the config asks for and this machine does not have."""

GPU_UTILISATION = 0.3
"""Share of these FLOP/s that a run reaches over all of its work; a guess."""

CPU_FLOPS = 40e9
"""FLOP/s that a run reaches on one core; the built-in model: 20e9 generating, 80e9 training."""


@dataclass(frozen=True)
class Device:
    """One GPU, or one core of the CPU."""

    name: str
    """``CPU``, ``GPU``, or ``assumed GPU`` where the config asks for one and there is none."""
    count: int
    memory: int
    """Bytes of one GPU, or of the whole machine."""
    flops: float
    """FLOP/s that a run reaches."""


def find_device(config: RunConfig) -> Device:
    """Return the device that the run will compute on."""
    # Without a GPU, or with `cluster.gpus=0`, the run computes on the CPU.
    gpus = list_gpus()
    if config.cluster.gpus == 0 or (config.cluster.gpus is None and not gpus):
        import psutil

        return Device("CPU", psutil.cpu_count() or 1, int(psutil.virtual_memory().total), CPU_FLOPS)

    # The first GPU stands for all of them.
    label = "assumed GPU"
    name, memory = ASSUMED_GPU
    if gpus:
        label = "GPU"
        name, memory = gpus[0]

    # Its rate by its name. In float32 without TF32 it is a sixteenth of the half-precision rate.
    flops = GPU_FLOPS["A100"]
    for part, rate in GPU_FLOPS.items():
        if part in name:
            flops = rate
            break
    flops *= GPU_UTILISATION
    if config.model.dtype is Dtype.float32:
        flops /= 16
    return Device(label, config.cluster.gpus or len(gpus), memory, flops)


def list_gpus() -> list[tuple[str, int]]:
    """Return name and bytes of memory of each NVIDIA GPU here, without a context on it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # Lines such as "NVIDIA H100 80GB HBM3, 81559".
    gpus = []
    for line in output.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            gpus.append((name.strip(), int(mebibytes) << 20))
    return gpus
