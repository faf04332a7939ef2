"""Find the device that a run computes on, and the rate that it reaches; only estimates use them.

The GPUs of a cluster that is joined (`cluster.address`) are assumed to be those of this machine.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from spin.config.gpus import GPUS
from spin.config.run import RunConfig
from spin.config.training import Dtype

DEFAULT_GPU = "A100"
"""GPU that stands for one that the config asks for and this machine does not have, and the one
whose speed stands for that of an unknown GPU."""

GPU_UTILISATION = 0.3
"""Share of the data sheet's FLOP/s that training and scoring reach, where a prompt counts once for
each completion. Measured with 0.5B in bfloat16 on an H100: 0.30 and 0.29; compiled layers 0.42."""

CPU_FLOPS = 40e9
"""FLOP/s that a run reaches on one core; the built-in model: 20e9 generating, 80e9 training."""


@dataclass(frozen=True)
class Device:
    """One GPU, or one core of the CPU."""

    name: str
    """``CPU``, ``GPU``, or such as ``assumed H100`` for one that is not here."""
    count: int
    memory: int
    """Bytes of one GPU, or of the whole machine."""
    flops: float
    """FLOP/s that training and scoring reach."""
    peak: float = 0.0
    """FLOP/s of a GPU by its data sheet; 0 for a CPU."""
    bandwidth: float = 0.0
    """Bytes per second of a GPU's memory by its data sheet; 0 for a CPU."""


def find_device(config: RunConfig) -> Device:
    """Return the device that the run will compute on."""
    assumed = config.cluster.assumed
    if assumed is not None:
        name, memory = assumed.name, assumed.gpu.memory
        return _describe_gpu(config, f"assumed {name}", config.cluster.gpus or assumed.count, name, memory)

    # Without a GPU, or with `cluster.gpus=0`, the run computes on the CPU.
    gpus = list_gpus()
    if config.cluster.gpus == 0 or (config.cluster.gpus is None and not gpus):
        import psutil

        return Device("CPU", psutil.cpu_count() or 1, int(psutil.virtual_memory().total), CPU_FLOPS)

    # The first GPU stands for all of them.
    if gpus:
        name, memory = gpus[0]
        return _describe_gpu(config, "GPU", config.cluster.gpus or len(gpus), name, memory)
    assert config.cluster.gpus is not None
    memory = GPUS[DEFAULT_GPU].memory
    return _describe_gpu(config, f"assumed {DEFAULT_GPU}", config.cluster.gpus, DEFAULT_GPU, memory)


def _describe_gpu(config: RunConfig, label: str, count: int, name: str, memory: int) -> Device:
    """Return a GPU with the speed that its name tells."""
    gpu = GPUS[DEFAULT_GPU]
    for part, known in GPUS.items():
        if part in name:
            gpu = known
            break
    # In float32 without TF32 it is a sixteenth of the half-precision rate.
    peak = gpu.flops
    if config.model.dtype is Dtype.float32:
        peak /= 16
    return Device(label, count, memory, GPU_UTILISATION * peak, peak, gpu.bandwidth)


def count_gpus(config: RunConfig) -> int:
    """Return the GPUs that a run may use: assumed ones, those of the config, or those here."""
    if config.cluster.gpus is not None:
        return config.cluster.gpus
    if config.cluster.assumed is not None:
        return config.cluster.assumed.count
    return len(list_gpus())


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
