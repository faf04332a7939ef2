"""Measure generation for `scripts/bench/gpu.py`: shards in the engine's queue, against vLLM alone.

    bare           one call of `LLM.generate` with all prompts
    bare no logps  the same without the log-probabilities of the sampled tokens
    N x M          shards of N prompts, M in flight: one, two, and what a run has (`count_calls`)

All have the same prompts and the same parameters. The lengths of answers are lognormal with σ = 1,
so a few are long. The ways take turns, and each begins with an empty prefix cache.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench.gpu_cases import find_device, make_pairs, read_clock
from spin.generation.engine import Engine
from spin.generation.requests import count_calls
from spin.models.policy import Policy, policy_digest

SHARDS = (64, 256, 1000)
"""Prompts of a shard."""


@dataclass(frozen=True)
class Work:
    """The prompts of one measurement."""

    prompts: int
    prompt_tokens: int
    """The most tokens of a prompt."""
    answer_tokens: int
    """The mean of an answer; the longest has eight times as many."""
    rounds: int


GPU_WORK = Work(2000, 256, 64, 2)
CPU_WORK = Work(2000, 24, 8, 1)
"""Enough for a smoke test."""


def draw_lengths(work: Work, seed: int) -> list[int]:
    """Return the number of tokens of each answer."""
    rng = random.Random(seed)
    # −σ²/2 makes the mean of the factor 1.
    factors = [rng.lognormvariate(-0.5, 1.0) for _ in range(work.prompts)]
    return [min(8 * work.answer_tokens, max(1, round(work.answer_tokens * factor))) for factor in factors]


def time_generation(size: str, folder: str, work: Work | None = None) -> dict[str, Any]:
    """Return tokens per second of each way, and relative to vLLM alone, by round."""
    if work is None:
        work = GPU_WORK if find_device() == "cuda" else CPU_WORK
    engine = Engine("bfloat16", 1024, gpu_memory_utilization=0.6)
    policy = Policy(folder, policy_digest(Path(folder)))
    began = read_clock()
    engine.load(policy)
    found: dict[str, Any] = {"start_seconds": read_clock() - began}

    prompts = [{"prompt_token_ids": prompt[: work.prompt_tokens]} for prompt, _, _ in make_pairs(size, 0, work.prompts)]
    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    totals = []
    for number in range(work.rounds):
        lengths = draw_lengths(work, number)
        totals.append(sum(lengths))
        ways = make_ways(engine, policy, prompts, lengths)
        if number == 0:
            # Warm up: compile kernels, and fill caches other than that of prefixes.
            ways["bare"]()
        for name, way in ways.items():
            engine._llm.reset_prefix_cache()
            began, cpu_began = read_clock(), time.process_time()
            assert way() == totals[-1]
            seconds.setdefault(name, []).append(read_clock() - began)
            cpu_seconds.setdefault(name, []).append(time.process_time() - cpu_began)
    for name, taken in seconds.items():
        found[name] = {
            "tokens_per_second": median(total / each for total, each in zip(totals, taken, strict=True)),
            "relative_to_bare": [bare / each for bare, each in zip(seconds["bare"], taken, strict=True)],
            "relative_to_bare_cpu": [
                bare / each for bare, each in zip(cpu_seconds["bare"], cpu_seconds[name], strict=True)
            ],
        }

    began = read_clock()
    engine.sleep()
    engine._digest = None
    engine.load(policy)
    return found | {"reload_seconds": read_clock() - began}


def make_ways(
    engine: Engine, policy: Policy, prompts: list[dict[str, list[int]]], lengths: list[int]
) -> dict[str, Callable[[], int]]:
    """Return the ways to answer all prompts by name; each returns its number of tokens."""
    from vllm import SamplingParams

    def make_sampling(logprobs: int | None) -> list[Any]:
        return [
            SamplingParams(max_tokens=length, ignore_eos=True, seed=number, logprobs=logprobs, detokenize=False)
            for number, length in enumerate(lengths)
        ]

    sampling = make_sampling(0)

    def count(outputs: list[Any]) -> int:
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def bare(parameters: list[Any]) -> int:
        # In the thread in which the engine was started, as everything.
        return count(engine._thread.submit(engine._llm.generate, prompts, parameters, use_tqdm=False).result())

    def in_shards(shard: int, in_flight: int) -> int:
        def answer(first: int) -> int:
            last = first + shard
            return count(engine._run(policy, prompts[first:last], sampling[first:last]))

        with ThreadPoolExecutor(in_flight) as callers:
            return sum(callers.map(answer, range(0, len(prompts), shard)))

    ways: dict[str, Callable[[], int]] = {
        "bare": partial(bare, sampling),
        "bare no logps": partial(bare, make_sampling(None)),
    }
    for shard in SHARDS:
        num_shards = math.ceil(len(prompts) / shard)
        for in_flight in sorted({1, 2, min(num_shards, count_calls(shard, find_device() == "cuda"))}):
            ways[f"{shard} x {in_flight}"] = partial(in_shards, shard, in_flight)
    return ways
