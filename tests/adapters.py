"""A tiny adapter on disk, for the tests."""

from pathlib import Path

import torch

from spin.config.adapter import AdapterConfig, AdapterMethod
from spin.models.loading import load_policy
from spin.models.lora import inject_adapter, list_adapter_weights, make_lora_config
from spin.models.policy import Adapter, Policy
from spin.models.policy_export import export_adapter

LORA = AdapterConfig(method=AdapterMethod.lora, rank=4, alpha=8)


def write_adapter_of(base: Policy, folder: Path, seed: int, name: str | None = None) -> Policy:
    """Write an adapter with random A and B, large enough to change every answer."""
    from transformers import AutoTokenizer

    model = load_policy(Path(base.path))
    inject_adapter(model, make_lora_config(LORA))
    generator = torch.Generator().manual_seed(seed)
    for _, weight in list_adapter_weights(model):
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    digest = export_adapter(model, folder, base, name or base.path, tokenizer)
    return Policy(str(folder), digest, Adapter(str(folder), digest, base))
