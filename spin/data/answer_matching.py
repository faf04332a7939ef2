"""Compare the answers of a policy with the targets of the data set.

Both sides are texts that the tokenizer decoded, see `spin.data.chat_renderer.Renderer.text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import regex

from spin.data.records import Prompt, Sample
from spin.errors import ConfigError

MATCH_SECONDS = 5.0
"""Longest search in one text. A pattern such as ``(a+)+$`` may take years if it does not match."""


class EndlessPattern(ConfigError):
    """A regular expression did not come to an end on one text."""


def extract_answer(text: str, pattern: str | None) -> str | None:
    """Return the part of a text that is compared.

    Args:
        text: a target or a sample, decoded.
        pattern: its last match (group 1 if it has one) is the answer, without thousands commas.
            None takes the whole text.

    Returns:
        The answer; None if the pattern does not match.

    Raises:
        EndlessPattern: The search took more than MATCH_SECONDS.
    """
    if pattern is None:
        return text.strip()
    # The last match counts: earlier ones may be steps on the way.
    try:
        matches = list(regex.finditer(pattern, text, timeout=MATCH_SECONDS))
    except TimeoutError as error:
        raise EndlessPattern(
            f"data.answer_pattern={pattern}: the search in a text of {len(text)} characters did not end within "
            f"{MATCH_SECONDS:g} s; avoid a repeated group inside a repeated group, such as (a+)+"
        ) from error
    if not matches:
        return None
    group = min(1, matches[-1].re.groups)
    return re.sub(r"(?<=\d),(?=\d)", "", matches[-1].group(group).strip())


def is_right(prompt: Prompt, sample: Sample, pattern: str | None) -> bool:
    """Return True if the answers match exactly.

    A truncated sample is not right, nor one in which the search for the answer does not end. No
    sample is right if the target has no answer.
    """
    if sample.finish_reason != "stop" or prompt.answer is None:
        return False
    try:
        return extract_answer(sample.text, pattern) == prompt.answer
    except EndlessPattern:
        # The pattern found all targets in time, so the fault is the sample's.
        return False


def is_identical(prompt: Prompt, completion_ids: Sequence[int], finish_reason: str, text: str) -> bool:
    """Return True if a sample is the target: the same tokens, or the same text in other tokens.

    Args:
        prompt: with its target.
        completion_ids: of the sample. Shape: (completion tokens,).
        finish_reason: of the sample; the texts count only if both are complete (``stop``).
        text: of the sample, decoded.
    """
    # A tokenizer can spell the same text in several ways.
    if list(completion_ids) == prompt.completion_ids:
        return True
    return finish_reason == prompt.finish_reason == "stop" and text == prompt.completion_text
