"""What `bench/training.py` measures: cases, their pairs and model, and the clock that all systems are measured by."""

from __future__ import annotations

import random
import resource
import time
from dataclasses import dataclass

import torch

RATIOS = {"2:1": (256, 128), "1:1": (192, 192), "1:4": (77, 307)}
"""Mean tokens of prompt and completion."""
SIZES = {"tiny": (2, 128, 1024), "m16": (4, 512, 8192), "m32": (8, 512, 16384)}
"""Layers, width and vocabulary of a random Llama; its name is about its millions of parameters."""
LENGTHS = ("lognormal", "uniform")
PAIRS, BETA, LEARNING_RATE = 8, 0.1, 1e-5
"""Pairs of one optimizer step, and the settings of all systems."""
Pair = tuple[list[int], list[int], list[int]]
"""Prompt, real and generated ids."""


@dataclass(frozen=True)
class Case:
    """What one process does."""

    system: str
    ratio: str
    dtype: str
    size: str
    lengths: str
    seeds: tuple[int, ...]
    """One draw of PAIRS pairs each; step k of a process is on draw k, round and round."""
    token_budget: int | None
    lever: str = ""
    model: str = ""

    @property
    def vocab(self) -> int:
        return SIZES[self.size][2]


def make_pairs(case: Case, seed: int) -> list[Pair]:
    """One draw. Lengths are lognormal with σ = 0.5 around the mean, as those of instruction data are, at most 4 times it; or uniform from half of it to 1.5 times."""
    rng = random.Random(f"{case.ratio} {case.vocab} {case.lengths} {seed}")
    prompt, completion = RATIOS[case.ratio]

    def tokens(mean: int) -> list[int]:
        length = mean * (rng.lognormvariate(-0.125, 0.5) if case.lengths == "lognormal" else rng.uniform(0.5, 1.5))
        return [rng.randrange(3, case.vocab) for _ in range(min(4 * mean, max(8, round(length))))]

    return [(tokens(prompt), tokens(completion), tokens(completion)) for _ in range(PAIRS)]


def count_tokens(pairs: list[Pair]) -> int:
    """Of prompt and completion, both halves, without padding."""
    return sum(2 * len(prompt) + len(real) + len(generated) for prompt, real, generated in pairs)


def needed_flops(case: Case, pairs: list[Pair]) -> float:
    """Of one step: 6 for each weight and token, each prompt counted once, the head at completion tokens only; attention scores left out."""
    layers, hidden, vocab = SIZES[case.size]
    weights = layers * (4 * hidden**2 + 3 * hidden * inner_width(hidden))
    completions = sum(len(real) + len(generated) for _, real, generated in pairs)
    return 6.0 * (weights * (completions + sum(len(prompt) for prompt, _, _ in pairs)) + hidden * vocab * completions)


def inner_width(hidden: int) -> int:
    return round(hidden * 2.6875)


def save_model(case: Case, folder: str) -> None:
    """A random Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    layers, hidden, vocab = SIZES[case.size]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner_width(hidden), num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class Clock:
    """Seconds of process CPU time; on CUDA of wall clock, synchronised."""

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
        """Of the whole process; on CUDA of the device."""
        return (
            torch.cuda.max_memory_allocated()
            if self.cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )

    def matmul_rate(self, dtype: str) -> float:
        """Floating-point operations a second of a large square product: what utilisation is measured against."""
        size, best = 8192 if self.cuda else 1536, float("inf")
        a = torch.randn(size, size, dtype=getattr(torch, dtype), device="cuda" if self.cuda else "cpu")
        for _ in range(5):
            began = self.now()
            a @ a
            best = min(best, self.now() - began)
        return 2 * size**3 / best
