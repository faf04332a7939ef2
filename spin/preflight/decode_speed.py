"""Estimate the speed at which an engine generates on a GPU: its memory bounds it, not its FLOP/s.

    step = host + (weights + cache of the sequences that run) / bandwidth

Each step makes one token of every sequence that runs.
"""

from __future__ import annotations

from spin.preflight.hardware import Device
from spin.preflight.memory import SAMPLED_SEQUENCES
from spin.preflight.operations import FORWARD

STEP_SECONDS = 0.010
"""Seconds of a step besides reading memory: scheduling, sampling, start of kernels. With 0.5B on an
H100, 256 sequences made 24,000 tokens/s; one measurement."""


def decode_flops(device: Device, weights: float, engine: tuple[float, float], sequence_bytes: float) -> float:
    """Return the FLOP/s that one GPU reaches while it generates.

    Args:
        device: The GPU.
        weights: Number of weights on it.
        engine: Bytes of weights and of key-value cache on it.
        sequence_bytes: Bytes on it of the cache of one sequence, at its mean length.
    """
    weight_bytes, cache = engine
    running = max(1.0, min(SAMPLED_SEQUENCES, cache / max(1.0, sequence_bytes)))
    step = STEP_SECONDS + (weight_bytes + running * sequence_bytes) / device.bandwidth
    return min(device.flops, FORWARD * weights * running / step)
