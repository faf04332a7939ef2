"""Held-out figures of one policy, from its answers and log-probabilities."""

from __future__ import annotations

from typing import Any

from spin.data import extract_answer
from spin.records import HeldoutAnswer, Prompt, Sample


def judge(prompts: list[Prompt], greedy: list[Sample], sampled: list[Sample], logps: list[float], pattern: str | None) -> list[HeldoutAnswer]:
    """One row a prompt. `logps`: those of the truths, then those of the sampled answers, under the policy; 2 × len(prompts)."""
    n = len(prompts)
    assert len(greedy) == len(sampled) == n
    assert len(logps) == 2 * n
    return [
        HeldoutAnswer(
            prompt_id=prompt.prompt_id,
            prompt_text=prompt.prompt_text,
            real_text=prompt.real_text,
            greedy_text=g.text,
            greedy_right=is_right(prompt, g, pattern),
            sampled_text=s.text,
            sampled_right=is_right(prompt, s, pattern),
            sampled_ids=s.token_ids,
            sampled_finish=s.finish_reason,
            real_logp=logps[i],
            sampled_logp=logps[n + i],
        )
        for i, (prompt, g, s) in enumerate(zip(prompts, greedy, sampled, strict=True))
    ]


def is_right(prompt: Prompt, sample: Sample, pattern: str | None) -> bool:
    """Exact match of the answer; an answer that was cut, or a truth without one, is not right."""
    return sample.finish_reason == "stop" and prompt.answer is not None and extract_answer(sample.text, pattern) == prompt.answer


def figures(prompts: list[Prompt], answers: list[HeldoutAnswer]) -> dict[str, Any]:
    """Exact match (greedy, sampled), NLL of the truth in nats a token, share of answers that were cut."""
    n = len(answers)
    return {
        "heldout": n,
        "exact_match_greedy": sum(a.greedy_right for a in answers) / n,
        "exact_match_sampled": sum(a.sampled_right for a in answers) / n,
        "nll": -sum(a.real_logp for a in answers) / sum(len(p.real_ids) for p in prompts),
        "cut": sum(a.sampled_finish == "length" for a in answers) / n,
    }


def win_rate(prompts: list[Prompt], opponent: list[HeldoutAnswer], real_logps: list[float], generated_logps: list[float]) -> float | None:
    """Share of prompts where the main player prefers the truth to the opponent's answer (Δ > 0). Identical answers carry no margin and are left out.

    `real_logps`, `generated_logps`: the main player's, of the truth and of the opponent's answer. None when all are identical.
    """
    margins = [
        (real - o.real_logp) - (generated - o.sampled_logp)
        for prompt, o, real, generated in zip(prompts, opponent, real_logps, generated_logps, strict=True)
        if o.sampled_ids != prompt.real_ids
    ]
    return sum(margin > 0 for margin in margins) / len(margins) if margins else None
