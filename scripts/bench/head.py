"""Measure the head alone: memory and time of `head_logps` against a plain log-softmax.

    python scripts/bench/head.py

Prints, by vocabulary and number of tokens, the extra peak memory beside weight and gradient in MiB,
and the process CPU seconds on one thread of forward and backward, the best of three. Results are in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench.cases import Clock

WIDTH = 512
CELLS = [(vocab, 1024) for vocab in (8192, 32768, 131072, 262144)] + [(32768, tokens) for tokens in (512, 2048, 4096)]
"""Pairs of vocabulary and number of tokens."""


def head_worker(vocab: int, tokens: int, dtype: str, fused: bool, pipe: Any) -> None:
    """Send (MiB, seconds) of head_logps if `fused`, otherwise of log_softmax over all logits."""
    from spin.models.cpu_memory import keep_freed_memory
    from spin.models.kernels.head import head_logps

    clock = Clock()
    if not clock.cuda:
        keep_freed_memory()
    device, products = "cuda" if clock.cuda else "cpu", getattr(torch, dtype)
    weight = torch.randn(vocab, WIDTH, device=device).mul_(WIDTH**-0.5).requires_grad_()
    weight.grad = torch.zeros_like(weight)
    hidden = torch.randn(tokens, WIDTH, device=device, requires_grad=True)
    labels = torch.randint(vocab, (tokens,), device=device)
    before = clock.peak_bytes()
    seconds = float("inf")
    for _ in range(3):
        began = clock.now()
        if fused:
            total = head_logps(hidden, weight, labels, compute_dtype=products).double().sum()
        else:
            logits = (hidden.to(products) @ weight.to(products).t()).float()
            total = torch.log_softmax(logits, -1).gather(1, labels.unsqueeze(1)).double().sum()
            del logits
        total.backward()
        seconds = min(seconds, clock.now() - began)
    pipe.send(((clock.peak_bytes() - before) / 2**20 - vocab * WIDTH * 4 / 2**20, seconds))


def main() -> None:
    """Measure all cells in both precisions, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
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
            figures = f"{cells[0]:11.0f}{cells[1]:9.2f}{cells[2]:11.0f}{cells[3]:9.2f}"
            print(f"{vocab:8}{tokens:8}{figures}{cells[1] / cells[3]:7.2f}", flush=True)


if __name__ == "__main__":
    main()
