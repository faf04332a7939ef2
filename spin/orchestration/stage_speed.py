"""Measure how fast a stage was: the seconds of each kind of work, and the tokens per second."""

from __future__ import annotations

from typing import Any

from spin.run_dir.facts import KindTotals, PolicyFacts
from spin.run_dir.paths import Stage
from spin.run_dir.run_state import RunState


def measure_speed(state: RunState, stage: Stage, seconds: float, generated: float) -> dict[str, Any]:
    """Return the seconds of each kind of work, and the tokens per second.

    ``neither`` is the share of the time in which the run neither generated nor trained.

    Args:
        state: The state of the run.
        stage: The stage of the policy.
        seconds: Seconds of the benchmark.
        generated: Seconds of generation within the benchmark.
    """
    # A start has no samples and, without a warm-up, no training: all counts are then 0.
    samples = state.totals(stage, "samples") or KindTotals()
    policy = PolicyFacts()
    for unit in state.units(stage, "policy"):
        policy = state.facts(unit, PolicyFacts)
    speed: dict[str, Any] = {
        "seconds_generate": samples.seconds,
        "seconds_score": state.seconds(stage, "pairs") or 0.0,
        "seconds_train": policy.seconds,
        "seconds_benchmark": round(seconds, 3),
        "seconds_benchmark_generate": round(generated, 3),
    }

    # If generation and scoring overlapped with training, their seconds are a part of its seconds.
    # Do not count them twice.
    busy = policy.seconds + speed["seconds_benchmark_generate"]
    total = policy.seconds + speed["seconds_benchmark"]
    if not samples.background:
        busy += samples.seconds
        total += samples.seconds + speed["seconds_score"]
    speed["neither"] = round(1 - busy / total, 4)
    if samples.tokens:
        speed["generation_tokens_per_second"] = round(samples.tokens / samples.seconds, 1)
    if policy.tokens:
        speed["training_tokens_per_second"] = round(policy.tokens / policy.seconds, 1)
    return speed
