"""Collect the answers to the held-out prompts, for the table of answers on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin.report.run_report import PolicyReport, RunReport


def list_answers(runs: Sequence[RunReport]) -> list[dict[str, Any]]:
    """Return the held-out answers of the runs that have any, as `pack_answers` does."""
    packed = []
    for run in runs:
        answered = [policy for policy in run.policies if policy.answers]
        if answered:
            packed.append(pack_answers(run.name, answered))
    return packed


def pack_answers(name: str, policies: Sequence[PolicyReport]) -> dict[str, Any]:
    """Return the held-out answers of a run for report.js.

    `texts` holds each text once; prompts and rows refer to texts by number. A prompt is
    [id, prompt, target]. A row of a policy is [greedy answer, is right, sampled answer, is right],
    or None without an answer to that prompt.
    """
    # Many answers are equal to the target or to each other, so texts are stored once.
    numbers: dict[str, int] = {}

    def number_of(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    # Prompts by their id, and for each policy its answers by the id of the prompt.
    prompts: dict[int, list[int]] = {}
    rows: list[dict[int, list[int]]] = []
    for policy in policies:
        answers = policy.answers or {}
        policy_rows = {}
        # One tuple for each prompt, with the columns of TEXTS.
        for row in zip(*answers.values(), strict=True):
            prompt_id, prompt, target, greedy, greedy_right, sampled, sampled_right = row
            if prompt_id not in prompts:
                prompts[prompt_id] = [prompt_id, number_of(prompt), number_of(target)]
            policy_rows[prompt_id] = [number_of(greedy), int(greedy_right), number_of(sampled), int(sampled_right)]
        rows.append(policy_rows)

    # The page has one row for each prompt, and one column for each policy.
    order = sorted(prompts)
    columns = []
    for policy, policy_rows in zip(policies, rows, strict=True):
        ordered = [policy_rows.get(prompt_id) for prompt_id in order]
        columns.append({"label": policy.label, "baseline": policy.baseline, "rows": ordered})
    return {
        "name": name,
        "texts": list(numbers),
        "prompts": [prompts[prompt_id] for prompt_id in order],
        "policies": columns,
    }
