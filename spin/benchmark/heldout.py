"""Held-out figures of one policy, from its answers and log-probabilities."""

from __future__ import annotations

from typing import Any

from spin.data import extract_answer
from spin.records import HeldoutAnswer, Prompt, Sample


def judge(prompts: list[Prompt], greedy: list[Sample], sampled: list[Sample], logps: list[list[float]], pattern: str | None) -> list[HeldoutAnswer]:
    """One row a prompt. `logps`: for each, that of the truth and that of the sampled answer under the policy."""
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
            real_logp=own[0],
            sampled_logp=own[1],
        )
        for prompt, g, s, own in zip(prompts, greedy, sampled, logps, strict=True)
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


def win_rate(prompts: list[Prompt], opponent: list[HeldoutAnswer], logps: list[list[float]]) -> float | None:
    """Share of prompts where the main player prefers the truth to the opponent's answer (Δ > 0). Identical answers carry no margin and are left out.

    `logps`: the main player's, of the truth first and of the opponent's answer last. None when all are identical.
    """
    margins = [(own[0] - o.real_logp) - (own[-1] - o.sampled_logp) for prompt, o, own in zip(prompts, opponent, logps, strict=True) if o.sampled_ids != prompt.real_ids]
    return sum(margin > 0 for margin in margins) / len(margins) if margins else None
