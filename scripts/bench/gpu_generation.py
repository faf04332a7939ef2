"""Measure generation for `scripts/bench/gpu.py`: shards in the engine's queue, against vLLM alone.

    bare           one call of `LLM.generate` with all prompts
    bare no logps  the same without the log-probabilities of the sampled tokens
    N x M          shards of N prompts, M in flight: as many as a run has (`count_calls`), or two

All have the same prompts and the same parameters. The lengths of answers are lognormal with σ = 1,
so a few are long. Each measurement stands between two of `bare`, whose mean it is compared with,
and begins with an empty prefix cache.
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

SHARDS = (64, 128, 256, 500, 1000)
"""Prompts of a shard."""


@dataclass(frozen=True)
class Work:
    """The prompts of one measurement."""

    prompts: int
    prompt_tokens: int
    """The most tokens of a prompt."""
    answer_tokens: int
    """The mean of an answer; the longest has eight times as many."""


GPU_WORK = Work(2000, 256, 64)
CPU_WORK = Work(2000, 32, 32)


def draw_lengths(work: Work, seed: int) -> list[int]:
    """Return the number of tokens of each answer."""
    rng = random.Random(seed)
    # −σ²/2 makes the mean of the factor 1.
    factors = [rng.lognormvariate(-0.5, 1.0) for _ in range(work.prompts)]
    return [min(8 * work.answer_tokens, max(1, round(work.answer_tokens * factor))) for factor in factors]


def time_generation(size: str, folder: str, rounds: int) -> dict[str, Any]:
    """Return tokens per second of each way, and relative to vLLM alone, by round."""
    work = GPU_WORK if find_device() == "cuda" else CPU_WORK
    engine = Engine("bfloat16", 1024, gpu_memory_utilization=0.6)
    policy = Policy(folder, policy_digest(Path(folder)))
    began = read_clock()
    engine.load(policy)
    found: dict[str, Any] = {"start_seconds": read_clock() - began}

    prompts = [{"prompt_token_ids": prompt[: work.prompt_tokens]} for prompt, _, _ in make_pairs(size, 0, work.prompts)]
    rates: dict[str, list[float]] = {}
    relative: dict[str, list[float]] = {}
    relative_cpu: dict[str, list[float]] = {}

    def measure(name: str, way: Callable[[], int]) -> tuple[float, float]:
        engine._llm.reset_prefix_cache()
        began, cpu_began = read_clock(), time.process_time()
        tokens = way()
        seconds, cpu_seconds = read_clock() - began, time.process_time() - cpu_began
        rates.setdefault(name, []).append(tokens / seconds)
        return seconds, cpu_seconds

    for number in range(rounds):
        ways = make_ways(engine, policy, prompts, draw_lengths(work, number))
        bare = ways.pop("bare")
        if number == 0:
            # Warm up: compile kernels, and fill caches other than that of prefixes.
            bare()
        before = measure("bare", bare)
        for name, way in ways.items():
            seconds, cpu_seconds = measure(name, way)
            after = measure("bare", bare)
            relative.setdefault(name, []).append((before[0] + after[0]) / 2 / seconds)
            relative_cpu.setdefault(name, []).append((before[1] + after[1]) / 2 / cpu_seconds)
            before = after
    for name, by_round in rates.items():
        found[name] = {"tokens_per_second": median(by_round)}
    for name, by_round in relative.items():
        found[name] |= {"relative_to_bare": by_round, "relative_to_bare_cpu": relative_cpu[name]}

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
        in_flight = min(num_shards, count_calls(shard, find_device() == "cuda"))
        ways[f"{shard} x {in_flight}"] = partial(in_shards, shard, in_flight)
    ways["64 x 2"] = partial(in_shards, 64, 2)
    return ways
