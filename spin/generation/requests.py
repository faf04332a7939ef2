"""Requests to an engine and its answers; the seed of each request."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_CALLS = 64
"""The most calls in flight of one engine; each takes a thread."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Each request has its own seed, so the answer depends neither on the order of the requests nor on
    the number of engines.
    """

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    token_ids: list[int]
    finish_reason: str
    """As vLLM reports it: ``stop``, or ``length`` at the token limit."""
    logp: float
    """Sum of the token log-probabilities at temperature 1, in nats; NaN if they were not needed."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one set of answers."""

    purpose: str
    """Name of the use, such as the benchmark. The seed of each request depends on it."""
    iteration: int
    """Iteration of the run. The seed of each request depends on it."""
    temperature: float
    """0 is greedy."""
    top_p: float = 1.0
    samples: int = 1
    """Number of answers to each prompt."""
    with_logps: bool = True
    """True to compute the log-probability of each answer; it takes 3 to 10 % more time on a CPU."""


def count_batch_tokens(longest: int) -> int:
    """Return the most tokens of a pass of an engine whose sequences have at most `longest`."""
    # Without chunked prefill (on a CPU) a whole prompt must fit in one pass.
    return max(4096, longest)


def count_calls(requests: int, on_gpu: bool) -> int:
    """Return how many calls of that many requests, in flight at once, keep an engine busy.

    A call is in flight until its longest answer is finished, about eight times as long as the mean.
    So eight times the sequences of vLLM's batch are in flight: 1,024 on a GPU of 80 GB, 256 on a
    CPU (`vllm/engine/arg_utils.py`).
    """
    batch = 1024 if on_gpu else 256
    return min(MAX_CALLS, max(2, math.ceil(8 * batch / requests)))
