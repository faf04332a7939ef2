"""Score the answers to the held-out prompts: exact match, repetition, KL and margin of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.benchmark.verifier import Verifier
from spin.data.answer_matching import is_identical
from spin.data.records import HeldoutAnswer, Prompt, Sample


def judge_answers(
    prompts: Sequence[Prompt],
    greedy: Sequence[Sample],
    sampled: Sequence[Sequence[Sample]],
    logps: Sequence[Sequence[float]],
    start_logps: Sequence[Sequence[float]] | None,
    opponent: Sequence[HeldoutAnswer] | None,
    is_right: Verifier,
) -> list[HeldoutAnswer]:
    """Return one judged row for each prompt.

    Args:
        prompts: Held-out prompts. All other arguments have one item for each, in this order.
        greedy: Greedy answer of the policy.
        sampled: Sampled answers of the policy.
        logps: Log-probabilities under the policy: of the target, of each sampled answer and, with
            an opponent, of the opponent's first sampled answer.
        start_logps: Log-probabilities under the starting policy, of each sampled answer. None if
            this policy is the starting policy.
        opponent: Judged answers of the previous policy; None for the starting policy.
        is_right: Tells whether an answer is right.
    """
    rows = []
    for index, (prompt, best, samples) in enumerate(zip(prompts, greedy, sampled, strict=True)):
        own_logps = logps[index]
        # Estimate of the KL: the mean of log p − log p_start over the policy's own answers. An
        # opponent's answer at the end of `own_logps` has no partner.
        kl = 0.0
        if start_logps is not None:
            log_ratios = []
            for own, start in zip(own_logps[1:], start_logps[index], strict=False):
                log_ratios.append(own - start)
            kl = _mean(log_ratios)

        # Measures of each sampled answer; the row keeps their means.
        rights: list[bool] = []
        truncated: list[bool] = []
        lengths: list[int] = []
        repetitions: list[float] = []
        for sample in samples:
            rights.append(is_right(prompt, sample))
            truncated.append(sample.finish_reason == "length")
            lengths.append(len(sample.completion_ids))
            repetitions.append(measure_repetition(sample.completion_ids))

        margin = math.nan
        if opponent is not None:
            margin = compute_margin(prompt, opponent[index], own_logps)
        row = HeldoutAnswer(
            prompt_id=prompt.prompt_id,
            prompt_text=prompt.prompt_text,
            target_text=prompt.completion_text,
            greedy_text=best.text,
            greedy_right=is_right(prompt, best),
            sampled_text=samples[0].text,
            sampled_right=rights[0],
            sampled_ids=samples[0].completion_ids,
            sampled_finish=samples[0].finish_reason,
            target_logp=own_logps[0],
            sampled_logp=own_logps[1],
            target_tokens=len(prompt.completion_ids),
            greedy_tokens=len(best.completion_ids),
            greedy_repetition=measure_repetition(best.completion_ids),
            sampled_share=_mean(rights),
            sampled_cut=_mean(truncated),
            sampled_tokens=_mean(lengths),
            sampled_repetition=_mean(repetitions),
            kl=kl,
            margin=margin,
        )
        rows.append(row)
    return rows


def measure_repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that occurred before: 1 − distinct ÷ all.

    This is rep-n of arXiv 1908.04319. It is 0 for fewer than n tokens.
    """
    num_grams = len(token_ids) - n + 1
    if num_grams <= 0:
        return 0.0
    distinct = set()
    for first in range(num_grams):
        distinct.add(tuple(token_ids[first : first + n]))
    return 1 - len(distinct) / num_grams


def compute_margin(prompt: Prompt, opponent: HeldoutAnswer, logps: Sequence[float]) -> float:
    """Return the margin of the target over the opponent's answer, with the opponent as reference.

    Args:
        prompt: Held-out prompt with its target.
        opponent: Judged answer of the opponent to this prompt.
        logps: Log-probabilities under the policy, first of the target, last of the opponent's
            answer.

    Returns: nats; NaN if the opponent's answer is the target.
    """
    if is_identical(prompt, opponent.sampled_ids, opponent.sampled_finish, opponent.sampled_text):
        return math.nan
    # Implicit rewards of the SPIN objective without the factor beta, which changes no sign.
    target_reward = logps[0] - opponent.target_logp
    opponent_reward = logps[-1] - opponent.sampled_logp
    return target_reward - opponent_reward


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
