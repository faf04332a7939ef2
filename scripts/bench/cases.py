"""Define the cases of `scripts/bench/training.py`: their pairs, model and clock."""

from __future__ import annotations

import random
import resource
import time
from dataclasses import dataclass

import torch

RATIOS = {"2:1": (256, 128), "1:1": (192, 192), "1:4": (77, 307)}
"""Mean tokens of prompt and of completion."""
SIZES = {"tiny": (2, 128, 1024), "m16": (4, 512, 8192), "m32": (8, 512, 16384)}
"""Layers, width and vocabulary of a random Llama. `m16` has about 16 million parameters."""
LENGTHS = ("lognormal", "uniform")
PAIRS = 8
"""Pairs of one optimizer step."""
BETA = 0.1
LEARNING_RATE = 1e-5
Pair = tuple[list[int], list[int], list[int]]
"""Token ids of prompt, chosen and rejected completion."""


@dataclass(frozen=True)
class Case:
    """Describe what one process measures."""

    system: str
    ratio: str
    dtype: str
    size: str
    lengths: str
    seeds: tuple[int, ...]
    """One draw of PAIRS pairs each. The steps of a process take the draws in turn."""
    token_budget: int | None
    lever: str = ""
    model: str = ""
    adapter_rank: int = 0
    """Rank of LoRA adapters on all linear layers, with alpha = 2 rank; 0 trains all weights."""

    @property
    def vocab(self) -> int:
        return SIZES[self.size][2]


def make_pairs(case: Case, seed: int) -> list[Pair]:
    """Return one draw of pairs.

    Lengths are lognormal with σ = 0.5 around the mean, like those of instruction data, and at most
    4 times the mean; or uniform from 0.5 to 1.5 times the mean.
    """
    rng = random.Random(f"{case.ratio} {case.vocab} {case.lengths} {seed}")
    prompt, completion = RATIOS[case.ratio]

    def tokens(mean: int) -> list[int]:
        if case.lengths == "lognormal":
            factor = rng.lognormvariate(-0.125, 0.5)  # −σ²/2 makes the mean of the factor 1
        else:
            factor = rng.uniform(0.5, 1.5)
        count = min(4 * mean, max(8, round(mean * factor)))
        return [rng.randrange(3, case.vocab) for _ in range(count)]

    return [(tokens(prompt), tokens(completion), tokens(completion)) for _ in range(PAIRS)]


def count_tokens(pairs: list[Pair]) -> int:
    """Return the tokens of prompt and completion of both halves, without padding."""
    return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)


def needed_flops(case: Case, pairs: list[Pair]) -> float:
    """Return the floating-point operations that one step needs: 6 for each weight and token.

    With adapters it is 4, because frozen weights have no gradient. Each prompt counts once, the
    head at completion tokens only. Attention scores are left out.
    """
    layers, hidden, vocab = SIZES[case.size]
    weights = layers * (4 * hidden**2 + 3 * hidden * inner_width(hidden))
    prompts = sum(len(prompt) for prompt, _, _ in pairs)
    completions = sum(len(chosen) + len(rejected) for _, chosen, rejected in pairs)
    operations = 6.0
    if case.adapter_rank:
        operations = 4.0
    return operations * (weights * (prompts + completions) + hidden * vocab * completions)


def inner_width(hidden: int) -> int:
    """Return the width of the feed-forward layer."""
    return round(hidden * 2.6875)


def save_model(case: Case, folder: str) -> None:
    """Save a random Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    layers, hidden, vocab = SIZES[case.size]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner_width(hidden),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class Clock:
    """Measure seconds of process CPU time; on CUDA of wall clock, synchronised."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        if not self.cuda:
            torch.set_num_threads(1)

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def peak_bytes(self) -> int:
        """Return the peak memory of the whole process; on CUDA of the device."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def matmul_rate(self, dtype: str) -> float:
        """Return the operations per second of a large square product, the mark for utilisation."""
        size, best = 8192 if self.cuda else 1536, float("inf")
        a = torch.randn(size, size, dtype=getattr(torch, dtype), device="cuda" if self.cuda else "cpu")
        for _ in range(5):
            began = self.now()
            a @ a
            best = min(best, self.now() - began)
        return 2 * size**3 / best
