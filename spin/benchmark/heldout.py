"""Held-out answers of one policy, judged: right or not, how long, how repetitive, how likely, how far from the start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.data import extract_answer
from spin.records import HeldoutAnswer, Prompt, Sample


def judge(
    prompts: Sequence[Prompt],
    greedy: Sequence[Sample],
    sampled: Sequence[Sequence[Sample]],
    logps: Sequence[Sequence[float]],
    start_logps: Sequence[Sequence[float]] | None,
    opponent: Sequence[HeldoutAnswer] | None,
    pattern: str | None,
) -> list[HeldoutAnswer]:
    """One row a prompt.

    `logps`: for each prompt those of the truth, of every sampled answer and (with an opponent) of the opponent's first sampled answer, under the policy.
    `start_logps`: those of every sampled answer under the starting policy; None where the policy is that.
    """
    rows = []
    for at, (prompt, best, samples) in enumerate(zip(prompts, greedy, sampled, strict=True)):
        own = logps[at]
        rows.append(
            HeldoutAnswer(
                prompt_id=prompt.prompt_id,
                prompt_text=prompt.prompt_text,
                real_text=prompt.real_text,
                greedy_text=best.text,
                greedy_right=is_right(prompt, best, pattern),
                sampled_text=samples[0].text,
                sampled_right=is_right(prompt, samples[0], pattern),
                sampled_ids=samples[0].token_ids,
                sampled_finish=samples[0].finish_reason,
                real_logp=own[0],
                sampled_logp=own[1],
                real_tokens=len(prompt.real_ids),
                greedy_tokens=len(best.token_ids),
                greedy_repetition=repetition(best.token_ids),
                sampled_share=_mean([is_right(prompt, sample, pattern) for sample in samples]),
                sampled_cut=_mean([sample.finish_reason == "length" for sample in samples]),
                sampled_tokens=_mean([len(sample.token_ids) for sample in samples]),
                sampled_repetition=_mean([repetition(sample.token_ids) for sample in samples]),
                kl=_mean([now - then for now, then in zip(own[1:], start_logps[at], strict=False)])
                if start_logps
                else 0.0,
                margin=margin(prompt, opponent[at], own) if opponent else math.nan,
            )
        )
    return rows


def is_right(prompt: Prompt, sample: Sample, pattern: str | None) -> bool:
    """Exact match of the answer; an answer that was cut, or a truth without one, is not right."""
    return (
        sample.finish_reason == "stop"
        and prompt.answer is not None
        and extract_answer(sample.text, pattern) == prompt.answer
    )


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams that occurred before: 1 − distinct ÷ all (rep-n of arXiv 1908.04319); 0 for fewer than n tokens."""
    grams = [tuple(token_ids[at : at + n]) for at in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def margin(prompt: Prompt, opponent: HeldoutAnswer, logps: Sequence[float]) -> float:
    """Δ of the truth against the opponent's answer, the opponent being the reference. `logps`: the policy's, of the truth first and of that answer last."""
    if opponent.sampled_ids == prompt.real_ids:
        return math.nan  # identical halves carry none
    return (logps[0] - opponent.real_logp) - (logps[-1] - opponent.sampled_logp)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
