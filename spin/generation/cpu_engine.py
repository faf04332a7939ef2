"""Prepare vLLM for a CPU: its environment and the options of the engine."""

from __future__ import annotations

import os
from typing import Any


def prepare_cpu_engine(num_parts: int, kv_cache_bytes: int) -> dict[str, Any]:
    """Set the environment of this process for vLLM on a CPU, and return the engine's options.

    Args:
        num_parts: Parts of the model, each on a core of its own.
        kv_cache_bytes: Size of the key-value cache.
    """
    # More threads wait for each other in busy loops: eight times slower, as measured.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Even an eager engine compiles the function that ranks log-probabilities: 10 s of CPU without
    # a cache, for the same numbers.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # By default vLLM needs one NUMA node for each part.
    if num_parts > 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(num_parts))))
    # On a CPU vLLM crashes when chunked prefill splits a prompt whose request has a seed.
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "kv_cache_memory_bytes": kv_cache_bytes,
    }
