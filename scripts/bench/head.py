"""The head alone: memory and time of `head_logps` against plain log-softmax, by vocabulary and number of tokens.

    python scripts/bench/head.py

Extra peak memory beyond weight and gradient, in MiB; process CPU seconds on one thread of forward and backward, the best of some.

Measured on a CPU, float32, 1,024 tokens: 74 MiB at a vocabulary of 8k, 154 at 32k, 131k and 256k (plain: 113, 337, 1,297, 2,577) in 0.86, 1.28, 1.26 and 1.26 times
the time; at 32k 90, 157 and 166 MiB for 512, 2k and 4k tokens (plain: 144, 723, 1,495) in 0.89, 1.25 and 1.28 times. In bfloat16 the copy of the weight counts, in both:
174 against 373 MiB at 32k in 0.69 times the time, 476 against 2,837 at 256k in 1.23 times.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.cases import Clock

WIDTH = 512
CELLS = [(vocab, 1024) for vocab in (8192, 32768, 131072, 262144)] + [(32768, tokens) for tokens in (512, 2048, 4096)]
"""Vocabulary and tokens."""


def head_worker(vocab: int, tokens: int, dtype: str, fused: bool, pipe: Any) -> None:
    """`fused`: head_logps; otherwise log_softmax over all logits. Answers (MiB, seconds)."""
    from spin.models.forward import keep_freed_memory
    from spin.models.kernels.head import head_logps

    clock = Clock()
    if not clock.cuda:
        keep_freed_memory()
    device, products = "cuda" if clock.cuda else "cpu", getattr(torch, dtype)
    weight = torch.randn(vocab, WIDTH, device=device).mul_(WIDTH**-0.5).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
    labels, owners = (
        torch.randint(vocab, (tokens,), device=device),
        torch.zeros(tokens, dtype=torch.long, device=device),
    )
    before, seconds = clock.peak_bytes(), float("inf")
    for _ in range(3):
        began = clock.now()
        if fused:
            total = head_logps(hidden, weight, labels, owners, 1, compute_dtype=products).sum()
        else:
            logits = (hidden.to(products) @ weight.to(products).t()).float()
            total = torch.log_softmax(logits, -1).gather(1, labels.unsqueeze(1)).double().sum()
            del logits
        total.backward()
        seconds = min(seconds, clock.now() - began)
    pipe.send(((clock.peak_bytes() - before) / 2**20 - vocab * WIDTH * 4 / 2**20, seconds))


def main() -> None:
    context = get_context("spawn")
    for dtype in ("float32", "bfloat16"):
        print(f"\n{dtype:>8}{'tokens':>8}{'fused MiB':>11}{'fused s':>9}{'plain MiB':>11}{'plain s':>9}{'time':>7}")
        for vocab, tokens in CELLS:
            cells: list[float] = []
            for fused in (True, False):
                ours, theirs = context.Pipe()
                process = context.Process(target=head_worker, args=(vocab, tokens, dtype, fused, theirs), daemon=True)
                process.start()
                cells += ours.recv()
                process.join()
            print(
                f"{vocab:8}{tokens:8}{cells[0]:11.0f}{cells[1]:9.2f}{cells[2]:11.0f}{cells[3]:9.2f}{cells[1] / cells[3]:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
