"""Define models, pairs and marks of `scripts/bench/gpu.py`."""

from __future__ import annotations

import fcntl
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PEAK = 989e12
"""Dense bfloat16 operations per second of an H100 or H200, from the data sheet."""

PAIRS = 64
"""Pairs of an optimizer step, as in arXiv 2401.01335."""

PROMPT_TOKENS, COMPLETION_TOKENS = 256, 256
"""Mean lengths; lengths are lognormal with σ = 0.5."""

STEPS = 3
"""Timed steps. One step before them warms up."""

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of prompt, chosen and rejected completion."""


@dataclass(frozen=True)
class Size:
    """A shape of Qwen2.5, with tied embeddings."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int

    def layer_weights(self) -> int:
        """Return the weights of all decoder layers, without biases and norms."""
        width = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * width
        return self.layers * (attention + 3 * self.hidden * self.inner)


SIZES = {
    "tiny": Size(2, 128, 256, 4, 2, 512),
    "0.5B": Size(24, 896, 4864, 14, 2, 151936),
    "1.5B": Size(28, 1536, 8960, 12, 2, 151936),
}


def save_model(name: str, folder: Path) -> None:
    """Save a random Qwen2 in bfloat16, with the tokenizer of the built-in model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from spin.data.builtin import write_tiny_model

    write_tiny_model(folder, 0)
    tiny = json.loads((folder / "config.json").read_text())
    size = SIZES[name]
    config = Qwen2Config(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tiny["eos_token_id"],
        pad_token_id=tiny["pad_token_id"],
    )
    torch.manual_seed(0)
    with torch.device(find_device()):
        model = Qwen2ForCausalLM(config)
    model.to("cpu", torch.bfloat16).save_pretrained(folder)


def find_device() -> str:
    """Return cuda, or cpu on a machine without a GPU (to try the bench out)."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def make_pairs(name: str, seed: int, count: int = PAIRS) -> list[Pair]:
    """Return the pairs of one step."""
    rng = random.Random(seed)
    vocab = SIZES[name].vocab

    def draw(mean: int) -> list[int]:
        # −σ²/2 makes the mean of the factor 1.
        length = min(4 * mean, max(8, round(mean * rng.lognormvariate(-0.125, 0.5))))
        return [rng.randrange(3, vocab) for _ in range(length)]

    return [(draw(PROMPT_TOKENS), draw(COMPLETION_TOKENS), draw(COMPLETION_TOKENS)) for _ in range(count)]


def count_tokens(pairs: list[Pair]) -> int:
    """Return the tokens of prompt and completion of both halves, without padding."""
    return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)


def needed_operations(name: str, pairs: list[Pair]) -> float:
    """Return the operations that one step needs, without attention scores.

    6 for each weight and token. Each prompt counts once, the head at completion tokens only.
    """
    size = SIZES[name]
    prompts = sum(len(prompt) for prompt, _, _ in pairs)
    completions = sum(len(chosen) + len(rejected) for _, chosen, rejected in pairs)
    return 6.0 * (size.layer_weights() * (prompts + completions) + size.hidden * size.vocab * completions)


def read_clock() -> float:
    """Return the wall clock in seconds, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def gpu_lock(path: str) -> Iterator[None]:
    """Let one process at a time use the GPU; all of them may load and import side by side."""
    with Path(path).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
