"""Extract the answer from a text, and decide whether a sample is right."""

from __future__ import annotations

import re

from spin.data.records import Prompt, Sample


def extract_answer(text: str, pattern: str | None) -> str | None:
    """What must be equal in an answer and in the truth: the pattern's last match (group 1 if it has one), without thousands commas; or the whole text."""
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return re.sub(r"(?<=\d),(?=\d)", "", found[-1].group(1 if found[-1].re.groups else 0).strip())


def is_right(prompt: Prompt, sample: Sample, pattern: str | None) -> bool:
    """Exact match of the answer; an answer that was cut, or a truth without one, is not right."""
    return (
        sample.finish_reason == "stop"
        and prompt.answer is not None
        and extract_answer(sample.text, pattern) == prompt.answer
    )
