"""Name the adapter that a vLLM engine answers with, while it keeps its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin.config.adapter import Serve
from spin.config.run import RunConfig
from spin.models.policy import ADAPTER_CONFIG, Policy
from spin.run_dir.files import read_json

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `max_lora_rank` (`vllm/config/lora.py`)."""


def served_rank(config: RunConfig) -> int:
    """Return the rank of new adapters that the engines serve; 0 if they load whole models."""
    adapter = config.adapter
    if not adapter.enabled or adapter.serve is Serve.merged:
        return 0
    return adapter.rank


def adapter_options(rank: int, policy: Policy) -> dict[str, Any]:
    """Return the options of vLLM with which an engine serves adapters, one at a time.

    Args:
        rank: Rank of new adapters.
        policy: The first policy; an adapter that the run starts from has a rank of its own.
    """
    if policy.adapter is not None:
        settings = read_json(Path(policy.adapter.path) / ADAPTER_CONFIG)
        rank = max(rank, settings["r"], *(settings.get("rank_pattern") or {}).values())
    rank = min(allowed for allowed in LORA_RANKS if allowed >= rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


class AdapterRequests:
    """The adapter of the current policy, as vLLM wants it with every request."""

    def __init__(self) -> None:
        self.base: str | None = None
        """Digest of the base that the engine runs on; None before the first policy."""
        self.request: Any = None
        """vLLM's description of the adapter; None for the base alone."""
        self._count = 0

    def choose(self, policy: Policy) -> None:
        """Take the adapter of a policy, or none if the policy has none.

        vLLM loads an adapter with the first request that names it. Each gets a new number, because
        vLLM keeps what it has loaded under a number, and the files of a path may have changed.
        """
        self.base = policy.base.digest
        self.request = None
        if policy.adapter is None:
            return
        from vllm.lora.request import LoRARequest

        self._count += 1
        self.request = LoRARequest(policy.adapter.digest, self._count, policy.adapter.path)
